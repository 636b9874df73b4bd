package stepd

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// This file merges the errors of several calls into the one error that a single call with all tensors would return.

// These constants name the server's checks of a step, in the server's order.
const (
	// wholeCall is any check that does not depend on tensors. Every call of a step fails such a check alike.
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
	// This is the only setting that the server checks after the tensors.
	if refusal.Field == "/clip/total_norm" {
		return totalNorm
	}
	return wholeCall
}

// namedTensors is the largest number of tensors that an error names.
const namedTensors = 8

// joinRefusals merges the errors of several calls. It returns nil if there are none.
func joinRefusals(request StepRequest, refusals []*Error) error {
	if len(refusals) == 0 {
		return nil
	}
	// The server checks params and grads in file order, and a state in the order of its parameters' names.
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
	// A call whose own gradients are finite is refused because of OthersNonFinite. Its error names no tensors.
	naming := slices.DeleteFunc(refusals, func(refusal *Error) bool { return len(refusal.Tensors) == 0 })
	if len(naming) == 0 {
		return first
	}
	// A single call would name all non-finite gradients together.
	joined := *naming[0]
	joined.Tensors = nil
	found := make([]string, len(naming))
	for i, refusal := range naming {
		joined.Tensors = append(joined.Tensors, refusal.Tensors...)
		found[i] = refusal.Found
	}
	slices.Sort(joined.Tensors)
	joined.Tensors = slices.Compact(joined.Tensors)
	joined.Tensors = joined.Tensors[:min(len(joined.Tensors), namedTensors)]
	// The server truncates a long text in each call, so some texts do not merge. The error then has the first text.
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
