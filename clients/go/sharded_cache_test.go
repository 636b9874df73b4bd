package stepd

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"testing"
)

// newCalls returns a Sharded that makes one call per tensor, and no second round.
func newCalls(t *testing.T, urls []string, options ...Option) *Sharded {
	t.Helper()
	sharded := must[*Sharded](t)(NewSharded(urls, append([]Option{WithRetries(0)}, options...)...))
	sharded.RequestBytes = 1
	t.Cleanup(sharded.Close)
	return sharded
}

func TestShardedCachedEqualsOneCall(t *testing.T) {
	ctx := testContext(t)
	plain := newClient(t, shared.url)
	second := ownServer(t, "STEPD_CACHE_MIB=64", "STEPD_SHARED_DIR="+sharedDir)
	for name, start := range map[string]StepRequest{
		"plain":    {Optimizer: AdamW(0.01)},
		"clip":     {Optimizer: AdamW(0.01), Clip: &Clip{MaxNorm: 0.5}, LossScale: 4},
		"lamb":     {Optimizer: LAMB(0.01).With("max_grad_norm", 1)},
		"schedule": {Optimizer: AdamW(0.01), Schedule: Schedule{"name": "exponential", "gamma": 0.5}},
	} {
		for how, options := range map[string][]Option{"TCP": nil, "shared": {WithSharedDir(sharedDir)}} {
			for _, isGiven := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s, %s, with values: %v", name, how, isGiven), func(t *testing.T) {
					sharded := newCalls(t, []string{shared.url, second.url}, options...)
					request, other := start, start
					request.Params, other.Params = largeTensors(1, F32), largeTensors(1, F32)
					into := largeTensors(1, F32)
					for i := range uint64(5) {
						grads := largeTensors(i+2, F32)
						if i%2 == 1 {
							// The other parameters do not step. One gradient is float64, and its parameter is not.
							grads = Tensors{grads[4], doubled(t, grads[5])}
						}
						request.Grads, other.Grads = grads, grads
						request.Reply = Reply{Cache: true}
						if !isGiven {
							request.Reply.State = ReplyNone
						}
						if i == 4 {
							request.Reply = Reply{}
							request.Into = into
						}
						found := must[*StepResult](t)(sharded.Step(ctx, request))
						expected := must[*StepResult](t)(plain.Step(ctx, other))
						requireSame(t, found.Params, expected.Params)
						if found.Step != expected.Step || found.LR != expected.LR || (found.Cached == nil) != (i == 4) {
							t.Fatalf("step %d, rate %v, expected %d and %v; %v", found.Step, found.LR, expected.Step, expected.LR, found.Cached)
						}
						if isGiven || i == 4 {
							requireSameStep(t, found, expected)
						} else if !errors.Is(found.State.Err(), ErrStateKept) {
							t.Fatal(found.State.Err())
						}
						request.State, request.Cached = found.State, found.Cached
						other.Params, other.State = expected.Params, expected.State
						request.Params = nil
						if isGiven {
							request.Params = found.Params
						}
					}
					requireSame(t, into, other.Params)
				})
			}
		}
	}
}

