package stepd

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Update is one update of a reduction.
type Update struct {
	// Tensors are F32, F64, BF16, F16 or I8. An I8 tensor w needs an F32 tensor w.scale, which multiplies its values: a scalar, or
	// one number for each index of the first dimension.
	Tensors Tensors
	// Weight is the weight of this update if the reduction's method is the mean, for instance a number of examples. The
	// other reduction methods accept only the weights 0 and 1.
	Weight float64
}

// Form is the kind of values in the updates of a reduction.
type Form string

const (
	// FormParams are new parameters, the default. The result is Params minus the mean.
	FormParams Form = "params"
	// FormDeltas are differences: new minus old parameters. The result is the negated mean.
	FormDeltas Form = "deltas"
	// FormGradients are gradients. The result is the mean.
	FormGradients Form = "gradients"
)

// ReduceMethod selects how the server combines updates. The zero value is Mean.
type ReduceMethod struct {
	Name string
	// Divisor replaces the sum of the weights in a mean; 0 means the sum.
	Divisor float64
	// Cut is the number of values that a trimmed mean leaves out at each end.
	Cut int
}

// Mean, Median and TrimmedMean are the names of the methods.
const (
	Mean        = "mean"
	Median      = "median"
	TrimmedMean = "trimmed_mean"
)

// ReduceRequest requests one pseudo-gradient of several updates.
type ReduceRequest struct {
	// Params are the parameters that the updates started from. FormParams needs them.
	Params Tensors
	// Updates are combined in this order. The same order gives the same bits.
	Updates []Update
	Form    Form
	Method  ReduceMethod
	// Accumulator is the accumulator of an earlier call, if a mean takes several calls.
	Accumulator []byte
	// Unfinished requests an accumulator instead of the pseudo-gradient.
	Unfinished bool
	// DropNonFinite leaves out updates with NaN or infinity. PropagateNonFinite computes with them. Without either, the server
	// refuses them.
	DropNonFinite, PropagateNonFinite bool
	// Renormalize combines each tensor over the updates that have it. Otherwise the server refuses updates that lack a tensor.
	Renormalize bool
}

// Reduced is the result of a reduction.
type Reduced struct {
	// Grads are the pseudo-gradient: F64 for parameters in F64, otherwise F32. They are empty if Skipped, nil if Unfinished.
	Grads Tensors
	// Accumulator holds the sums if the request was Unfinished.
	Accumulator []byte
	// Count is the number of updates in the result, including those in the accumulator. Weight is the sum of their weights.
	Count  int64
	Weight float64
	// Dropped are the indexes of the updates that DropNonFinite left out.
	Dropped []int
	// Skipped is true if there is nothing to step: no update, or only weights of 0.
	Skipped bool
}

// wireUpdate is an update in the form of the request body.
type wireUpdate struct {
	tensors blob
	weight  float64
}

// Reduce combines updates of several workers into one pseudo-gradient, for Step.
func (c *Client) Reduce(ctx context.Context, request ReduceRequest) (*Reduced, error) {
	return c.reduce(ctx, request, c.retries)
}

func (c *Client) reduce(ctx context.Context, request ReduceRequest, retries int) (*Reduced, error) {
	fields, err := request.reduction()
	if err != nil {
		return nil, err
	}
	if request.Params != nil {
		params, err := fileParts(nil, request.Params)
		if err != nil {
			return nil, err
		}
		fields = append(fields, field{"params", params})
	}
	if request.Unfinished {
		fields = append(fields, field{"finish", false})
	}
	p, err := c.pack(ctx, fields, results{})
	if err != nil {
		return nil, err
	}
	defer p.release()
	reply, err := c.exchange(ctx, "/v1/reduce", p, nil, retries)
	if err != nil {
		return nil, err
	}
	return reply.reduced(request)
}

// reduction returns the fields of a reduction without its parameters, as in a step.
func (r ReduceRequest) reduction() ([]field, error) {
	isMean := r.Method.Name == "" || r.Method.Name == Mean
	updates := make([]wireUpdate, len(r.Updates))
	for i, update := range r.Updates {
		file, err := fileParts(nil, update.Tensors)
		if err != nil {
			return nil, fmt.Errorf("Updates[%d]: %w", i, err)
		}
		updates[i] = wireUpdate{file, update.Weight}
		if !isMean && update.Weight == 0 {
			updates[i].weight = 1
		}
	}
	fields := []field{{"updates", updates}}
	if r.Form != "" {
		fields = append(fields, field{"form", string(r.Form)})
	}
	if r.Method != (ReduceMethod{}) {
		method := map[string]any{"name": r.Method.Name}
		if r.Method.Name == "" {
			method["name"] = Mean
		}
		if r.Method.Divisor != 0 {
			method["divisor"] = r.Method.Divisor
		}
		if r.Method.Name == TrimmedMean || r.Method.Cut != 0 {
			method["cut"] = r.Method.Cut
		}
		fields = append(fields, field{"method", method})
	}
	if r.Accumulator != nil {
		fields = append(fields, field{"accumulator", blob{parts: [][]byte{r.Accumulator}, size: int64(len(r.Accumulator))}})
	}
	switch {
	case r.DropNonFinite:
		fields = append(fields, field{"non_finite", "drop"})
	case r.PropagateNonFinite:
		fields = append(fields, field{"non_finite", "propagate"})
	}
	if r.Renormalize {
		fields = append(fields, field{"missing", "renormalize"})
	}
	return fields, nil
}

