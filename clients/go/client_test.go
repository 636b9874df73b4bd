package stepd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"regexp"
	"strings"
	"testing"
)

func TestStepContinuesFromItsState(t *testing.T) {
	client, ctx := newClient(t, shared.url), testContext(t)
	params, before := model(1), clone(model(1))
	first := must[*StepResult](t)(client.Step(ctx, StepRequest{Optimizer: AdamW(0.01), Params: params, Grads: model(2), Stats: TensorStats}))
	requireSame(t, params, before)
	if first.Step != 1 || first.LR != 0.01 || first.Skipped || first.State.Optimizer() != "adamw" {
		t.Fatalf("%+v", first)
	}
	if s := first.Stats; s.GradNorm <= 0 || s.Tensors["scale"].GradNorm <= 0 || s.Tensors["scale"].TrustRatio != nil || s.Clipped {
		t.Fatalf("%+v", s)
	}
	second := must[*StepResult](t)(client.Step(ctx, StepRequest{Optimizer: AdamW(0.01), Params: first.Params, Grads: model(3), State: first.State}))
	if steps := second.State.Steps(); steps["layer.weight"] != 2 || len(steps) != len(testShapes) || second.Stats != nil {
		t.Fatalf("%v", steps)
	}
	slot, ok := must[Tensors](t)(second.State.Slot("exp_avg")).Get("layer.bias")
	if values := must[[]float32](t)(Values[float32](slot)); !ok || len(values) != 40 || values[0] == 0 {
		t.Fatalf("%v", values)
	}
}

func TestMissingSlot(t *testing.T) {
	client, ctx := newClient(t, shared.url), testContext(t)
	state := must[*StepResult](t)(client.Step(ctx, StepRequest{Optimizer: AdamW(0.01), Params: model(1), Grads: model(2)})).State
	for _, name := range []string{"exp_avgs", "max_exp_avg_sq", "step", ""} {
		slot, err := state.Slot(name)
		expected := fmt.Sprintf(`expected one of ["exp_avg" "exp_avg_sq"], found %q`, name)
		if slot != nil || !errors.Is(err, ErrNoSlot) || !strings.HasSuffix(err.Error(), expected) {
			t.Errorf("%v, %v", slot, err)
		}
	}
}

func TestIntoWritesInPlace(t *testing.T) {
	client, ctx := newClient(t, shared.url), testContext(t)
	request := StepRequest{Optimizer: AdamW(0.01), Params: model(1), Grads: model(2)}
	fresh := must[*StepResult](t)(client.Step(ctx, request))
	weights := random(100, 2000)
	request.Params[0] = From("layer.weight", weights, 50, 40)
	request.Into = request.Params
	same := must[*StepResult](t)(client.Step(ctx, request))
	requireSame(t, same.Params, fresh.Params)
	requireSame(t, request.Params, fresh.Params)
	if values := must[[]float32](t)(Values[float32](fresh.Params[0])); values[7] != weights[7] {
		t.Fatal("the caller's own slice was not written")
	}
	kept := clone(request.Params)
	request.Grads = Tensors{From("scale", []float32{float32(math.NaN())}).Scalar()}
	if _, err := client.Step(ctx, request); !errors.Is(err, ErrNonFiniteGradient) {
		t.Fatal(err)
	}
	requireSame(t, request.Params, kept)
	request.Into = model(1)[1:]
	if _, err := client.Step(ctx, request); !errors.Is(err, ErrBadTensor) {
		t.Fatal(err)
	}
}

func TestAllDTypes(t *testing.T) {
	client, ctx := newClient(t, shared.url), testContext(t)
	tensors := Tensors{
		FromBits("half", BF16, []uint16{0x3f80, 0x4000, 0x3f80}), From("double", []float64{1, 2}), FromBits("short", F16, []uint16{0x3c00}), From("single", []float32{1}),
	}
	result := must[*StepResult](t)(client.Step(ctx, StepRequest{Optimizer: SGD(0.5), Params: tensors, Grads: tensors}))
	requireSame(t, result.Params, Tensors{
		FromBits("half", BF16, []uint16{0x3f00, 0x3f80, 0x3f00}), From("double", []float64{0.5, 1}), FromBits("short", F16, []uint16{0x3800}), From("single", []float32{0.5}),
	})
	if values := must[[]float64](t)(Values[float64](result.Params[1])); &values[0] == nil || values[1] != 1 {
		t.Fatal(values)
	}
	seed := uint64(7)
	request := StepRequest{Optimizer: AdamW(0.1), Params: tensors[:1], Grads: tensors[:1], MasterWeights: true, RoundingSeed: &seed}
	master := must[*StepResult](t)(client.Step(ctx, request))
	if slot := must[Tensors](t)(master.State.Slot("master_param")); len(slot) != 1 || slot[0].DType != F32 {
		t.Fatalf("%v", master.State.SlotNames())
	}
}

