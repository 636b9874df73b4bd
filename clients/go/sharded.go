package stepd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const defaultParallel = 4

// Sharded splits a step over several calls, connections and replicas. The result has the same bits as one call. Clipping by
// norm and LAMB's max_grad_norm first take a round of Client.Norms. A failed call goes to another replica. Set the fields
// before the first call. A Sharded is then safe for concurrent use.
type Sharded struct {
	// Clients are interchangeable replicas. The retries of each client count rounds over all replicas.
	Clients []*Client
	// RequestBytes is the approximate size of a call: parameters, gradients and state. A larger tensor goes in slices, or in a call
	// of its own if its optimizer needs whole tensors, as LAMB does. 0 means 2 MiB, and more where round trips are long or the link
	// is fast; 64 MiB for Reduce and with WithSharedDir.
	RequestBytes int64
	// Parallel limits the calls in progress; 0 means 4.
	Parallel int

	replicas replicas
	// partBytes is the size of a part that the last steps suggest; 0 before the first of them.
	partBytes atomic.Int64
	// groups maps each tensor from Share, by its first byte, to the number of its call, from 1.
	mu     sync.Mutex
	groups map[*byte]int
	last   int
}

// NewSharded creates one client per URL, all with the same options. The clients share the files of WithSharedDir.
func NewSharded(urls []string, options ...Option) (*Sharded, error) {
	s := &Sharded{}
	if len(urls) == 0 {
		return nil, errors.New("stepd: NewSharded: expected at least one address, found none")
	}
	for i, url := range urls {
		if i == 1 {
			options = append(slices.Clone(options), func(c *Client) { c.sharedDir, c.shared = nil, s.Clients[0].shared })
		}
		client, err := New(url, options...)
		if err != nil {
			return nil, err
		}
		s.Clients = append(s.Clients, client)
	}
	return s, nil
}

// Close closes all clients.
func (s *Sharded) Close() {
	s.mu.Lock()
	clear(s.groups)
	s.mu.Unlock()
	for _, client := range s.Clients {
		client.Close()
	}
}

// limit returns the size of a call that has no need of the overlap of directions.
func (s *Sharded) limit() int64 {
	if s.RequestBytes > 0 {
		return s.RequestBytes
	}
	return largestPartBytes
}

func (s *Sharded) parallel() int {
	if s.Parallel > 0 {
		return s.Parallel
	}
	return defaultParallel
}

var errNoClients = errors.New("stepd: Sharded has no Clients")

// cachedShard is one replica's cached result of one call.
type cachedShard struct {
	// client is the replica's client.
	client *Client
	// cached is empty if the replica has cached nothing.
	cached Cached
	part
}

// part is the parameters of one call.
type part struct {
	// params have no data.
	params Tensors
	// steps maps each parameter's name to the number of steps taken.
	steps map[string]int64
	// cuts are the ranges of the parameters of which the call has a slice.
	cuts map[string]span
}

// shard is one call of a step.
type shard struct {
	part
	request StepRequest
	// home is the client to try first; nil means any client.
	home *Client
	// maxStep is the largest step count, after this step, among parameters with gradients. Without any, it is 0.
	maxStep int64
}