// stepReduction returns the fields of a step's reduction.
func (r StepRequest) stepReduction() ([]field, error) {
	if r.Grads != nil || r.Reduce.Params != nil || r.Reduce.Unfinished {
		return nil, fmt.Errorf("%w: Reduce makes the gradients of a step: expected no Grads, no Reduce.Params and no Reduce.Unfinished", ErrBadTensor)
	}
	return r.Reduce.reduction()
}

// stepByUpdates reduces the updates over several calls, then steps by the pseudo-gradient.
func (s *Sharded) stepByUpdates(ctx context.Context, request StepRequest) (*StepResult, error) {
	if _, err := request.stepReduction(); err != nil {
		return nil, err
	}
	reduction := *request.Reduce
	reduction.Params = request.Params
	reduced, err := s.Reduce(ctx, reduction)
	if err != nil {
		return nil, err
	}
	request.Reduce, request.Grads = nil, reduced.Grads
	result, err := s.Step(ctx, request)
	if err != nil {
		return nil, err
	}
	result.Reduced = &Reduced{Count: reduced.Count, Weight: reduced.Weight, Dropped: reduced.Dropped, Skipped: reduced.Skipped}
	if reduced.Skipped {
		result.Skipped, result.Warnings = true, nil
	}
	return result, nil
}

func (r stepReply) reduced(request ReduceRequest) (*Reduced, error) {
	member := "grads"
	if request.Unfinished {
		member = "accumulator"
	}
	for _, name := range []string{"count", "weight", "dropped", "skipped", member} {
		if !r.members[name] {
			return nil, badReply("no %s", name)
		}
	}
	reduced := &Reduced{Accumulator: r.accumulator, Count: r.count, Weight: r.weight, Dropped: r.dropped, Skipped: r.skipped}
	if request.Unfinished {
		return reduced, nil
	}
	_, grads, err := readTensors(r.grads)
	if err != nil {
		return nil, fmt.Errorf("%w: grads: %w", ErrBadReply, err)
	}
	reduced.Grads = orderedAs(grads, request.Params)
	return reduced, nil
}

// orderedAs returns tensors in the order of params. Without params it returns them in file order.
func orderedAs(tensors []Tensor, params Tensors) Tensors {
	if params == nil {
		return canonical(tensors)
	}
	known := byName(tensors)
	ordered := make(Tensors, 0, len(tensors))
	for _, param := range params {
		if tensor, ok := known[param.Name]; ok {
			ordered = append(ordered, tensor)
		}
	}
	return ordered
}

// Reduce does the same as Client.Reduce, with the tensors split over several calls. If one call drops an update, the calls that
// kept the update run again without it.
func (s *Sharded) Reduce(ctx context.Context, request ReduceRequest) (*Reduced, error) {
	if len(s.Clients) == 0 {
		return nil, errNoClients
	}
	parts, err := s.splitUpdates(request)
	if err != nil {
		return nil, err
	}
	results := make([]*Reduced, len(parts))
	run := func(indexes []int, dropped []int) error {
		return s.each(ctx, StepRequest{}, make([]shard, len(indexes)), func(ctx context.Context, client *Client, i int) (err error) {
			part := parts[indexes[i]]
			part.Updates = withoutIndexes(part.Updates, dropped)
			results[indexes[i]], err = client.reduce(ctx, part, 0)
			return err
		})
	}
	all := make([]int, len(parts))
	for i := range all {
		all[i] = i
	}
	if err := run(all, nil); err != nil {
		return nil, err
	}
	var dropped []int
	for _, result := range results {
		dropped = append(dropped, result.Dropped...)
	}
	slices.Sort(dropped)
	dropped = slices.Compact(dropped)
	again := slices.DeleteFunc(all, func(i int) bool { return slices.Equal(results[i].Dropped, dropped) })
	if err := run(again, dropped); err != nil {
		return nil, err
	}
	return joinReduced(request, results, dropped)
}