func TestErrorsHaveTheServersFields(t *testing.T) {
	client, ctx := newClient(t, shared.url), testContext(t)
	_, err := client.Step(ctx, StepRequest{Optimizer: AdamW(-1), Params: model(1), Grads: model(1)})
	var refusal *Error
	if !errors.As(err, &refusal) || !errors.Is(err, ErrInvalidParams) || errors.Is(err, ErrOverloaded) {
		t.Fatal(err)
	}
	expected := Error{Code: -32602, Name: ErrInvalidParams, Message: refusal.Message, Field: "/optimizer/lr", Expected: "at least 0", Found: "-1",
		RequestID: refusal.RequestID, Status: 400}
	if refusal.Error() != expected.Error() || refusal.Field != expected.Field || refusal.Expected != expected.Expected || refusal.Found != expected.Found ||
		refusal.Code != expected.Code || refusal.Status != expected.Status {
		t.Fatalf("%+v", refusal)
	}
	if !regexp.MustCompile(`^[0-9a-f-]{36}$`).MatchString(refusal.RequestID) {
		t.Fatal(refusal.RequestID)
	}

	named := newClient(t, shared.url, WithRequestID(func(context.Context) string { return "run-7:step.1" }))
	_, err = named.Step(ctx, StepRequest{Optimizer: Optimizer{"name": "adamv"}, Params: model(1), Grads: model(1)})
	if !errors.As(err, &refusal) || refusal.RequestID != "run-7:step.1" {
		t.Fatal(err)
	}
}

// Each refusal that a call can cause has the code and the status of the generated table.
func TestErrorTable(t *testing.T) {
	client, ctx := newClient(t, shared.url, WithRetries(0)), testContext(t)
	small := newClient(t, ownServer(t, "STEPD_ARENA_MIB=32").url, WithRetries(0))
	w := func(values ...float32) Tensors { return Tensors{From("w", values)} }
	step := func(c *Client, request StepRequest) error {
		_, err := c.Step(ctx, request)
		return err
	}
	sgd := must[*StepResult](t)(client.Step(ctx, StepRequest{Optimizer: SGD(1).With("momentum", 0.9), Params: w(1), Grads: w(1)})).State
	unknown := must[*State](t)(newState(optimizers{optimizer: "none", revision: "1"}, []Tensor{{Name: "step/w", DType: I64, Shape: []int{}, Data: make([]byte, 8)}}))
	big := w(make([]float32, 16<<20)...)
	failures := map[ErrorName]error{
		ErrInvalidParams:     step(client, StepRequest{Optimizer: Optimizer{"name": "adamw", "momentum": 1}, Params: w(1), Grads: w(1)}),
		ErrUnsupportedDType:  step(client, StepRequest{Optimizer: SGD(1), Params: Tensors{{Name: "w", DType: "I32", Shape: []int{1}, Data: make([]byte, 4)}}}),
		ErrTensorMismatch:    step(client, StepRequest{Optimizer: SGD(1), Params: w(1), Grads: w(1, 2)}),
		ErrStateMismatch:     step(client, StepRequest{Optimizer: AdamW(1), Params: w(1), Grads: w(1), State: sgd}),
		ErrStateCorrupt:      step(client, StepRequest{Optimizer: AdamW(1), Params: w(1), Grads: w(1), State: unknown}),
		ErrNonFiniteGradient: step(client, StepRequest{Optimizer: SGD(1), Params: w(1), Grads: w(float32(math.Inf(1)))}),
		ErrPayloadTooLarge:   step(small, StepRequest{Optimizer: SGD(1), Params: big, Grads: big}),
	}
	failures[ErrNotFound] = client.json(ctx, "/v2", nil, new(any), 0)
	failures[ErrMethodNotAllowed] = client.json(ctx, "/v1/step", nil, new(any), 0)
	for name, err := range failures {
		var refusal *Error
		if !errors.As(err, &refusal) || !errors.Is(err, name) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if entry := errorTable[name]; refusal.Code != entry.code || refusal.Status != entry.status {
			t.Errorf("%s: %d, HTTP %d; the table has %+v", name, refusal.Code, refusal.Status, entry)
		}
	}
}

