package stepd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"time"
)

const (
	defaultRequestBytes = 64 << 20
	defaultParallel     = 4
	// coolDown is how long a replica that failed is passed over while others answer.
	coolDown = time.Second
)

// Sharded makes steps over several calls, connections and replicas at once. The new parameters and the new state are those of
// one call bit for bit, also with clipping by norm over all gradients and LAMB's max_grad_norm: those take a round of
// Client.Norms first. A call that fails goes to another replica. Set the fields before the first call; then it may be used by
// several goroutines at once.
type Sharded struct {
	// Clients are of replicas, of which any serves any call. Retries of each are the rounds over all of them.
	Clients []*Client
	// RequestBytes is about how much goes into a call, counting parameters, gradients and state; a larger tensor goes alone.
	// 0 is 64 MiB.
	RequestBytes int64
	// Parallel is how many calls are under way at once; 0 is 4.
	Parallel int

	mu   sync.Mutex
	next int
	sick map[*Client]time.Time
}

// NewSharded makes clients of replicas with the same options.
func NewSharded(urls []string, options ...Option) (*Sharded, error) {
	s := &Sharded{}
	for _, url := range urls {
		client, err := New(url, options...)
		if err != nil {
			return nil, err
		}
		s.Clients = append(s.Clients, client)
	}
	return s, nil
}

// shard is the part of a step that one call makes.
type shard struct {
	request StepRequest
	// last is the largest count of steps, with this one, of the parameters that have gradients; 0 where none has.
	last int64
}

// Step makes one update as Client.Step does, with the same errors; on any of them nothing was changed. Global norms in Stats
// are added up from those of the tensors, so that their last bits may differ from one call's. A norm over all gradients that
// is no finite number cannot travel: with Propagate such a step goes as one call.
func (s *Sharded) Step(ctx context.Context, request StepRequest) (*StepResult, error) {
	if len(s.Clients) == 0 {
		return nil, errors.New("stepd: Sharded has no Clients")
	}
	if err := checkInto(request); err != nil {
		return nil, err
	}
	shards, err := s.pack(request)
	if err != nil {
		return nil, err
	}
	hasNorm := (request.Clip != nil && request.Clip.MaxNorm != 0) || request.Optimizer["max_grad_norm"] != nil
	hasNorm = hasNorm && (request.Clip == nil || request.Clip.TotalNorm == nil)
	total := math.NaN()
	if hasNorm || request.NonFinite == Skip {
		sums, err := s.norms(ctx, shards)
		if err != nil {
			return nil, err
		}
		broken := func(grad Tensor) bool { return sums[grad.Name].NonFinite > 0 }
		if slices.ContainsFunc(request.Grads, broken) {
			if request.NonFinite == Skip {
				return s.skip(ctx, request, shards)
			}
			if request.NonFinite != Propagate {
				return nil, s.refusal(ctx, request, broken)
			}
		}
		total = rootOfSum(sums, func(sums TensorNorms) float64 { return sums.GradSquares })
		if hasNorm && (math.IsNaN(total) || math.IsInf(total, 0)) {
			return s.whole(ctx, request)
		}
	}
	for i := range shards {
		part := &shards[i].request
		if hasNorm {
			clip := Clip{}
			if request.Clip != nil {
				clip = *request.Clip
			}
			clip.TotalNorm = &total
			part.Clip = &clip
		}
		if part.Stats == GlobalStats {
			part.Stats = TensorStats
		}
	}
	result, release, err := s.run(ctx, request, shards)
	if err != nil {
		return nil, err
	}
	if result.Stats != nil && !math.IsNaN(total) {
		result.Stats.GradNorm = total
	}
	writeInto(request, result)
	release()
	return result, nil
}