// Step runs one step as Client.Step does, with the same errors. After an error nothing has changed. Stats sums the tensors'
// norms to global norms, whose last bits may differ from those of one call.
//
// Cached must come from a result of Sharded. The tensors are then split as for that result, and each call goes first to the
// replica that cached its blobs; other replicas receive Params and State. If Params is nil, the new parameters have the order
// of the calls.
func (s *Sharded) Step(ctx context.Context, request StepRequest) (*StepResult, error) {
	if len(s.Clients) == 0 {
		return nil, errNoClients
	}
	if request.Reduce != nil {
		return s.stepByUpdates(ctx, request)
	}
	for _, client := range s.Clients {
		if err := client.check(ctx); err != nil {
			return nil, err
		}
	}
	if err := checkOptimizer(request.Optimizer); err != nil {
		return nil, err
	}
	names, _ := optimizersOf(request)
	for _, name := range names {
		if allTensors[name] {
			return nil, fmt.Errorf("stepd: Optimizer: Sharded sends a step as several calls, but %s needs all tensors in one; a Client sends one", name)
		}
	}
	if err := request.State.check(); err != nil {
		return nil, err
	}
	shards, err := s.split(request)
	if err != nil {
		return nil, err
	}
	// whole is the whole step. Its parameters come from Cached if the caller has none.
	whole := request
	whole.Cached = nil
	if request.Cached != nil {
		whole.Params = paramsOf(shards, request.Params)
	}
	if err := checkInto(whole); err != nil {
		return nil, err
	}
	total := math.NaN()
	// refused is the error of Norms. The step's own error takes precedence, because the server makes some checks of a step before
	// it checks gradients.
	var refused error
	if needsNorm(request) || request.NonFinite == Skip {
		sums, err := s.norms(ctx, whole, shards)
		switch refusal := (*Error)(nil); {
		case err == nil:
			total = setNorm(request, shards, sums)
		case errors.As(err, &refusal) && (refusal.Status == http.StatusBadRequest || refusal.Status == http.StatusUnprocessableEntity):
			refused = err
		default:
			return nil, err
		}
	}
	for i := range shards {
		if shards[i].request.Stats == GlobalStats {
			shards[i].request.Stats = TensorStats
		}
	}
	started := time.Now()
	result, release, err := s.run(ctx, whole, shards)
	if err != nil {
		return nil, err
	}
	defer release()
	if len(shards) > 1 {
		s.observe(stepBytes(request), time.Since(started))
	}
	if refused != nil {
		return nil, refused
	}
	if result.Stats != nil && !math.IsNaN(total) {
		result.Stats.GradNorm = total
	}
	writeInto(request, result)
	return result, nil
}

// paramsOf returns the parameters of all calls, without data, in the given order if there is one.
func paramsOf(shards []shard, order Tensors) (params Tensors) {
	known := map[string]Tensor{}
	for _, part := range shards {
		for _, param := range part.params {
			if _, ok := known[param.Name]; !ok {
				params = append(params, param)
			}
			known[param.Name] = param
		}
	}
	for i, param := range order {
		params[i] = known[param.Name]
	}
	return params
}

// split splits a step into calls.
func (s *Sharded) split(request StepRequest) ([]shard, error) {
	params, grads := byName(request.Params), byName(request.Grads)
	for _, tensors := range []Tensors{request.Params, request.Grads} {
		names := make(map[string]bool, len(tensors))
		for _, tensor := range tensors {
			if err := checkName(tensor.Name, names[tensor.Name]); err != nil {
				return nil, err
			}
			names[tensor.Name] = true
		}
	}
	hasState := request.State != nil && (request.Cached == nil || request.State.Err() == nil)
	entries := map[string][]Tensor{}
	if hasState {
		all, err := request.State.tensors()
		if err != nil {
			return nil, err
		}
		for _, entry := range all {
			entries[parameterOf(entry)] = append(entries[parameterOf(entry)], entry)
		}
	}
	var shards []shard
	if request.Cached == nil {
		shards = s.divide(request, grads, entries)
	} else {
		var err error
		if shards, err = cachedShards(request); err != nil {
			return nil, err
		}
	}
	into := byName(request.Into)
	states := make([][]Tensor, len(shards))
	for i := range shards {
		part := &shards[i]
		cached := part.request.Cached
		part.request = request
		part.request.part = receiptPart{i, len(shards)}
		part.request.Cached, part.request.Grads = cached, Tensors{}
		if request.Params != nil || cached == nil {
			part.request.Params = Tensors{}
		}
		if request.Into != nil {
			part.request.Into = Tensors{}
		}
		if len(part.cuts) > 0 {
			part.request.Slices = map[string]int64{}
		}
		for _, param := range part.params {
			own, isSlice := part.cuts[param.Name]
			share := func(t Tensor) Tensor { return t }
			if isSlice {
				share = own.of
				part.request.Slices[param.Name] = int64(own.begin)
			}
			if given, ok := params[param.Name]; ok {
				part.request.Params = append(part.request.Params, share(given))
			}
			if target, ok := into[param.Name]; ok {
				part.request.Into = append(part.request.Into, share(target))
			}
			if grad, ok := grads[param.Name]; ok {
				part.request.Grads = append(part.request.Grads, share(grad))
				part.maxStep = max(part.maxStep, part.steps[param.Name]+1)
			}
			for _, entry := range entries[param.Name] {
				if isSlice {
					entry = own.ofEntry(entry)
				}
				states[i] = append(states[i], entry)
			}
		}
	}
	for _, part := range shards {
		for _, param := range part.params {
			delete(grads, param.Name)
			delete(entries, param.Name)
		}
	}
	// The first call takes every gradient and state without a parameter, so that the server refuses it.
	for _, name := range slices.Sorted(maps.Keys(grads)) {
		shards[0].request.Grads = append(shards[0].request.Grads, grads[name])
	}
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		states[0] = append(states[0], entries[name]...)
	}
	if hasState {
		for i := range shards {
			state, err := newState(request.State.optimizers, states[i])
			if err != nil {
				return nil, err
			}
			shards[i].request.State = state
		}
	}
	return shards, nil
}

