package stepd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"unsafe"
)

func newSharded(t *testing.T, urls ...string) *Sharded {
	t.Helper()
	sharded := must[*Sharded](t)(NewSharded(urls))
	sharded.RequestBytes = 1000
	t.Cleanup(func() {
		for _, client := range sharded.Clients {
			client.Close()
		}
	})
	return sharded
}

type stepper interface {
	Step(context.Context, StepRequest) (*StepResult, error)
}

// requireSameRuns takes the same steps sharded and whole, and compares the results and the errors.
func requireSameRuns(t *testing.T, steps int, request func(step int) StepRequest) {
	t.Helper()
	ctx := testContext(t)
	whole, sharded := newClient(t, shared.url), newSharded(t, shared.url)
	var last, found *StepResult
	for step := range steps {
		next := func(client stepper, previous *StepResult) *StepResult {
			request := request(step)
			if previous != nil {
				request.Params, request.State = previous.Params, previous.State
			}
			return must[*StepResult](t)(client.Step(ctx, request))
		}
		last, found = next(whole, last), next(sharded, found)
		requireSame(t, found.Params, last.Params)
		if !bytes.Equal(found.State.Bytes(), last.State.Bytes()) {
			t.Fatalf("step %d: the states differ", step)
		}
		if found.Step != last.Step || found.LR != last.LR || found.Skipped != last.Skipped || !slices.Equal(found.Warnings, last.Warnings) || (found.Stats == nil) != (last.Stats == nil) {
			t.Fatalf("step %d: %+v is not %+v", step, found, last)
		}
	}
}

func TestShardedHasTheBitsOfOneCall(t *testing.T) {
	max := 0.5
	cases := map[string]StepRequest{
		"plain":     {Optimizer: AdamW(0.01)},
		"max_norm":  {Optimizer: AdamW(0.01), Clip: &Clip{MaxNorm: 1}, LossScale: 8},
		"max_value": {Optimizer: AdamW(0.01), Clip: &Clip{MaxValue: 0.1}},
		"lamb":      {Optimizer: LAMB(0.01).With("max_grad_norm", max)},
		"both":      {Optimizer: LAMB(0.01).With("max_grad_norm", max), Clip: &Clip{MaxNorm: 2}},
		"given":     {Optimizer: AdamW(0.01), Clip: &Clip{MaxNorm: 1, TotalNorm: &max}},
		"groups":    {Optimizer: AdamW(0.01), Groups: []Group{{Tensors: []string{"*bias"}, Optimizer: Optimizer{"weight_decay": 0, "lr": 1}}}},
		"mixed":     {Optimizer: AdamW(0.01), Groups: mixedGroups},
		"bf16":      {Optimizer: AdamW(0.01).With("state_dtype", "BF16")},
		"nadam":     {Optimizer: Optimizer{"name": "nadam"}, Schedule: Schedule{"name": "cosine", "T_max": 3}},
	}
	for name, request := range cases {
		t.Run(name, func(t *testing.T) {
			requireSameRuns(t, 3, func(step int) StepRequest {
				request := request
				request.Params, request.Grads = model(1), model(uint64(10+step))
				return request
			})
		})
	}
	t.Run("moments in 8 bits", func(t *testing.T) {
		requireSameRuns(t, 3, func(step int) StepRequest {
			coded := func(seed uint64) Tensors { return append(model(seed), From("coded", random(seed, 4200))) }
			return StepRequest{Optimizer: AdamW(0.01).With("state_dtype", "Q8"), Params: coded(1), Grads: coded(uint64(10 + step))}
		})
	})
	t.Run("parameters without gradients, and a schedule", func(t *testing.T) {
		requireSameRuns(t, 4, func(step int) StepRequest {
			return StepRequest{Optimizer: AdamW(1), Schedule: Schedule{"name": "exponential", "gamma": 0.5},
				Params: model(1), Grads: append(Tensors{}, model(2)[step%2:min(step+1, 3)]...)}
		})
	})
	t.Run("sums of which the order matters", func(t *testing.T) {
		requireSameRuns(t, 3, func(step int) StepRequest {
			var params, grads Tensors
			for i := range 60 {
				params = append(params, From(fmt.Sprint("layer ", i), random(uint64(i), 100)))
				grads = append(grads, From(fmt.Sprint("layer ", i), random(uint64(100*step+i), 100)))
			}
			// In float64 the last bit of the norm changes the parameters.
			for i := range params {
				params[i] = doubled(t, params[i])
			}
			return StepRequest{Optimizer: SGD(1), Params: params, Grads: grads, Clip: &Clip{MaxNorm: 0.7}}
		})
	})
	t.Run("warnings of many tensors", func(t *testing.T) {
		var params, grads Tensors
		for i := range 40 {
			// Warnings have two causes here: 0/0 in every second tensor, and overflowing squares in the others.
			grad := make([]float32, 50)
			if i%2 == 1 {
				grad[0] = 1e25
			}
			name := fmt.Sprintf("quoted \"(%d values), ", i)
			params, grads = append(params, From(name, random(uint64(i), 50))), append(grads, From(name, grad))
		}
		request := StepRequest{Optimizer: Adam(0.1).With("eps", 0), Params: params, Grads: grads}
		result := must[*StepResult](t)(newClient(t, shared.url).Step(testContext(t), request))
		if len(result.Warnings) != 2 || strings.Count(strings.Join(result.Warnings, ""), " more tensors") != 2 {
			t.Fatalf("%q", result.Warnings)
		}
		requireSameRuns(t, 1, func(int) StepRequest { return request })
	})
	t.Run("no gradients at all", func(t *testing.T) {
		requireSameRuns(t, 2, func(int) StepRequest { return StepRequest{Optimizer: AdamW(1), Params: model(1)} })
	})
	t.Run("no parameters at all", func(t *testing.T) {
		requireSameRuns(t, 2, func(int) StepRequest { return StepRequest{Optimizer: AdamW(1)} })
	})
	t.Run("gradients of other dtypes", func(t *testing.T) {
		doubles := make([]float64, 300)
		for i, value := range random(5, 300) {
			doubles[i] = float64(value) / 3
		}
		requireSameRuns(t, 3, func(int) StepRequest {
			return StepRequest{Optimizer: AdamW(0.1), Clip: &Clip{MaxNorm: 0.1}, LossScale: 3,
				Params: Tensors{From("a", random(1, 300)), From("b", doubles), From("c", random(3, 300))},
				Grads:  Tensors{From("a", doubles), From("b", random(2, 300)), From("c", random(4, 300))}}
		})
	})
}