func TestShardedCachedMiss(t *testing.T) {
	ctx := testContext(t)
	plain := newClient(t, shared.url)
	second := ownServer(t, "STEPD_CACHE_MIB=64")
	proxy := newFlaky()
	sharded := newCalls(t, []string{serve(t, proxy).URL, second.url})
	request := StepRequest{Optimizer: AdamW(0.01), Params: largeTensors(1, F32), Grads: largeTensors(2, F32), Reply: Reply{Cache: true}}
	first := must[*StepResult](t)(sharded.Step(ctx, request))
	request.Params, request.State, request.Cached = first.Params, first.State, first.Cached
	expected := must[*StepResult](t)(plain.Step(ctx, StepRequest{Optimizer: AdamW(0.01), Params: first.Params, Grads: request.Grads, State: first.State}))
	// called returns the number of calls to the first replica, and resets the number.
	called := func() int {
		proxy.mu.Lock()
		defer proxy.mu.Unlock()
		count := len(proxy.seen)
		proxy.seen = nil
		return count
	}
	at := func(cached *Cached, client *Client) (count int) {
		for _, one := range cached.shards {
			if one.client == client {
				count++
			}
		}
		return count
	}
	calls, moved := len(first.Cached.shards), at(first.Cached, sharded.Clients[1])
	if moved == 0 || moved == calls {
		t.Fatalf("%d of %d calls went to the second", moved, calls)
	}
	// Each call goes to the replica that has its blobs.
	called()
	// The first step began with the other replica.
	sharded.replicas.next = 1
	requireSameStep(t, must[*StepResult](t)(sharded.Step(ctx, request)), expected)
	if count := called(); count != calls-moved {
		t.Fatalf("%d calls for %d", count, calls-moved)
	}
	// The surviving replica receives the missing blobs, for the moved calls only.
	second.kill()
	found := must[*StepResult](t)(sharded.Step(ctx, request))
	requireSameStep(t, found, expected)
	if count := called(); count != calls+moved || at(found.Cached, sharded.Clients[0]) != calls {
		t.Fatalf("%d calls for %d and %d", count, calls, moved)
	}
	// Without the values, no replica can continue. A cached repetition of the step would release the result that was found.
	request.Reply = Reply{}
	for _, params := range []Tensors{nil, request.Params} {
		request.Params, request.State = params, nil
		var refusal *Error
		if _, err := sharded.Step(ctx, request); !errors.Is(err, ErrBlobMissing) || !errors.As(err, &refusal) || refusal.Status != http.StatusNotFound {
			t.Fatal(err)
		}
	}
	// The client waits for the replica that has the blobs.
	proxy.mu.Lock()
	proxy.answers = []http.HandlerFunc{refuse(http.StatusServiceUnavailable, "OVERLOADED", "0"), refuse(http.StatusServiceUnavailable, "OVERLOADED", "0")}
	proxy.mu.Unlock()
	third := ownServer(t, "STEPD_CACHE_MIB=64")
	waiting := must[*Sharded](t)(NewSharded([]string{third.url}, WithRetries(2)))
	t.Cleanup(waiting.Close)
	waiting.Clients = append(waiting.Clients, sharded.Clients[0])
	sharded.Clients[0].retries = 2
	request.Params, request.State, request.Cached = nil, nil, found.Cached
	waited := must[*StepResult](t)(waiting.Step(ctx, request))
	requireSameStep(t, waited, must[*StepResult](t)(plain.Step(ctx, StepRequest{Optimizer: AdamW(0.01), Params: found.Params, Grads: request.Grads, State: found.State})))
}

func TestShardedCachedWithoutNumbers(t *testing.T) {
	ctx := testContext(t)
	plain, sharded := newClient(t, shared.url), newCalls(t, []string{shared.url})
	for _, value := range []float64{math.NaN(), math.Inf(1)} {
		for _, mode := range []NonFinite{Skip, Propagate, Fail} {
			for _, optimizer := range []Optimizer{AdamW(0.1), LAMB(0.1).With("max_grad_norm", 1)} {
				for _, clip := range []*Clip{nil, {MaxNorm: 1}} {
					start := StepRequest{Optimizer: optimizer, Params: model(1), Grads: model(2)}
					whole := must[*StepResult](t)(plain.Step(ctx, start))
					start.Reply = Reply{Cache: true, Params: ReplyNone, State: ReplyNone}
					first := must[*StepResult](t)(sharded.Step(ctx, start))
					next := StepRequest{Optimizer: optimizer, Cached: first.Cached, Grads: model(3), NonFinite: mode, Clip: clip, Stats: TensorStats}
					must[[]float32](t)(Values[float32](next.Grads[0]))[3] = float32(value)
					other := next
					other.Cached, other.Params, other.State = nil, whole.Params, whole.State
					expected, refusal := plain.Step(ctx, other)
					found, err := sharded.Step(ctx, next)
					if mode == Fail {
						if !errors.Is(err, ErrNonFiniteGradient) || !errors.Is(refusal, ErrNonFiniteGradient) {
							t.Fatal(err, refusal)
						}
						continue
					}
					if err != nil || refusal != nil {
						t.Fatal(err, refusal)
					}
					requireSameStep(t, found, expected)
					if found.Skipped != (mode == Skip) || (found.Stats == nil) != (expected.Stats == nil) {
						t.Fatalf("skipped: %v, %+v", found.Skipped, found.Stats)
					}
					if found.Stats != nil {
						for name, stat := range expected.Stats.Tensors {
							if mine := found.Stats.Tensors[name]; mine.Zeros != stat.Zeros || mine.NonFinite != stat.NonFinite || math.Float64bits(mine.GradNorm)<<1 != math.Float64bits(stat.GradNorm)<<1 {
								t.Fatalf("%q: %+v is not %+v", name, mine, stat)
							}
						}
					}
				}
			}
		}
	}
}

