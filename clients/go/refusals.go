package stepd

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Which of the refusals of several calls is that of one call with all their tensors.

// The checks of a step by a server, in their order.
const (
	// wholeCall is what does not depend on the call's tensors, so that any of the calls says the same.
	wholeCall = iota
	paramsThemselves
	gradsThemselves
	gradsBesideParams
	stateItself
	stateBesideParams
	totalNorm
	gradValues
)

func stageOf(refusal *Error) int {
	switch refusal.Name {
	case ErrUnsupportedDType, ErrTensorsCorrupt:
		if strings.HasPrefix(refusal.Field, "/params") {
			return paramsThemselves
		}
		return gradsThemselves
	case ErrTensorMismatch:
		return gradsBesideParams
	case ErrStateCorrupt:
		return stateItself
	case ErrStateMismatch:
		return stateBesideParams
	case ErrNonFiniteGradient:
		return gradValues
	}
	// The one check of a setting that comes after those of tensors.
	if refusal.Field == "/clip/total_norm" {
		return totalNorm
	}
	return wholeCall
}

// namedTensors is how many tensors a refusal names at most.
const namedTensors = 8

// joinRefusals returns nil where there is none.
func joinRefusals(request StepRequest, refusals []*Error) error {
	if len(refusals) == 0 {
		return nil
	}
	// A server reads tensors in the order of their file, and a state by parameter.
	ranks := map[int]map[string]int{}
	for stage, tensors := range map[int]Tensors{paramsThemselves: request.Params, gradsThemselves: request.Grads, gradsBesideParams: request.Grads} {
		ranks[stage] = map[string]int{}
		for rank, tensor := range canonical(tensors) {
			ranks[stage][tensor.Name] = rank
		}
	}
	first := slices.MinFunc(refusals, func(a, b *Error) int {
		stage := stageOf(a)
		left, right := firstName(a), firstName(b)
		return cmp.Or(cmp.Compare(stage, stageOf(b)), cmp.Compare(ranks[stage][left], ranks[stage][right]), strings.Compare(left, right))
	})
	if stageOf(first) != gradValues || len(refusals) == 1 {
		return first
	}
	// A call without such gradients refuses because of the others', and names none.
	naming := slices.DeleteFunc(refusals, func(refusal *Error) bool { return len(refusal.Tensors) == 0 })
	if len(naming) == 0 {
		return first
	}
	// One call names the gradients that are not finite together.
	joined := *naming[0]
	joined.Tensors = nil
	found := make([]string, len(naming))
	for i, refusal := range naming {
		joined.Tensors = append(joined.Tensors, refusal.Tensors...)
		found[i] = refusal.Found
	}
	slices.Sort(joined.Tensors)
	joined.Tensors = joined.Tensors[:min(len(joined.Tensors), namedTensors)]
	// Where a text was cut for its length, that of one call has to do.
	joined.Found = joinSentences(found)[0]
	joined.Message = fmt.Sprintf("%s: expected %s, found %s", joined.Field, joined.Expected, joined.Found)
	return &joined
}

func firstName(refusal *Error) string {
	if len(refusal.Tensors) == 0 {
		return ""
	}
	return refusal.Tensors[0]
}
