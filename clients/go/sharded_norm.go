package stepd

import (
	"context"
	"encoding/binary"
	"maps"
	"math"
	"reflect"
	"slices"
)

// What a call of a step has to know of the gradients of the others: their norm, and whether all of them are finite. A call that
// is to skip, or to multiply by what is no number, is given a gradient that makes it do so.

// needsNorm tells whether the step depends on the norm over all gradients, and does not have it.
func needsNorm(request StepRequest) bool {
	if request.Clip != nil && request.Clip.TotalNorm != nil {
		return false
	}
	return (request.Clip != nil && request.Clip.MaxNorm != 0) || !isNull(request.Optimizer["max_grad_norm"])
}

// isNull tells whether a value is null on the wire, which a pointer to nothing is too.
func isNull(value any) bool {
	v := reflect.ValueOf(value)
	for v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	return !v.IsValid()
}

// share lets each call know of the other calls' gradients what decides its own step, and returns the norm over all. The error
// is for gradients that the step has to refuse, but took.
func share(request StepRequest, shards []shard, sums map[string]TensorNorms) (float64, error) {
	total := rootOfSum(sums, func(sums TensorNorms) float64 { return sums.GradSquares })
	broken := func(grad Tensor) bool { return sums[grad.Name].NonFinite > 0 }
	isBroken := slices.ContainsFunc(request.Grads, broken)
	clip := Clip{}
	if request.Clip != nil {
		clip = *request.Clip
	}
	maxGradNorm := request.Optimizer["max_grad_norm"]
	var refused error
	for i := range shards {
		part := &shards[i]
		switch {
		case isBroken && request.NonFinite == Skip:
			part.spoil(sums, broken)
		case isBroken && request.NonFinite != Propagate:
			refused = badReply("a step with gradients that are not finite")
			// The calls that have the gradients name them. The others tell whether something is wrong that comes before that.
			if !slices.ContainsFunc(part.request.Grads, broken) {
				part.request.NonFinite = Skip
				part.spoil(sums, broken)
			}
		case !needsNorm(request):
		case math.IsNaN(total) || (math.IsInf(total, 0) && clip.MaxNorm != 0 && !isNull(maxGradNorm)):
			// What all gradients are multiplied by is no number.
			part.request.NonFinite = Propagate
			part.spoil(sums, func(grad Tensor) bool { return math.IsNaN(sums[grad.Name].GradSquares) })
		case math.IsInf(total, 0):
			// Infinity cannot be sent. This comes to 0 as well.
			largest := math.MaxFloat64
			own := Clip{MaxNorm: clip.MaxNorm, MaxValue: clip.MaxValue, TotalNorm: &largest}
			if clip.MaxNorm != 0 {
				own.MaxNorm = min(clip.MaxNorm, math.SmallestNonzeroFloat64)
			} else if isPositive(maxGradNorm) {
				part.request.Optimizer = request.Optimizer.With("max_grad_norm", math.SmallestNonzeroFloat64)
			}
			part.request.Clip = &own
		default:
			part.request.Clip = &Clip{MaxNorm: clip.MaxNorm, MaxValue: clip.MaxValue, TotalNorm: &total}
		}
	}
	return total, refused
}

// isPositive tells whether a value is a number over 0, or points to one.
func isPositive(value any) bool {
	v := reflect.ValueOf(value)
	for v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	return (v.CanFloat() && v.Float() > 0) || (v.CanInt() && v.Int() > 0) || (v.CanUint() && v.Uint() > 0)
}

// nanBits are the first 16 bits of NaN as processors make it, with its sign.
var nanBits = map[DType]uint16{F64: 0xfff8, F32: 0xffc0, BF16: 0xffc0, F16: 0xfe00}

// spoil gives the call a gradient with a value that is none, unless it has one of that kind: so it skips, or multiplies all
// gradients by that. Gradients without values cannot be spoiled: a call that is to skip does without them, unless they are wrong.
func (s *shard) spoil(sums map[string]TensorNorms, is func(grad Tensor) bool) {
	grads := s.request.Grads
	if slices.ContainsFunc(grads, is) {
		return
	}
	i := slices.IndexFunc(grads, func(grad Tensor) bool { return len(grad.Data) > 0 })
	if i < 0 {
		params := byName(s.params)
		if s.request.NonFinite == Skip && !slices.ContainsFunc(grads, func(grad Tensor) bool { return !slices.Equal(params[grad.Name].Shape, grad.Shape) }) {
			s.request.Grads = Tensors{}
		}
		return
	}
	size, _ := dtypeOf(grads[i].DType)
	data := append(alignedBytes(0), grads[i].Data...)
	clear(data[:size])
	binary.LittleEndian.PutUint16(data[size-2:], nanBits[grads[i].DType])
	s.request.Grads = slices.Clone(grads)
	s.request.Grads[i].Data = data
	s.spoiled.name, s.spoiled.sums = grads[i].Name, sums[grads[i].Name]
}

// mend gives the statistics of a gradient that was spoiled those of the caller's.
func (s *shard) mend(stats *Stats) {
	if stats == nil {
		return
	}
	if stat, ok := stats.Tensors[s.spoiled.name]; ok && s.spoiled.name != "" {
		stat.GradNorm, stat.Zeros, stat.NonFinite = math.Sqrt(s.spoiled.sums.GradSquares), s.spoiled.sums.Zeros, s.spoiled.sums.NonFinite
		stats.Tensors[s.spoiled.name] = stat
	}
}

// norms returns the sums of all gradients.
func (s *Sharded) norms(ctx context.Context, request StepRequest, shards []shard) (map[string]TensorNorms, error) {
	found := make([]*Norms, len(shards))
	err := s.each(ctx, request, shards, func(ctx context.Context, client *Client, i int) (err error) {
		part := shards[i].request
		request := NormsRequest{Grads: part.Grads, LossScale: part.LossScale}
		params := byName(shards[i].params)
		// The arithmetic is that of the parameter, which the server has to know only where it is another. Its values do not matter.
		if slices.ContainsFunc(part.Grads, func(grad Tensor) bool { return (grad.DType == F64) != (params[grad.Name].DType == F64) }) {
			request.Params = slices.Clone(shards[i].params)
			zero(request.Params)
		}
		found[i], err = client.norms(ctx, request, 0)
		return err
	})
	all := map[string]TensorNorms{}
	if err != nil {
		return nil, err
	}
	for _, norms := range found {
		maps.Copy(all, norms.Tensors)
	}
	return all, nil
}