func doubled(t *testing.T, tensor Tensor) Tensor {
	values := must[[]float32](t)(Values[float32](tensor))
	doubles := make([]float64, len(values))
	for i, value := range values {
		doubles[i] = float64(value)
	}
	return From(tensor.Name, doubles, tensor.Shape...)
}

func TestShardedNonFiniteGradients(t *testing.T) {
	broken := func() Tensors {
		grads := model(2)
		values := must[[]float32](t)(Values[float32](grads[0]))
		values[3], values[4] = float32(math.NaN()), float32(math.Inf(1))
		must[[]float32](t)(Values[float32](grads[2]))[0] = float32(math.Inf(-1))
		return grads
	}
	for _, clip := range []*Clip{nil, {MaxNorm: 1}} {
		t.Run(fmt.Sprintf("skip, clip %v", clip != nil), func(t *testing.T) {
			requireSameRuns(t, 4, func(step int) StepRequest {
				request := StepRequest{Optimizer: AdamW(1), Params: model(1), Grads: model(3), NonFinite: Skip, Clip: clip, Stats: GlobalStats,
					Schedule: Schedule{"name": "exponential", "gamma": 0.5}}
				if step%2 == 0 {
					request.Grads = broken()
				}
				return request
			})
		})
		t.Run(fmt.Sprintf("error, clip %v", clip != nil), func(t *testing.T) {
			request := StepRequest{Optimizer: AdamW(1), Params: model(1), Grads: broken(), Clip: clip}
			_, expected := newClient(t, shared.url).Step(testContext(t), request)
			sharded := newSharded(t, shared.url)
			request.Into = request.Params
			_, err := sharded.Step(testContext(t), request)
			requireSameRefusal(t, "several", err, expected)
			requireSame(t, request.Params, model(1))
		})
	}
	t.Run("propagate", func(t *testing.T) {
		requireSameRuns(t, 1, func(int) StepRequest {
			return StepRequest{Optimizer: SGD(1), Params: model(1), Grads: broken(), NonFinite: Propagate, Clip: &Clip{MaxNorm: 1}}
		})
	})
}