// divide returns at least one call. The calls follow the order of the parameters, or the files of Share.
func (s *Sharded) divide(request StepRequest, grads map[string]Tensor, entries map[string][]Tensor) []shard {
	var shards []shard
	room := int64(0)
	open := map[int]int{}
	groups := s.groupsOf(request.Params)
	isSlicing := slicing(request)
	sizes, total := make([]int64, len(request.Params)), int64(0)
	for at, param := range request.Params {
		sizes[at] = int64(len(param.Data) + len(grads[param.Name].Data))
		if !request.Reply.Cache {
			// Of results that stay on the server, later steps send only the gradients and receive only the parameters.
			for _, entry := range entries[param.Name] {
				sizes[at] += int64(len(entry.Data))
			}
		}
		total += sizes[at]
	}
	limit := s.partLimit(total)
	for at, param := range request.Params {
		own := entries[param.Name]
		g := groups[at]
		isSliced := isSlicing && g == 0 && canSlice(param, grads[param.Name], own)
		param.Data = nil
		for _, piece := range piecesOf(param, sizes[at], limit, isSliced) {
			i, ok := open[g]
			if !ok || (g == 0 && piece.bytes > room) {
				i = len(shards)
				open[g] = i
				shards = append(shards, shard{part: part{steps: map[string]int64{}, cuts: map[string]span{}}})
				if g == 0 {
					room = limit
				}
				if g == 0 && i == 0 && s.RequestBytes <= 0 {
					// The first part is short, so that connections do not send at the same time and then receive at the same time.
					room /= 2
				}
			}
			if g == 0 {
				room -= piece.bytes
			}
			shards[i].add(param, piece.span)
			if request.State != nil {
				shards[i].steps[param.Name] = request.State.steps[param.Name]
			}
		}
	}
	if len(shards) == 0 {
		shards = make([]shard, 1)
	}
	return shards
}

// add adds a parameter, or the next slice of it.
func (p *part) add(param Tensor, own *span) {
	if _, ok := p.steps[param.Name]; !ok {
		p.params = append(p.params, param)
		p.steps[param.Name] = 0
	}
	if own == nil {
		return
	}
	if before, ok := p.cuts[param.Name]; ok {
		own = &span{before.begin, own.end}
	}
	p.cuts[param.Name] = *own
}