func TestInconsistentTensorsAreNotSent(t *testing.T) {
	client, ctx := newClient(t, shared.url), testContext(t)
	for name, tensors := range map[string]Tensors{
		"shape":    {From("w", []float32{1}, 2)},
		"negative": {From("w", []float32{}, -1)},
		"overflow": {{Name: "w", DType: F32, Shape: []int{1 << 30, 1 << 30, 1 << 30}}},
		"dtype":    {{Name: "w", DType: "F31", Shape: []int{1}, Data: make([]byte, 4)}},
		"twice":    {From("w", []float32{1}), From("w", []float32{1})},
		"reserved": {From("__metadata__", []float32{1})},
		"UTF-8":    {From("\xff", []float32{1})},
	} {
		if _, err := client.Step(ctx, StepRequest{Optimizer: SGD(1), Params: tensors}); !errors.Is(err, ErrBadTensor) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOtherMethods(t *testing.T) {
	client, ctx := newClient(t, shared.url), testContext(t)
	params := model(1)
	state := must[*State](t)(client.Init(ctx, InitRequest{Optimizer: AdamW(0.01), Params: params}))
	if state.Steps()["scale"] != 0 || len(state.SlotNames()) != 2 {
		t.Fatalf("%v %v", state.Steps(), state.SlotNames())
	}
	info := must[*StateInfo](t)(client.Inspect(ctx, state))
	if info.Optimizer != "adamw" || info.Bytes != int64(len(state.Bytes())) || info.Tensors["layer.weight"].Slots["exp_avg"].Shape[1] != 40 {
		t.Fatalf("%+v", info)
	}

	free := Optimizer{"name": "schedule_free_sgd"}
	training := must[*StepResult](t)(client.Step(ctx, StepRequest{Optimizer: free, Params: Tensors{From("w", []float32{1, 2})}, Grads: Tensors{From("w", []float32{1, 1})}}))
	training = must[*StepResult](t)(client.Step(ctx, StepRequest{Optimizer: free, Params: training.Params, Grads: Tensors{From("w", []float32{2, 2})}, State: training.State}))
	averages := must[Tensors](t)(client.Average(ctx, AverageRequest{Optimizer: free, Params: training.Params, State: training.State}))
	// x is the mean of z: [0, 1] after the first step, [-2, -1] after the second.
	if x := must[[]float32](t)(Values[float32](averages[0])); math.Abs(float64(x[0])+1) > 1e-6 || math.Abs(float64(x[1])) > 1e-6 {
		t.Fatalf("%v", x)
	}
	if _, err := client.Average(ctx, AverageRequest{Optimizer: free, Params: training.Params}); err == nil {
		t.Fatal("an average without a state")
	}

	norms := must[*Norms](t)(client.Norms(ctx, NormsRequest{Grads: Tensors{From("w", []float32{3, 4, 0})}, Params: Tensors{From("w", []float32{1, 1, 1})}, LossScale: 2}))
	if w := norms.Tensors["w"]; norms.GradNorm != 2.5 || w.GradSquares != 6.25 || *w.ParamSquares != 3 || w.Zeros != 1 || w.NonFinite != 0 {
		t.Fatalf("%+v", norms)
	}
	norms = must[*Norms](t)(client.Norms(ctx, NormsRequest{Grads: Tensors{From("w", []float32{float32(math.NaN())}), From("v", []float32{float32(math.Inf(-1))})}}))
	if !math.IsNaN(norms.GradNorm) || !math.IsInf(norms.Tensors["v"].GradSquares, 1) || norms.Tensors["w"].NonFinite != 1 || norms.Tensors["w"].ParamSquares != nil {
		t.Fatalf("%+v", norms)
	}

	plan := must[*Plan](t)(client.Plan(ctx, PlanRequest{Optimizer: AdamW(0.01), Params: Tensors{{Name: "w", DType: BF16, Shape: []int{10}}}, GradDType: F32, MasterWeights: true}))
	if plan.Parameters != 10 || !plan.Fits || plan.Requests != 1 || plan.BytesIn < 10*(2+4+12) {
		t.Fatalf("%+v", plan)
	}

	lr := 0.5
	rates := must[*Rates](t)(client.EvaluateSchedule(ctx, ScheduleRequest{Schedule: Schedule{"name": "step", "step_size": 2}, LR: &lr, From: 1, Count: 2}))
	if len(rates.LRs) != 2 || rates.LRs[0] != 0.5 || rates.LRs[1] != 0.05 || rates.Momentums != nil {
		t.Fatalf("%+v", rates)
	}
	cycled := Schedule{"name": "sequence", "milestones": []int{1}, "schedules": []any{
		Schedule{"name": "constant"}, Schedule{"name": "one_cycle", "max_lr": 0.1, "total_steps": 5}}}
	rates = must[*Rates](t)(client.EvaluateSchedule(ctx, ScheduleRequest{Schedule: cycled, Count: 2}))
	if rates.Momentums[0] != nil || *rates.Momentums[1] != 0.95 {
		t.Fatalf("%+v", rates)
	}

	found := false
	for _, optimizer := range must[[]OptimizerInfo](t)(client.Optimizers(ctx)) {
		found = found || (optimizer.Name == "lamb" && optimizer.Formula != "")
	}
	if !found {
		t.Fatal("no lamb")
	}
	description := must[*Description](t)(client.Describe(ctx, "adamw"))
	if description.Title != "AdamW" || description.Slots.Default[0] != "exp_avg" || description.BytesPerParameter.In != 16 || !bytes.Contains(description.Hyperparameters, []byte("weight_decay")) {
		t.Fatalf("%+v", description)
	}
	if info := must[*Info](t)(client.Info(ctx)); info.Name != "stepd" || info.Limits["arena_bytes"] == 0 {
		t.Fatalf("%+v", info)
	}
	if !must[bool](t)(client.Ready(ctx)) {
		t.Fatal("not ready")
	}
	if ready, err := newClient(t, "http://127.0.0.1:1").Ready(ctx); ready || !errors.As(err, new(*TransportError)) {
		t.Fatal(ready, err)
	}
}

func TestEveryOptionIsSent(t *testing.T) {
	client, ctx := newClient(t, shared.url), testContext(t)
	request := StepRequest{
		Optimizer: AdamW(0.1).With("betas", []float64{0.9, 0.95}),
		Groups:    []Group{{Tensors: []string{"*.bias"}, Optimizer: Optimizer{"weight_decay": 0}}},
		Params:    model(1), Grads: model(2),
		Schedule: Schedule{"name": "linear", "start_factor": 0.5},
		Clip:     &Clip{MaxNorm: 0.25}, LossScale: 4, NonFinite: Propagate, Stats: GlobalStats,
	}
	result := must[*StepResult](t)(client.Step(ctx, request))
	if result.LR != 0.05 || !result.Stats.Clipped || result.Stats.Tensors != nil || result.Stats.NonFinite != 0 {
		t.Fatalf("%+v %+v", result, result.Stats)
	}
	request.Grads = Tensors{From("layer.bias", append([]float32{float32(math.Inf(1))}, make([]float32, 39)...))}
	request.NonFinite = Skip
	request.State = result.State
	skipped := must[*StepResult](t)(client.Step(ctx, request))
	if !skipped.Skipped || skipped.Step != 1 || !bytes.Equal(skipped.State.Bytes(), result.State.Bytes()) {
		t.Fatalf("%+v", skipped)
	}
	request.Grads = Tensors{From("scale", []float32{1e30}).Scalar()}
	request.Clip, request.LossScale = nil, 0
	if warned := must[*StepResult](t)(client.Step(ctx, request)); len(warned.Warnings) != 1 {
		t.Fatalf("%+v", warned)
	}
}

func TestAddressesAndOptions(t *testing.T) {
	for _, address := range []string{"", "127.0.0.1:80", "ftp://host", "unix://path", "unix://", "http://", "http://u:p@host", "http://host/?q=1", "://"} {
		if _, err := New(address); err == nil {
			t.Errorf("%q was taken", address)
		}
	}
	if _, err := New("unix:///tmp/x", WithHTTPClient(newClient(t, "http://host").http)); err == nil {
		t.Error("an HTTP client for a Unix socket was taken")
	}
}

func TestUnixSocket(t *testing.T) {
	folder, err := os.MkdirTemp("", "stepd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	ownServer(t, "STEPD_SOCKET="+folder+"/s")
	client, ctx := newClient(t, "unix://"+folder+"/s"), testContext(t)
	request := StepRequest{Optimizer: AdamW(0.01), Params: model(1), Grads: model(2)}
	found := must[*StepResult](t)(client.Step(ctx, request))
	expected := must[*StepResult](t)(newClient(t, shared.url).Step(ctx, request))
	requireSame(t, found.Params, expected.Params)
}
