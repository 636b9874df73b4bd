package stepd

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
)

// A sharded step refuses the steps that one call refuses, and returns the same result for non-finite gradients. The test
// combines faults in pairs, because the first fault found hides the other.
func TestShardedRefusesWhatOneCallDoes(t *testing.T) {
	ctx := testContext(t)
	whole, sharded := newClient(t, shared.url), newSharded(t, shared.url)
	sharded.RequestBytes = 1
	names := []string{"d", "a", "c", "b", "wide"}
	fresh := func(seed uint64) (tensors Tensors) {
		for i, name := range names {
			tensors = append(tensors, From(name, random(seed+uint64(i), 3)))
		}
		tensors[4] = doubled(t, tensors[4])
		return tensors
	}
	stateOf := func(optimizer Optimizer) *State {
		return must[*StepResult](t)(whole.Step(ctx, StepRequest{Optimizer: optimizer, Params: fresh(1), Grads: fresh(2)})).State
	}
	adamw, sgd, amsgrad := stateOf(AdamW(1)), stateOf(SGD(1).With("momentum", 0.9)), stateOf(AdamW(1).With("amsgrad", true))
	narrow := must[*State](t)(newState(adamw.optimizers, slices.DeleteFunc(slices.Clone(adamw.entries), func(entry Tensor) bool {
		return entry.Name == "exp_avg/b" || entry.Name == "exp_avg_sq/a"
	})))
	broken := func(request *StepRequest, name string, value float64) {
		for i, grad := range request.Grads {
			if grad.Name == name {
				request.Grads[i] = From(name, []float32{float32(value), 1, 2})
			}
		}
	}
	null, one := (*float64)(nil), 1.0
	faults := []struct {
		name  string
		apply func(request *StepRequest)
	}{
		{"none", func(*StepRequest) {}},
		{"a NaN", func(r *StepRequest) { broken(r, "c", math.NaN()) }},
		{"infinities", func(r *StepRequest) { broken(r, "d", math.Inf(1)); broken(r, "a", math.Inf(-1)) }},
		{"a gradient of another shape", func(r *StepRequest) { r.Grads[3] = From("b", []float32{1}) }},
		{"two gradients of other shapes, the wide one last", func(r *StepRequest) {
			r.Grads[1], r.Grads[4] = From("a", []float32{1}), From("wide", []float64{1})
		}},
		{"gradients without parameters", func(r *StepRequest) { r.Grads = append(r.Grads, From("y", []float32{1}), From("x", []float32{1})) }},
		{"a parameter of a foreign dtype", func(r *StepRequest) {
			r.Params[0] = Tensor{Name: "d", DType: "I32", Shape: []int{3}, Data: make([]byte, 12)}
		}},
		{"gradients of foreign dtypes", func(r *StepRequest) {
			for _, i := range []int{0, 3} {
				r.Grads[i] = Tensor{Name: names[i], DType: "U8", Shape: []int{3}, Data: make([]byte, 3)}
			}
		}},
		{"a state of another family", func(r *StepRequest) { r.State = sgd }},
		{"a state of its family", func(r *StepRequest) { r.State = amsgrad; r.Optimizer["name"] = "adam" }},
		{"a state without slots", func(r *StepRequest) { r.State = narrow }},
		{"a parameter that only the state has", func(r *StepRequest) { r.State = adamw; r.Params = r.Params[1:]; r.Grads = r.Grads[1:] }},
		{"clip", func(r *StepRequest) { r.Clip = &Clip{MaxNorm: 1} }},
		{"a negative norm", func(r *StepRequest) { r.Clip = &Clip{MaxNorm: -1} }},
		{"both kinds of clip", func(r *StepRequest) { r.Clip = &Clip{MaxNorm: 1, MaxValue: 1} }},
		{"a norm of nothing", func(r *StepRequest) { r.Clip = &Clip{TotalNorm: &one} }},
		{"a foreign schedule", func(r *StepRequest) { r.Schedule = Schedule{"name": "bogus"} }},
		{"a negative rate", func(r *StepRequest) { r.Optimizer["lr"] = -1 }},
		{"a negative loss scale", func(r *StepRequest) { r.LossScale = -1 }},
		{"a norm that is null", func(r *StepRequest) { r.Optimizer = LAMB(1).With("max_grad_norm", null) }},
		{"a norm by pointer", func(r *StepRequest) { r.Optimizer = LAMB(1).With("max_grad_norm", &one) }},
	}
	refused, stepped := 0, 0
	for _, mode := range []NonFinite{"", Fail, Skip, Propagate, "bogus"} {
		for i, first := range faults {
			for _, second := range faults[i+1:] {
				request := func() StepRequest {
					request := StepRequest{Optimizer: AdamW(0.1), Params: fresh(1), Grads: fresh(2), NonFinite: mode, Stats: GlobalStats,
						Schedule: Schedule{"name": "exponential", "gamma": 0.5}}
					first.apply(&request)
					second.apply(&request)
					return request
				}
				about := fmt.Sprintf("%s and %s, %q", first.name, second.name, mode)
				expected, expectedErr := whole.Step(ctx, request())
				found, err := sharded.Step(ctx, request())
				if expectedErr != nil {
					refused++
					requireSameRefusal(t, about, err, expectedErr)
					continue
				}
				stepped++
				if err != nil {
					t.Errorf("%s: %v", about, err)
					continue
				}
				requireSame(t, found.Params, expected.Params)
				if string(found.State.Bytes()) != string(expected.State.Bytes()) || found.Skipped != expected.Skipped || found.LR != expected.LR || found.Step != expected.Step {
					t.Errorf("%s: %+v, expected %+v", about, found, expected)
				}
				if (found.Stats == nil) != (expected.Stats == nil) || (found.Stats != nil && (found.Stats.NonFinite != expected.Stats.NonFinite || found.Stats.Zeros != expected.Stats.Zeros || found.Stats.Clipped != expected.Stats.Clipped)) {
					t.Errorf("%s: %+v, expected %+v", about, found.Stats, expected.Stats)
				}
			}
		}
	}
	if refused < 500 || stepped < 50 {
		t.Fatalf("%d were refused and %d not", refused, stepped)
	}
}