// cachedShards returns the calls of the result that Cached belongs to.
func cachedShards(request StepRequest) ([]shard, error) {
	if request.Cached.shards == nil {
		found := "a Client's, which names all tensors together"
		if request.Cached.Params == "" && request.Cached.State == "" {
			found = "an empty one"
		}
		return nil, fmt.Errorf("stepd: Cached: expected that of a result of Sharded, found %s", found)
	}
	var shards []shard
	names := map[string]bool{}
	for _, one := range request.Cached.shards {
		if request.Params == nil && one.cached.Params == "" {
			return nil, fmt.Errorf("%w: Params are nil, and Cached does not name all of them", ErrBadTensor)
		}
		if request.State == nil && one.cached.State == "" {
			return nil, fmt.Errorf("%w: State is nil, and Cached does not name all of it", ErrBadTensor)
		}
		for _, param := range one.params {
			names[param.Name] = true
		}
		shards = append(shards, shard{part: one.part, home: one.client, request: StepRequest{Cached: &one.cached}})
	}
	isOther := func(param Tensor) bool { return !names[param.Name] }
	if request.Params != nil && (len(names) != len(request.Params) || slices.ContainsFunc(request.Params, isOther)) {
		return nil, fmt.Errorf("%w: Params are not those of the result that Cached is of", ErrBadTensor)
	}
	return shards, nil
}

// after returns the part with the step counts that follow a step.
func (p part) after(request StepRequest, skipped bool) part {
	steps := maps.Clone(p.steps)
	for _, grad := range request.Grads {
		if taken, ok := steps[grad.Name]; ok && !skipped {
			steps[grad.Name] = taken + 1
		}
	}
	return part{p.params, steps, p.cuts}
}

// rootOfSquares returns the root of the sum of squares, added in byte order of the names, as the server adds them.
func rootOfSquares[T any](values map[string]T, square func(T) float64) float64 {
	sum := 0.0
	for _, name := range slices.Sorted(maps.Keys(values)) {
		sum += square(values[name])
	}
	return math.Sqrt(sum)
}

// run makes the calls and merges their results. With Into, the new parameters are in scratch memory, valid until release.
func (s *Sharded) run(ctx context.Context, request StepRequest, shards []shard) (*StepResult, func(), error) {
	results := make([]*StepResult, len(shards))
	buffers := make([]*scratch, len(shards))
	release := func() {
		for _, buffer := range buffers {
			buffer.release()
		}
	}
	clients := make([]*Client, len(shards))
	err := s.each(ctx, request, shards, func(ctx context.Context, client *Client, i int) (err error) {
		clients[i] = client
		results[i], buffers[i], err = client.step(ctx, shards[i].request, 0, false)
		return err
	})
	if err != nil {
		release()
		return nil, nil, err
	}
	joined, err := join(request, shards, results)
	if err != nil {
		release()
		return nil, nil, err
	}
	if slices.ContainsFunc(results, func(result *StepResult) bool { return result.Cached != nil }) {
		joined.Cached = &Cached{}
		for i, result := range results {
			one := cachedShard{client: clients[i], part: shards[i].after(request, joined.Skipped)}
			if result.Cached != nil {
				one.cached = *result.Cached
			}
			joined.Cached.shards = append(joined.Cached.shards, one)
		}
	}
	return joined, release, nil
}