// Each call carries the caller's own gradients. Its clip and its flag OthersNonFinite describe the gradients of the other calls.
func TestShardedSendsTheCallersGradients(t *testing.T) {
	sharded := newSharded(t, shared.url)
	for _, value := range []float64{math.NaN(), math.Inf(1)} {
		for _, mode := range []NonFinite{Fail, Skip, Propagate} {
			request := StepRequest{Optimizer: AdamW(1), Params: model(1), Grads: model(2), NonFinite: mode, Clip: &Clip{MaxNorm: 1}}
			must[[]float32](t)(Values[float32](request.Grads[0]))[3] = float32(value)
			before := string(bytes.Join([][]byte{request.Grads[0].Data, request.Grads[1].Data, request.Grads[2].Data}, nil))
			shards := must[[]shard](t)(sharded.split(request))
			setNorm(request, shards, must[map[string]TensorNorms](t)(sharded.norms(testContext(t), request, shards)))
			sent, given := 0, byName(request.Grads)
			for _, part := range shards {
				if total := *part.request.Clip.TotalNorm; !part.request.OthersNonFinite || math.IsNaN(total) != math.IsNaN(value) || math.IsInf(total, 1) != math.IsInf(value, 1) {
					t.Errorf("%v: told %v and a norm of %v", value, part.request.OthersNonFinite, total)
				}
				for _, grad := range part.request.Grads {
					sent++
					if unsafe.SliceData(grad.Data) != unsafe.SliceData(given[grad.Name].Data) {
						t.Errorf("%s is not the caller's", grad.Name)
					}
				}
			}
			if after := string(bytes.Join([][]byte{request.Grads[0].Data, request.Grads[1].Data, request.Grads[2].Data}, nil)); len(shards) < 2 || sent != len(request.Grads) || after != before {
				t.Errorf("%d calls, %d gradients, changed %v", len(shards), sent, after != before)
			}
			if request.Clip.TotalNorm != nil {
				t.Error("the caller's clip was changed")
			}
		}
	}
}