// pack divides a step by parameters, in their order.
func (s *Sharded) pack(request StepRequest) ([]shard, error) {
	grads := byName(request.Grads)
	entries := map[string][]Tensor{}
	if request.State != nil {
		for _, entry := range request.State.entries {
			entries[parameterOf(entry)] = append(entries[parameterOf(entry)], entry)
		}
	}
	limit := s.RequestBytes
	if limit <= 0 {
		limit = defaultRequestBytes
	}
	if len(byName(request.Params)) != len(request.Params) || len(grads) != len(request.Grads) {
		return nil, fmt.Errorf("%w: a name stands twice", ErrBadTensor)
	}

	var shards []shard
	var states [][]Tensor
	room := int64(-1)
	open := func() {
		part := request
		part.Params, part.Grads, part.State = Tensors{}, Tensors{}, nil
		shards = append(shards, shard{request: part})
		states = append(states, nil)
		room = limit
	}
	open()
	for _, param := range request.Params {
		grad, hasGrad := grads[param.Name]
		bytes := int64(len(param.Data) + len(grad.Data))
		for _, entry := range entries[param.Name] {
			bytes += int64(len(entry.Data))
		}
		now := len(shards) - 1
		if bytes > room && len(shards[now].request.Params) > 0 {
			open()
			now++
		}
		room -= bytes
		part := &shards[now]
		part.request.Params = append(part.request.Params, param)
		states[now] = append(states[now], entries[param.Name]...)
		if hasGrad {
			part.request.Grads = append(part.request.Grads, grad)
			taken := int64(0)
			if request.State != nil {
				taken = request.State.steps[param.Name]
			}
			part.last = max(part.last, taken+1)
		}
		delete(grads, param.Name)
		delete(entries, param.Name)
	}
	// What belongs to no parameter is an error, which the server words.
	for _, name := range slices.Sorted(maps.Keys(grads)) {
		shards[0].request.Grads = append(shards[0].request.Grads, grads[name])
	}
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		states[0] = append(states[0], entries[name]...)
	}
	if request.State != nil {
		for i := range shards {
			state, err := newState(request.State.optimizer, request.State.revision, states[i])
			if err != nil {
				return nil, err
			}
			shards[i].request.State = state
		}
	}
	return shards, nil
}