func TestShardedReplies(t *testing.T) {
	ctx := testContext(t)
	plain, sharded := newClient(t, shared.url), newCalls(t, []string{shared.url})
	for _, reply := range []Reply{{Params: ReplyBF16}, {Params: ReplyNone}, {Params: ReplySame, State: ReplySame}} {
		request := StepRequest{Optimizer: AdamW(0.01), Params: largeTensors(1, F32), Grads: largeTensors(2, F32), Reply: reply}
		requireSameStep(t, must[*StepResult](t)(sharded.Step(ctx, request)), must[*StepResult](t)(plain.Step(ctx, request)))
	}
	// The caller's memory gets rounded results, while the server caches the unrounded parameters.
	request := StepRequest{Optimizer: AdamW(0.01), Params: largeTensors(1, F32), Grads: largeTensors(2, F32), Reply: Reply{Params: ReplyBF16, State: ReplyNone, Cache: true}}
	expected := must[*StepResult](t)(plain.Step(ctx, StepRequest{Optimizer: AdamW(0.01), Params: request.Params, Grads: request.Grads}))
	first := must[*StepResult](t)(sharded.Step(ctx, request))
	requireSame(t, first.Params, rounded(t, expected.Params))
	request.Params, request.State, request.Cached = first.Params, first.State, first.Cached
	request.Into = clone(first.Params)
	second := must[*StepResult](t)(sharded.Step(ctx, request))
	expected = must[*StepResult](t)(plain.Step(ctx, StepRequest{Optimizer: AdamW(0.01), Params: expected.Params, State: expected.State, Grads: request.Grads}))
	requireSame(t, second.Params, rounded(t, expected.Params))
	requireSame(t, request.Into, second.Params)
}