func requireSameRefusal(t *testing.T, about string, err, expectedErr error) {
	t.Helper()
	var found, expected *Error
	if !errors.As(expectedErr, &expected) {
		t.Fatalf("%s: %v", about, expectedErr)
	}
	if !errors.As(err, &found) || found.Name != expected.Name || found.Field != expected.Field || found.Expected != expected.Expected ||
		found.Code != expected.Code || found.Status != expected.Status || !slices.Equal(found.Tensors, expected.Tensors) ||
		found.Found != expected.Found || found.Message != expected.Message {
		t.Errorf("%s: %v, expected %v", about, err, expectedErr)
	}
}

func TestShardedNamesEightTensors(t *testing.T) {
	var params, grads Tensors
	for i := range 20 {
		name := fmt.Sprint("w", (i*7)%20)
		params = append(params, From(name, []float32{1}))
		grads = append(grads, From(name, []float32{float32(math.NaN())}))
	}
	request := StepRequest{Optimizer: SGD(1), Params: params, Grads: grads}
	sharded := newSharded(t, shared.url)
	sharded.RequestBytes = 8
	_, expected := newClient(t, shared.url).Step(testContext(t), request)
	_, err := sharded.Step(testContext(t), request)
	requireSameRefusal(t, "twenty NaNs", err, expected)
	var refusal *Error
	if errors.As(err, &refusal); len(refusal.Tensors) != namedTensors {
		t.Fatal(refusal.Tensors)
	}
}

// A norm of finite gradients may overflow, and JSON has no number for it.
func TestShardedNormsBeyondFloat64(t *testing.T) {
	for _, mode := range []NonFinite{Fail, Skip, Propagate} {
		requireSameRuns(t, 2, func(int) StepRequest {
			params := append(model(1), From("wide", []float64{1, 2}))
			grads := append(model(2), From("wide", []float64{1e200, -1e200}))
			return StepRequest{Optimizer: AdamW(0.1), Params: params, Grads: grads, NonFinite: mode, Clip: &Clip{MaxNorm: 1}, Stats: TensorStats}
		})
		for _, clip := range []*Clip{nil, {MaxValue: 1}, {MaxNorm: 1}} {
			requireSameRuns(t, 2, func(int) StepRequest {
				params, grads := append(model(1), From("wide", []float64{1, 2})), append(model(2), From("wide", []float64{1e200, -1e200}))
				return StepRequest{Optimizer: LAMB(0.1).With("max_grad_norm", 1), Params: params, Grads: grads, NonFinite: mode, Clip: clip, Stats: TensorStats}
			})
		}
	}
}