// norms returns the sums of all gradients.
func (s *Sharded) norms(ctx context.Context, shards []shard) (map[string]TensorNorms, error) {
	found := make([]*Norms, len(shards))
	err := s.each(ctx, len(shards), func(ctx context.Context, client *Client, i int) (err error) {
		part := shards[i].request
		request := NormsRequest{Grads: part.Grads, LossScale: part.LossScale}
		params := byName(part.Params)
		// The arithmetic is that of the parameter, which the server has to know only where it is another.
		if slices.ContainsFunc(part.Grads, func(grad Tensor) bool { return (grad.DType == F64) != (params[grad.Name].DType == F64) }) {
			request.Params = part.Params
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

// rootOfSum adds in the order of the names' bytes, in which the server adds too.
func rootOfSum[T any](values map[string]T, square func(T) float64) float64 {
	sum := 0.0
	for _, name := range slices.Sorted(maps.Keys(values)) {
		sum += square(values[name])
	}
	return math.Sqrt(sum)
}

// run makes the calls and joins what they give. The new parameters with Into are scratch memory until release.
func (s *Sharded) run(ctx context.Context, request StepRequest, shards []shard) (*StepResult, func(), error) {
	results := make([]*StepResult, len(shards))
	buffers := make([]*scratch, len(shards))
	release := func() {
		for _, buffer := range buffers {
			buffer.release()
		}
	}
	err := s.each(ctx, len(shards), func(ctx context.Context, client *Client, i int) (err error) {
		results[i], buffers[i], err = client.step(ctx, shards[i].request, 0)
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
	return joined, release, nil
}

func join(request StepRequest, shards []shard, results []*StepResult) (*StepResult, error) {
	joined := &StepResult{}
	states := make([]*State, len(results))
	// One call says the rate of its furthest parameter that has a gradient, or of its state where none has.
	furthest := [2]int64{-1, -1}
	for i, result := range results {
		joined.Params = append(joined.Params, result.Params...)
		joined.Step = max(joined.Step, result.Step)
		joined.Warnings = append(joined.Warnings, result.Warnings...)
		states[i] = result.State
		if now := [2]int64{shards[i].last, result.Step}; now[0] > furthest[0] || (now[0] == 0 && furthest[0] == 0 && now[1] > furthest[1]) {
			furthest = now
			joined.LR = result.LR
		}
	}
	var err error
	if joined.State, err = joinStates(states); err != nil {
		return nil, err
	}
	if request.Stats == GlobalStats || request.Stats == TensorStats {
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
			joined.Zeros += stats.Zeros
			joined.NonFinite += stats.NonFinite
			joined.Clipped = joined.Clipped || stats.Clipped
			maps.Copy(joined.Tensors, stats.Tensors)
		}
	}
	joined.GradNorm = rootOfSum(joined.Tensors, func(stat TensorStat) float64 { return stat.GradNorm * stat.GradNorm })
	joined.ParamNorm = rootOfSum(joined.Tensors, func(stat TensorStat) float64 { return stat.ParamNorm * stat.ParamNorm })
	joined.UpdateNorm = rootOfSum(joined.Tensors, func(stat TensorStat) float64 { return stat.UpdateNorm * stat.UpdateNorm })
	return joined
}

// whole makes the step as one call.
func (s *Sharded) whole(ctx context.Context, request StepRequest) (*StepResult, error) {
	var result *StepResult
	var buffer *scratch
	err := s.anywhere(ctx, func(client *Client) (err error) {
		result, buffer, err = client.step(ctx, request, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	writeInto(request, result)
	buffer.release()
	return result, nil
}

// refusal returns the server's error for gradients that are not finite.
func (s *Sharded) refusal(ctx context.Context, request StepRequest, broken func(Tensor) bool) error {
	fine := func(t Tensor) bool { return !broken(t) }
	_, err := s.whole(ctx, StepRequest{
		Optimizer: request.Optimizer, Groups: request.Groups, LossScale: request.LossScale, MasterWeights: request.MasterWeights,
		Params: slices.DeleteFunc(slices.Clone(request.Params), fine),
		Grads:  slices.DeleteFunc(slices.Clone(request.Grads), fine),
	})
	if err == nil {
		err = badReply("gradients that were not finite became so")
	}
	return err
}

// skip returns everything as it was, as one call does with Skip.
func (s *Sharded) skip(ctx context.Context, request StepRequest, shards []shard) (*StepResult, error) {
	last := int64(0)
	for i := range shards {
		last = max(last, shards[i].last)
		part := &shards[i].request
		// Without gradients nothing is stepped, and the state comes back in the optimizer's own form.
		part.Grads, part.Clip, part.Stats = Tensors{}, nil, NoStats
	}
	request.Stats = NoStats
	result, release, err := s.run(ctx, request, shards)
	if err != nil {
		return nil, err
	}
	result.Skipped = true
	if request.Schedule != nil {
		// The rate belongs to the step that was not made, which a step of one value that is skipped too tells.
		probe := StepRequest{Optimizer: request.Optimizer, Schedule: request.Schedule, NonFinite: Skip,
			Params: Tensors{From("x", []float32{0})}, Grads: Tensors{From("x", []float32{float32(math.NaN())})}}
		if last > 1 {
			if probe.State, err = newState(request.State.optimizer, request.State.revision, []Tensor{stepEntry("x", last-1)}); err != nil {
				return nil, err
			}
		}
		probed, err := s.whole(ctx, probe)
		if err != nil {
			return nil, err
		}
		result.LR = probed.LR
	}
	writeInto(request, result)
	release()
	return result, nil
}

// each makes calls, some at once. The first failure ends the others.
func (s *Sharded) each(caller context.Context, count int, call func(ctx context.Context, client *Client, i int) error) error {
	ctx, cancel := context.WithCancelCause(caller)
	defer cancel(nil)
	parallel := s.Parallel
	if parallel <= 0 {
		parallel = defaultParallel
	}
	indexes := make(chan int)
	var workers sync.WaitGroup
	for range min(parallel, count) {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for i := range indexes {
				if err := s.anywhere(ctx, func(client *Client) error { return call(ctx, client, i) }); err != nil {
					cancel(err)
				}
			}
		}()
	}
	for i := range count {
		indexes <- i
	}
	close(indexes)
	workers.Wait()
	// The first failure is the cause; those after it are its echoes.
	failure := context.Cause(ctx)
	if caller.Err() != nil && errors.Is(failure, context.Cause(caller)) {
		return ended(caller, nil)
	}
	return failure
}

// anywhere tries replicas in turn until one answers. What is wrong with the call itself is returned at once.
func (s *Sharded) anywhere(ctx context.Context, call func(client *Client) error) error {
	for attempt := 0; ; attempt++ {
		if ctx.Err() != nil {
			return ended(ctx, nil)
		}
		client := s.pick()
		err := call(client)
		if err == nil || !isPassing(err) || ctx.Err() != nil {
			return err
		}
		hasOther := s.passOver(client)
		round := attempt / len(s.Clients)
		if attempt+1 >= len(s.Clients)*(client.retries+1) || (!hasOther && !pause(ctx, waitAfter(err, round))) {
			return ended(ctx, err)
		}
	}
}

// pick takes the next replica that did not fail a moment ago, or the next one if all did.
func (s *Sharded) pick() *Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for range s.Clients {
		client := s.Clients[s.next%len(s.Clients)]
		s.next++
		if !now.Before(s.sick[client]) {
			return client
		}
	}
	s.next++
	return s.Clients[s.next%len(s.Clients)]
}

// passOver notes that a replica failed, and tells whether there is another to try at once.
func (s *Sharded) passOver(client *Client) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sick == nil {
		s.sick = map[*Client]time.Time{}
	}
	now := time.Now()
	s.sick[client] = now.Add(coolDown)
	return slices.ContainsFunc(s.Clients, func(other *Client) bool { return !now.Before(s.sick[other]) })
}
