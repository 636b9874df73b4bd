package stepd

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestResidentRun compares a run on a server that is killed in mid-run with a run that sends everything.
func TestResidentRun(t *testing.T) {
	ctx := testContext(t)
	own := ownServer(t, "STEPD_CACHE_MIB=64")
	address, err := url.Parse(own.url)
	if err != nil {
		t.Fatal(err)
	}
	plain := newClient(t, shared.url)
	sharded := must[*Sharded](t)(NewSharded([]string{own.url}, WithTimeout(20*time.Second)))
	sharded.RequestBytes = 1
	runs := map[string]*ResidentRun{
		"client":  NewResidentRun(newClient(t, own.url), model(1), nil),
		"sharded": NewResidentRun(sharded, model(1), nil),
	}
	for _, run := range runs {
		run.FetchEvery = 7
	}
	optimizer := AdamW(0.01)
	expected := &StepResult{Params: model(1)}
	for step := range uint64(24) {
		if step == 11 {
			own.kill()
			ownServer(t, "STEPD_CACHE_MIB=64", "STEPD_PORT="+address.Port())
		}
		optimizer["lr"] = 0.01 / float64(step+1)
		grads := model(step + 2)
		expected = must[*StepResult](t)(plain.Step(ctx, StepRequest{Optimizer: optimizer, Params: expected.Params, Grads: grads, State: expected.State}))
		for name, run := range runs {
			found := must[*StepResult](t)(run.Step(ctx, StepRequest{Optimizer: optimizer, Grads: grads}))
			requireSame(t, found.Params, expected.Params)
			if !errors.Is(found.State.Err(), ErrStateKept) {
				t.Fatalf("%s: the state came", name)
			}
		}
		// The run has its own copy of the gradients.
		clear(grads[0].Data)
	}
	for _, run := range runs {
		params, state, err := run.Fetch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		requireSame(t, params, expected.Params)
		if !slices.Equal(state.Bytes(), expected.State.Bytes()) {
			t.Fatal("another state")
		}
	}
}

func TestResidentRunSendsGradients(t *testing.T) {
	ctx := testContext(t)
	transport := &countingTransport{RoundTripper: newClient(t, shared.url).http.Transport}
	run := NewResidentRun(newClient(t, shared.url, WithHTTPClient(&http.Client{Transport: transport})), largeTensors(1, F32), nil)
	first := must[*StepResult](t)(run.Step(ctx, StepRequest{Optimizer: AdamW(0.01), Grads: largeTensors(2, F32)}))
	transport.bytes.Store(0)
	grads := largeTensors(3, F32)
	into := copyTensors(first.Params)
	result := must[*StepResult](t)(run.Step(ctx, StepRequest{Optimizer: AdamW(0.01), Grads: grads, Into: into}))
	requireSame(t, result.Params, into)
	if sent, own := transport.bytes.Load(), stepBytes(StepRequest{Grads: grads}); sent > own+4096 {
		t.Fatalf("%d bytes were sent, and the gradients have %d", sent, own)
	}
}

func TestInvalidResidentRun(t *testing.T) {
	ctx := testContext(t)
	client := newClient(t, shared.url)
	request := StepRequest{Optimizer: AdamW(0.01), Grads: model(2)}
	for what, c := range map[string]struct {
		run    *ResidentRun
		change func(*StepRequest)
		found  string
	}{
		"none":             {nil, func(*StepRequest) {}, "expected a ResidentRun of NewResidentRun"},
		"zero":             {&ResidentRun{}, func(*StepRequest) {}, "expected a ResidentRun of NewResidentRun"},
		"parameters":       {NewResidentRun(client, model(1), nil), func(r *StepRequest) { r.Params = model(1) }, "without Params, State and Cached"},
		"updates":          {NewResidentRun(client, model(1), nil), func(r *StepRequest) { r.Grads, r.Reduce = nil, &ReduceRequest{} }, "found one with Reduce"},
		"a cached reply":   {NewResidentRun(client, model(1), nil), func(r *StepRequest) { r.Reply.Cache = true }, "whose Reply has Params alone"},
		"a server without": {NewResidentRun(newClient(t, ownServer(t).url), model(1), nil), func(*StepRequest) {}, "STEPD_CACHE_MIB"},
	} {
		changed := request
		c.change(&changed)
		if _, err := c.run.Step(ctx, changed); err == nil || !strings.Contains(fmt.Sprint(err), c.found) {
			t.Errorf("%s: %v", what, err)
		}
	}
	run := NewResidentRun(client, model(1), nil)
	before := must[*StepResult](t)(run.Step(ctx, request))
	bad := request
	bad.Grads = Tensors{From("w", []float32{1})}
	if _, err := run.Step(ctx, bad); err == nil {
		t.Fatal("a gradient without a parameter")
	}
	params, _, err := run.Fetch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	requireSame(t, params, before.Params)
}
