package stepd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"reflect"
	"slices"
	"sync"
)

const (
	defaultRequestBytes = 64 << 20
	defaultParallel     = 4
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

	replicas replicas
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

// Close closes all clients.
func (s *Sharded) Close() {
	for _, client := range s.Clients {
		client.Close()
	}
}

// shard is the part of a step that one call makes.
type shard struct {
	request StepRequest
	// poison is the name of a parameter of one value that only this call has; empty where it has none.
	poison string
	// last is the largest count of steps, with this one, of the parameters that have gradients; 0 where none has.
	last int64
}

// Step makes one update as Client.Step does, with the same errors; on any of them nothing was changed. Global norms in Stats
// are added up from those of the tensors, so that their last bits may differ from one call's.
func (s *Sharded) Step(ctx context.Context, request StepRequest) (*StepResult, error) {
	if len(s.Clients) == 0 {
		return nil, errors.New("stepd: Sharded has no Clients")
	}
	if request.Reply != (Reply{}) || request.Cached != nil {
		return nil, errors.New("stepd: Sharded: expected neither Reply nor Cached, which are between a Client and its server")
	}
	if err := checkInto(request); err != nil {
		return nil, err
	}
	shards, err := s.pack(request)
	if err != nil {
		return nil, err
	}
	total := math.NaN()
	// refused is what Norms, or its result, says against the step. The step itself words it, because it has more to say first.
	var refused error
	if needsNorm(request) || request.NonFinite == Skip {
		sums, err := s.norms(ctx, request, shards)
		switch refusal := (*Error)(nil); {
		case err == nil:
			total, refused = share(request, shards, sums)
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
	result, release, err := s.run(ctx, request, shards)
	if err != nil {
		return nil, err
	}
	defer release()
	if refused != nil {
		return nil, refused
	}
	if result.Stats != nil && !math.IsNaN(total) {
		result.Stats.GradNorm = total
	}
	writeInto(request, result)
	return result, nil
}

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
	var refused error
	for i := range shards {
		part := &shards[i]
		switch {
		case isBroken && request.NonFinite == Skip:
			part.addPoison(request, math.NaN())
		case isBroken && request.NonFinite != Propagate:
			refused = badReply("a step with gradients that are not finite")
			// The calls that have the gradients name them. The others tell whether something is wrong that comes before that.
			if !slices.ContainsFunc(part.request.Grads, broken) {
				part.request.NonFinite = Skip
				part.addPoison(request, math.NaN())
			}
		case !needsNorm(request):
		case math.IsNaN(total):
			part.addPoison(request, total)
		case math.IsInf(total, 0):
			part.addPoison(request, hugeGradient)
		default:
			clip := Clip{}
			if request.Clip != nil {
				clip = *request.Clip
			}
			clip.TotalNorm = &total
			part.request.Clip = &clip
		}
	}
	return total, refused
}

// hugeGradient is finite, and its square is not.
const hugeGradient = 1e308

// addPoison adds a parameter whose gradient makes the call skip, or gives it a norm that is no finite number, as that of all
// gradients together is: such a norm cannot be sent.
func (s *shard) addPoison(request StepRequest, gradient float64) {
	s.poison = "\x00stepd.poison"
	for _, ok := request.Params.Get(s.poison); ok; _, ok = request.Params.Get(s.poison) {
		s.poison += "'"
	}
	s.request.Params = append(s.request.Params, From(s.poison, []float64{0}))
	s.request.Grads = append(s.request.Grads, From(s.poison, []float64{gradient}))
}

// withoutPoison takes the parameter that addPoison added out of a result.
func (s *shard) withoutPoison(result *StepResult) (*StepResult, error) {
	if s.poison == "" {
		return result, nil
	}
	clean := *result
	clean.Params = result.Params[:len(result.Params)-1]
	isPoison := func(entry Tensor) bool { return parameterOf(entry) == s.poison }
	entries, err := result.State.tensors()
	if err != nil {
		return nil, err
	}
	entries = slices.DeleteFunc(slices.Clone(entries), isPoison)
	if clean.State, err = newState(result.State.optimizer, result.State.revision, entries); err != nil {
		return nil, err
	}
	if clean.Stats != nil {
		delete(clean.Stats.Tensors, s.poison)
	}
	return &clean, nil
}

// pack divides a step by parameters, in their order.
func (s *Sharded) pack(request StepRequest) ([]shard, error) {
	grads := byName(request.Grads)
	entries := map[string][]Tensor{}
	if request.State != nil {
		all, err := request.State.tensors()
		if err != nil {
			return nil, err
		}
		for _, entry := range all {
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
func (s *Sharded) norms(ctx context.Context, request StepRequest, shards []shard) (map[string]TensorNorms, error) {
	found := make([]*Norms, len(shards))
	err := s.each(ctx, request, len(shards), func(ctx context.Context, client *Client, i int) (err error) {
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
	err := s.each(ctx, request, len(shards), func(ctx context.Context, client *Client, i int) (err error) {
		if results[i], buffers[i], err = client.step(ctx, shards[i].request, 0, false); err != nil {
			return err
		}
		results[i], err = shards[i].withoutPoison(results[i])
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
	joined := &StepResult{Skipped: results[0].Skipped}
	states := make([]*State, len(results))
	// One call says the rate of its furthest parameter that has a gradient, or of its state where none has.
	furthest := [2]int64{-1, -1}
	for i, result := range results {
		if result.Skipped != joined.Skipped {
			return nil, badReply("a part of a step was skipped, and another was not")
		}
		joined.Params = append(joined.Params, result.Params...)
		joined.Step = max(joined.Step, result.Step)
		for _, warning := range result.Warnings {
			if !slices.Contains(joined.Warnings, warning) {
				joined.Warnings = append(joined.Warnings, warning)
			}
		}
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
	joined.GradNorm = rootOfSum(joined.Tensors, func(stat TensorStat) float64 { return stat.GradNorm * stat.GradNorm })
	joined.ParamNorm = rootOfSum(joined.Tensors, func(stat TensorStat) float64 { return stat.ParamNorm * stat.ParamNorm })
	joined.UpdateNorm = rootOfSum(joined.Tensors, func(stat TensorStat) float64 { return stat.UpdateNorm * stat.UpdateNorm })
	return joined
}

// each makes calls of a step, some at once. The first failure ends the others, except that after a refusal of tensors they go
// on: one of theirs may be what a single call says.
func (s *Sharded) each(caller context.Context, request StepRequest, count int, call func(ctx context.Context, client *Client, i int) error) error {
	ctx, cancel := context.WithCancelCause(caller)
	defer cancel(nil)
	parallel := s.Parallel
	if parallel <= 0 {
		parallel = defaultParallel
	}
	indexes := make(chan int)
	refusals := make([]*Error, count)
	var workers sync.WaitGroup
	for range min(parallel, count) {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for i := range indexes {
				err := s.replicas.anywhere(ctx, s.Clients, func(client *Client) error { return call(ctx, client, i) })
				if errors.As(err, &refusals[i]) && stageOf(refusals[i]) > wholeCall {
					continue
				}
				if err != nil {
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
	if failure != nil {
		return failure
	}
	return joinRefusals(request, slices.DeleteFunc(refusals, func(refusal *Error) bool { return refusal == nil }))
}