func withoutIndexes(updates []Update, left []int) []Update {
	var kept []Update
	for i, update := range updates {
		if !slices.Contains(left, i) {
			kept = append(kept, update)
		}
	}
	return kept
}

const scaleSuffix = ".scale"

// parameterOfUpdate returns the parameter that a tensor of an update belongs to. Scales belong to the parameter of their I8
// tensor.
func parameterOfUpdate(name string, tensors map[string]Tensor) string {
	if stem, ok := strings.CutSuffix(name, scaleSuffix); ok && tensors[stem].DType == I8 {
		return stem
	}
	return name
}

// splitUpdates splits a reduction by tensors into one or more calls.
func (s *Sharded) splitUpdates(request ReduceRequest) ([]ReduceRequest, error) {
	var metadata map[string]string
	var sums []Tensor
	if request.Accumulator != nil {
		var err error
		if metadata, sums, err = readTensors(request.Accumulator); err != nil {
			return nil, fmt.Errorf("Accumulator: %w", err)
		}
	}
	var names []string
	sizes := map[string]int64{}
	add := func(name string, bytes int) {
		if _, ok := sizes[name]; !ok {
			names = append(names, name)
		}
		sizes[name] += int64(bytes)
	}
	for _, param := range request.Params {
		add(param.Name, len(param.Data))
	}
	for _, sum := range sums {
		add(parameterOf(sum), len(sum.Data))
	}
	for _, update := range request.Updates {
		known := byName(update.Tensors)
		for _, tensor := range update.Tensors {
			add(parameterOfUpdate(tensor.Name, known), len(tensor.Data))
		}
	}
	callOf := map[string]int{}
	calls, room := 0, s.limit()
	for i, name := range names {
		if i > 0 && sizes[name] > room {
			calls, room = calls+1, s.limit()
		}
		callOf[name] = calls
		room -= sizes[name]
	}
	parts := make([]ReduceRequest, calls+1)
	accumulators := make([][]Tensor, len(parts))
	for i := range parts {
		parts[i] = request
		parts[i].Updates = make([]Update, len(request.Updates))
		if request.Params != nil {
			parts[i].Params = Tensors{}
		}
	}
	for _, param := range request.Params {
		part := &parts[callOf[param.Name]]
		part.Params = append(part.Params, param)
	}
	for at, update := range request.Updates {
		known := byName(update.Tensors)
		for i := range parts {
			parts[i].Updates[at].Weight = update.Weight
		}
		for _, tensor := range update.Tensors {
			own := &parts[callOf[parameterOfUpdate(tensor.Name, known)]].Updates[at]
			own.Tensors = append(own.Tensors, tensor)
		}
	}
	for _, sum := range sums {
		i := callOf[parameterOf(sum)]
		accumulators[i] = append(accumulators[i], sum)
	}
	if request.Accumulator != nil {
		for i := range parts {
			own := maps.Clone(metadata)
			maps.DeleteFunc(own, func(key, _ string) bool {
				name, isDType := strings.CutPrefix(key, "dtype/")
				return isDType && callOf[name] != i
			})
			file, err := accumulatorFile(own, accumulators[i])
			if err != nil {
				return nil, err
			}
			parts[i].Accumulator = file
		}
	}
	return parts, nil
}

// accumulatorFile returns an accumulator as one slice.
func accumulatorFile(metadata map[string]string, entries []Tensor) ([]byte, error) {
	file, err := fileParts(metadata, entries)
	if err != nil {
		return nil, err
	}
	return slices.Concat(file.parts...), nil
}

// joinReduced joins the results of all calls.
func joinReduced(request ReduceRequest, results []*Reduced, dropped []int) (*Reduced, error) {
	joined := &Reduced{Dropped: dropped, Skipped: true}
	metadata := map[string]string{}
	var grads, sums []Tensor
	for _, result := range results {
		joined.Count = max(joined.Count, result.Count)
		joined.Weight = max(joined.Weight, result.Weight)
		joined.Skipped = joined.Skipped && result.Skipped
		grads = append(grads, result.Grads...)
		if result.Accumulator == nil {
			continue
		}
		own, entries, err := readTensors(result.Accumulator)
		if err != nil {
			return nil, fmt.Errorf("%w: accumulator: %w", ErrBadReply, err)
		}
		maps.Copy(metadata, own)
		sums = append(sums, entries...)
	}
	if request.Unfinished {
		var err error
		joined.Accumulator, err = accumulatorFile(metadata, sums)
		return joined, err
	}
	joined.Grads = orderedAs(grads, request.Params)
	return joined, nil
}
