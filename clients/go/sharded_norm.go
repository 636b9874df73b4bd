package stepd

import (
	"context"
	"reflect"
	"slices"
)

// This file computes the norm over all gradients of a step that takes several calls.

// needsNorm returns whether the step clips by a norm that the caller has not passed.
func needsNorm(request StepRequest) bool {
	if request.Clip != nil && request.Clip.TotalNorm != nil {
		return false
	}
	return (request.Clip != nil && request.Clip.MaxNorm != 0) || !isNull(request.Optimizer["max_grad_norm"])
}

// isNull returns whether a value is null on the wire. A nil pointer is null too.
func isNull(value any) bool {
	v := reflect.ValueOf(value)
	for v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	return !v.IsValid()
}

// setNorm sets, in each call, the norm over all gradients and the flag for non-finite gradients. It returns the norm.
func setNorm(request StepRequest, shards []shard, sums map[string]TensorNorms) float64 {
	total := rootOfSquares(sums, func(sums TensorNorms) float64 { return sums.GradSquares })
	hasNonFinite := false
	for _, tensor := range sums {
		hasNonFinite = hasNonFinite || tensor.NonFinite > 0
	}
	for i := range shards {
		part := &shards[i].request
		part.OthersNonFinite = part.OthersNonFinite || hasNonFinite
		if needsNorm(request) {
			clip := Clip{}
			if request.Clip != nil {
				clip = *request.Clip
			}
			clip.TotalNorm = &total
			part.Clip = &clip
		}
	}
	return total
}

// norms returns the sums of squares of all gradients.
func (s *Sharded) norms(ctx context.Context, request StepRequest, shards []shard) (map[string]TensorNorms, error) {
	found := make([]*Norms, len(shards))
	err := s.each(ctx, request, shards, func(ctx context.Context, client *Client, i int) (err error) {
		part := shards[i].request
		request := NormsRequest{Grads: part.Grads, LossScale: part.LossScale, Keep: true}
		all := slices.Clone(shards[i].params)
		for at, param := range all {
			if own, ok := shards[i].cuts[param.Name]; ok {
				all[at] = own.of(param)
			}
		}
		params := byName(all)
		isGrad := byName(part.Grads)
		for name, offset := range part.Slices {
			if _, ok := isGrad[name]; ok {
				if request.Slices == nil {
					request.Slices = map[string]int64{}
				}
				request.Slices[name] = offset
			}
		}
		// The call sends parameters only if a parameter is F64 and its gradient is not, or the reverse: then the dtype of the
		// parameter, but not its values, changes the arithmetic.
		if slices.ContainsFunc(part.Grads, func(grad Tensor) bool { return (grad.DType == F64) != (params[grad.Name].DType == F64) }) {
			request.Params = all
			zero(request.Params)
		}
		if found[i], err = client.norms(ctx, request, 0); err != nil {
			return err
		}
		// The handles of one part belong to one server.
		if kept := found[i].Cached; kept != nil && (shards[i].home == nil || shards[i].home == client) {
			cached := *kept
			if part.Cached != nil {
				cached = *part.Cached
				cached.Grads, cached.sent = kept.Grads, max(cached.sent, kept.sent)
			}
			shards[i].home, shards[i].request.Cached = client, &cached
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return joinNorms(shards, found), nil
}