func TestErrorsOfShardedCached(t *testing.T) {
	ctx := testContext(t)
	plain, sharded := newClient(t, shared.url), newCalls(t, []string{shared.url})
	request := StepRequest{Optimizer: AdamW(0.01), Params: model(1), Grads: model(2), Reply: Reply{Cache: true}}
	one, several := must[*StepResult](t)(plain.Step(ctx, request)), must[*StepResult](t)(sharded.Step(ctx, request))
	less := *several.Cached
	less.shards = slices.Clone(less.shards)
	less.shards[1].cached = Cached{}
	for name, c := range map[string]struct {
		client stepper
		change func(*StepRequest)
		says   string
	}{
		"a Client's":           {sharded, func(r *StepRequest) { r.Cached = one.Cached }, "Cached: expected that of a result of Sharded, found a Client's"},
		"an empty one":         {sharded, func(r *StepRequest) { r.Cached = &Cached{} }, "Cached: expected that of a result of Sharded, found an empty one"},
		"that of Sharded":      {plain, func(r *StepRequest) { r.Cached = several.Cached }, "Cached: expected that of a Client's result"},
		"other parameters":     {sharded, func(r *StepRequest) { r.Cached, r.Params = several.Cached, r.Params[1:] }, "Params are not those"},
		"params without names": {sharded, func(r *StepRequest) { r.Cached, r.Params = &less, nil }, "Params are nil"},
		"a state without one":  {sharded, func(r *StepRequest) { r.Cached = &less }, "State is nil"},
		"an Into that is less": {sharded, func(r *StepRequest) { r.Cached, r.Params, r.Into = several.Cached, nil, model(1)[1:] }, "Into has no"},
		"nobody keeps a state": {sharded, func(r *StepRequest) { r.Reply = Reply{State: ReplyNone} }, "/reply/cache"},
		"a state that is gone": {sharded, func(r *StepRequest) { r.State = &State{onServer: true} }, ErrStateKept.Error()},
	} {
		changed := request
		c.change(&changed)
		if _, err := c.client.Step(ctx, changed); err == nil || !bytes.Contains([]byte(err.Error()), []byte(c.says)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A step on memory from Share names its files, whichever replica takes the call.
func TestShardedShare(t *testing.T) {
	ctx := testContext(t)
	second := ownServer(t, "STEPD_SHARED_DIR="+sharedDir)
	sent := &countingTransport{RoundTripper: newClient(t, shared.url).http.Transport}
	sharded := newCalls(t, []string{shared.url, second.url}, WithSharedDir(sharedDir), WithHTTPClient(&http.Client{Transport: sent}))
	sharded.RequestBytes, sharded.Parallel = 50_000*elementBytes, 1
	tensors := func(seed uint64) (tensors Tensors) {
		for i := range uint64(6) {
			tensors = append(tensors, From(fmt.Sprint("w", i), random(100*seed+i, 20_000)))
		}
		return append(slices.Insert(tensors, 2, model(seed)[3]), From("large", random(seed, 70_000)))
	}
	params, freeParams, err := sharded.Share(tensors(1))
	if err != nil {
		t.Fatal(err)
	}
	requireSame(t, params, tensors(1))
	empty := tensors(0)
	for i := range empty {
		empty[i].Data = nil
	}
	grads, freeGrads, err := sharded.Share(empty)
	if err != nil {
		t.Fatal(err)
	}
	folder := sharded.Clients[0].shared
	if sharded.Clients[1].shared != folder {
		t.Fatal("the clients have not one folder")
	}
	request := StepRequest{Optimizer: AdamW(0.01), Params: params, Into: params, Grads: grads, Clip: &Clip{MaxNorm: 1}}
	other := StepRequest{Optimizer: AdamW(0.01), Params: tensors(1), Clip: &Clip{MaxNorm: 1}}
	if shards := must[[]shard](t)(sharded.split(request)); len(shards) != 4 {
		t.Fatalf("%d calls", len(shards))
	}
	for i := range uint64(4) {
		other.Grads = tensors(i + 2)
		for j, grad := range other.Grads {
			copy(grads[j].Data, grad.Data)
		}
		sent.bytes.Store(0)
		found := must[*StepResult](t)(sharded.Step(ctx, request))
		expected := must[*StepResult](t)(newClient(t, shared.url).Step(ctx, other))
		requireSameStep(t, found, expected)
		requireSame(t, params, expected.Params)
		for _, part := range must[[]shard](t)(sharded.split(request)) {
			for _, tensors := range []Tensors{part.request.Params, part.request.Grads} {
				r := folder.find(must[blob](t)(fileParts(nil, tensors)))
				if r == nil {
					t.Fatalf("%d tensors from %q on are copied", len(tensors), tensors[0].Name)
				}
				r.release(false)
			}
		}
		if sent.bytes.Load() > 20_000 {
			t.Fatalf("%d bytes were sent", sent.bytes.Load())
		}
		request.State = found.State
		other.Params, other.State = expected.Params, expected.State
	}
	freeParams()
	freeGrads()
	if len(sharded.groups) > 0 {
		t.Fatal(sharded.groups)
	}
	if _, _, err := sharded.Share(Tensors{{Name: "w", DType: F32, Shape: []int{1}, Data: []byte{1}}}); !errors.Is(err, ErrBadTensor) {
		t.Error(err)
	}
	if _, _, err := new(Sharded).Share(nil); err == nil {
		t.Error("memory without clients")
	}
}

// Close forgets shared memory that was never freed.
func TestShardedCloseForgetsSharedMemory(t *testing.T) {
	sharded := newCalls(t, []string{shared.url})
	params, free, err := sharded.Share(model(1))
	if err != nil {
		t.Fatal(err)
	}
	if len(sharded.groups) == 0 {
		t.Fatal("no groups")
	}
	sharded.Close()
	if len(sharded.groups) > 0 {
		t.Error(sharded.groups)
	}
	requireSame(t, params, model(1))
	free()
}