func join(request StepRequest, shards []shard, results []*StepResult) (*StepResult, error) {
	joined := &StepResult{Skipped: slices.ContainsFunc(results, func(result *StepResult) bool { return result.Skipped })}
	states := make([]*State, len(results))
	stepped := map[string]Tensor{}
	params, entries := joiner{}, joiner{}
	// The result's learning rate is that of the parameter with the most steps, among parameters with a gradient if there are any.
	most := [2]int64{-1, -1}
	for i, result := range results {
		if result.Skipped != joined.Skipped && len(shards[i].request.Grads) > 0 {
			return nil, badReply("a part of a step was skipped, and another was not")
		}
		if err := shards[i].take(result, params, entries); err != nil {
			return nil, err
		}
		maps.Copy(stepped, byName(result.Params))
		joined.Step = max(joined.Step, result.Step)
		joined.Receipts = append(joined.Receipts, result.Receipts...)
		for _, warning := range result.Warnings {
			// A shard without gradients warns that there are none. The warning is wrong if other shards have gradients.
			if joined.Skipped || (len(shards[i].request.Grads) == 0 && len(request.Grads) > 0) {
				break
			}
			joined.Warnings = append(joined.Warnings, warning)
		}
		states[i] = result.State
		if now := [2]int64{shards[i].maxStep, result.Step}; now[0] > most[0] || (now[0] == 0 && most[0] == 0 && now[1] > most[1]) {
			most = now
			joined.LR = result.LR
		}
	}
	joined.Warnings = joinSentences(joined.Warnings)
	maps.Copy(stepped, params)
	if first := states[0]; len(entries) > 0 {
		states = append(states, &State{optimizers: first.optimizers, entries: slices.Collect(maps.Values(entries))})
	}
	if request.Reply.Params != ReplyNone {
		for _, param := range request.Params {
			tensor, ok := stepped[param.Name]
			if !ok {
				return nil, badReply("no %q in params", param.Name)
			}
			joined.Params = append(joined.Params, tensor)
		}
	}
	var err error
	if request.Reply.State == ReplyNone {
		joined.State = &State{onServer: true}
	} else if joined.State, err = joinStates(states); err != nil {
		return nil, err
	}
	if !joined.Skipped && (request.Stats == GlobalStats || request.Stats == TensorStats) {
		joined.Stats = joinStats(results)
		if request.Stats == GlobalStats {
			joined.Stats.Tensors = nil
		}
	}
	return joined, nil
}

func joinStats(results []*StepResult) *Stats {
	joined := &Stats{Tensors: map[string]TensorStat{}}
	for _, result := range results {
		if stats := result.Stats; stats != nil {
			joined.Clipped = joined.Clipped || stats.Clipped
			maps.Copy(joined.Tensors, stats.Tensors)
		}
	}
	for _, stat := range joined.Tensors {
		joined.Zeros += stat.Zeros
		joined.NonFinite += stat.NonFinite
	}
	joined.GradNorm = rootOfSquares(joined.Tensors, func(stat TensorStat) float64 { return stat.GradNorm * stat.GradNorm })
	joined.ParamNorm = rootOfSquares(joined.Tensors, func(stat TensorStat) float64 { return stat.ParamNorm * stat.ParamNorm })
	joined.UpdateNorm = rootOfSquares(joined.Tensors, func(stat TensorStat) float64 { return stat.UpdateNorm * stat.UpdateNorm })
	return joined
}

// each runs the calls of a step, several at once. The first failure cancels the other calls. After an error about a tensor the
// other calls continue, because a single call might report one of their errors instead.
func (s *Sharded) each(caller context.Context, request StepRequest, shards []shard, call func(ctx context.Context, client *Client, i int) error) error {
	ctx, cancel := context.WithCancelCause(caller)
	defer cancel(nil)
	indexes := make(chan int)
	refusals := make([]*Error, len(shards))
	var workers sync.WaitGroup
	for range min(s.parallel(), len(shards)) {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for i := range indexes {
				err := s.replicas.tryReplicas(ctx, s.Clients, shards[i].home, func(client *Client) error { return call(ctx, client, i) })
				if errors.As(err, &refusals[i]) && stageOf(refusals[i]) > wholeCall {
					continue
				}
				if err != nil {
					cancel(err)
				}
			}
		}()
	}
	for i := range shards {
		indexes <- i
	}
	close(indexes)
	workers.Wait()
	// The first failure is the cause. Later failures only follow from the cancellation.
	failure := context.Cause(ctx)
	if caller.Err() != nil && errors.Is(failure, context.Cause(caller)) {
		return contextErrorOr(caller, nil)
	}
	if failure != nil {
		return failure
	}
	return joinRefusals(request, slices.DeleteFunc(refusals, func(refusal *Error) bool { return refusal == nil }))
}