func TestOthersNonFiniteAndTotalNorm(t *testing.T) {
	ctx := testContext(t)
	sharded := newSharded(t, shared.url)
	request := StepRequest{Optimizer: SGD(1), Params: model(1), Grads: model(2), OthersNonFinite: true}
	for name, client := range map[string]stepper{"client": sharded.Clients[0], "sharded": sharded} {
		var refusal *Error
		if _, err := client.Step(ctx, request); !errors.As(err, &refusal) || refusal.Name != ErrNonFiniteGradient || refusal.Field != "/others_non_finite" {
			t.Errorf("%s: %v", name, err)
		}
		skip := request
		skip.NonFinite = Skip
		if result, err := client.Step(ctx, skip); err != nil || !result.Skipped {
			t.Errorf("%s: %v", name, err)
		}
		for _, total := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
			known := StepRequest{Optimizer: SGD(1), Params: model(1), Grads: model(2), Clip: &Clip{MaxNorm: 1, TotalNorm: &total}}
			result, err := client.Step(ctx, known)
			if math.IsInf(total, -1) {
				if !errors.As(err, &refusal) || refusal.Field != "/clip/total_norm" {
					t.Errorf("%s: %v", name, err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			for i, param := range result.Params {
				for j, value := range must[[]float32](t)(Values[float32](param)) {
					if start := must[[]float32](t)(Values[float32](known.Params[i]))[j]; math.IsNaN(total) != math.IsNaN(float64(value)) || (!math.IsNaN(total) && value != start) {
						t.Fatalf("%s: %v after a norm of %v", name, value, total)
					}
				}
			}
		}
	}
}

func TestShardedErrorsAreTheServers(t *testing.T) {
	ctx := testContext(t)
	sharded := newSharded(t, shared.url)
	state := must[*StepResult](t)(sharded.Step(ctx, StepRequest{Optimizer: AdamW(1), Params: model(1), Grads: model(1)})).State
	for name, c := range map[string]struct {
		request StepRequest
		err     error
	}{
		"a grad without its parameter":  {StepRequest{Optimizer: AdamW(1), Params: model(1)[1:], Grads: model(1)}, ErrTensorMismatch},
		"a state without its parameter": {StepRequest{Optimizer: AdamW(1), Params: model(1)[1:], State: state}, ErrStateMismatch},
		"a hyperparameter":              {StepRequest{Optimizer: AdamW(-1), Params: model(1)}, ErrInvalidParams},
		"a name that stands twice":      {StepRequest{Optimizer: AdamW(1), Params: append(model(1), model(1)...)}, ErrBadTensor},
	} {
		if _, err := sharded.Step(ctx, c.request); !errors.Is(err, c.err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := new(Sharded).Step(ctx, StepRequest{}); err == nil {
		t.Error("a step without clients")
	}
	gone := newSharded(t, "http://127.0.0.1:1", "http://127.0.0.1:2")
	gone.Clients[0].refused, gone.Clients[1].refused = 0, 0
	gone.Clients[0].retries, gone.Clients[1].retries = 1, 1
	if _, err := gone.Step(ctx, StepRequest{Optimizer: AdamW(1), Params: model(1)}); !errors.As(err, new(*TransportError)) {
		t.Error(err)
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := gone.Step(canceled, StepRequest{Optimizer: AdamW(1), Params: model(1)}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestShardedStats(t *testing.T) {
	ctx := testContext(t)
	request := StepRequest{Optimizer: LAMB(0.1), Params: model(1), Grads: model(2), Stats: TensorStats, Clip: &Clip{MaxNorm: 1}}
	one := must[*StepResult](t)(newClient(t, shared.url).Step(ctx, request)).Stats
	found := must[*StepResult](t)(newSharded(t, shared.url).Step(ctx, request)).Stats
	near := func(a, b float64) bool { return math.Abs(a-b) <= 1e-14*math.Abs(b) }
	if found.GradNorm != one.GradNorm || !near(found.ParamNorm, one.ParamNorm) || !near(found.UpdateNorm, one.UpdateNorm) || found.Clipped != one.Clipped ||
		found.Zeros != one.Zeros || len(found.Tensors) != len(one.Tensors) || *found.Tensors["scale"].TrustRatio != *one.Tensors["scale"].TrustRatio {
		t.Fatalf("%+v is not %+v", found, one)
	}
}

func TestShardedRefusesAnOptimizerThatNeedsAllTensors(t *testing.T) {
	request := StepRequest{Optimizer: Optimizer{"name": "adamw"}, Params: model(1), Grads: model(2)}
	request.Groups = []Group{{Tensors: []string{"*"}, Optimizer: Optimizer{"name": "prodigy"}}}
	_, err := newSharded(t, shared.url).Step(testContext(t), request)
	if err == nil || !strings.Contains(err.Error(), "prodigy needs all tensors") {
		t.Fatal(err)
	}
	if _, err := newClient(t, shared.url).Step(testContext(t), request); err != nil {
		t.Fatal(err)
	}
}

// killer kills a server during the upload of its nth step.
type killer struct {
	http.RoundTripper
	server *server
	left   atomic.Int64
}

func (k *killer) RoundTrip(request *http.Request) (*http.Response, error) {
	if request.URL.Path == "/v1/step" && k.left.Add(-1) == 0 {
		request.Body = &killingBody{request.Body, k.server}
	}
	return k.RoundTripper.RoundTrip(request)
}

type killingBody struct {
	io.ReadCloser
	server *server
}

func (b *killingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(len(p), 10_000)])
	_ = b.server.process.Process.Kill()
	return n, err
}

// The test takes two hundred steps over three servers, one of which dies during a call. The bytes equal those of one server and
// one call per step.
func TestShardedSurvivesADeadReplica(t *testing.T) {
	const steps, callsUntilDeath = 200, 100
	servers := []*server{ownServer(t), ownServer(t), ownServer(t)}
	sharded := newSharded(t, servers[0].url, servers[1].url, servers[2].url)
	sharded.RequestBytes = 100_000
	victim := sharded.Clients[1]
	killer := &killer{RoundTripper: victim.http.Transport, server: servers[1]}
	killer.left.Store(callsUntilDeath)
	victim.http.Transport = killer
	shapes := []int{20_000, 20_000, 3_000, 3_000, 3_000, 1, 50}
	layers := func(seed uint64) (tensors Tensors) {
		for i, count := range shapes {
			tensors = append(tensors, From(fmt.Sprintf("layer.%d", i), random(seed*100+uint64(i), count)))
		}
		return tensors
	}
	run := func(client stepper) (Tensors, *State) {
		ctx := testContext(t)
		params := layers(1)
		var state *State
		for step := range steps {
			result := must[*StepResult](t)(client.Step(ctx, StepRequest{Optimizer: LAMB(0.01).With("max_grad_norm", 1), Params: params, Into: params, State: state,
				Grads: layers(uint64(2 + step%7)), Schedule: Schedule{"name": "cosine", "T_max": steps}}))
			state = result.State
		}
		return params, state
	}
	params, state := run(sharded)
	if left := killer.left.Load(); left > 0 {
		t.Fatalf("the replica lives: %d calls left", left)
	}
	<-servers[1].exited
	expectedParams, expectedState := run(newClient(t, shared.url))
	requireSame(t, params, expectedParams)
	if !bytes.Equal(state.Bytes(), expectedState.Bytes()) {
		t.Fatal("the states differ")
	}
	if state.Steps()["layer.0"] != steps {
		t.Fatal(state.Steps())
	}
}
