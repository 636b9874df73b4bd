package stepd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/http"
	"strings"
	"testing"
)

func TestCachedBlobsAreNotSent(t *testing.T) {
	ctx := testContext(t)
	plain := newClient(t, shared.url)
	for name, options := range map[string][]Option{"TCP": nil, "shared": {WithSharedDir(sharedDir)}} {
		t.Run(name, func(t *testing.T) {
			sent := &countingTransport{RoundTripper: plain.http.Transport}
			client := newClient(t, shared.url, append(options, WithHTTPClient(&http.Client{Transport: sent}))...)
			request := StepRequest{Optimizer: AdamW(0.01), Params: largeTensors(1, F32), Reply: Reply{Cache: true}}
			other := StepRequest{Optimizer: AdamW(0.01), Params: request.Params}
			for i := range uint64(4) {
				request.Grads, other.Grads = largeTensors(i+2, F32), largeTensors(i+2, F32)
				sent.bytes.Store(0)
				found := must[*StepResult](t)(client.Step(ctx, request))
				expected := must[*StepResult](t)(plain.Step(ctx, other))
				if request.Params == nil {
					// Only the server knew the order of the parameters.
					found.Params = inOrder(found.Params, expected.Params)
				}
				requireSameStep(t, found, expected)
				if found.Cached == nil || found.Cached.Params == "" || found.Cached.State == "" || expected.Cached != nil {
					t.Fatalf("%+v", found.Cached)
				}
				if most := 200_000; i > 0 && sent.bytes.Load() > int64(most) {
					t.Fatalf("%d bytes were sent, and the gradients have fewer than %d", sent.bytes.Load(), most)
				}
				request.Params, request.State, request.Cached = found.Params, found.State, found.Cached
				if i == 1 {
					// The request needs no values, because the server has both blobs.
					request.Params, request.State = nil, nil
				}
				other.Params, other.State = expected.Params, expected.State
			}
		})
	}
}

func TestCacheMiss(t *testing.T) {
	ctx := testContext(t)
	proxy := newFlaky()
	client := newClient(t, serve(t, proxy).URL, WithRetries(0))
	request := StepRequest{Optimizer: AdamW(0.01), Params: largeTensors(1, F32), Grads: largeTensors(2, F32), Reply: Reply{Cache: true}}
	// The other server has an empty cache, as after a restart.
	first := must[*StepResult](t)(newClient(t, ownServer(t, "STEPD_CACHE_MIB=64").url).Step(ctx, request))
	request.Params, request.State, request.Cached = first.Params, first.State, first.Cached
	expected := must[*StepResult](t)(newClient(t, shared.url).Step(ctx, StepRequest{Optimizer: AdamW(0.01), Params: first.Params, Grads: request.Grads, State: first.State}))
	found := must[*StepResult](t)(client.Step(ctx, request))
	requireSameStep(t, found, expected)
	if len(proxy.seen) != 2 || found.Cached == nil {
		t.Fatal(len(proxy.seen))
	}
	request.State = nil
	for name, change := range map[string]func(*StepRequest){
		"no state":             func(*StepRequest) {},
		"no values":            func(r *StepRequest) { r.Params = nil },
		"a state left there":   func(r *StepRequest) { r.State = &State{onServer: true} },
		"rounded parameters":   func(r *StepRequest) { r.State = first.State; r.Cached.otherParams = true },
		"a state of elsewhere": func(r *StepRequest) { r.State = first.State; r.Cached.otherState = true },
	} {
		t.Run(name, func(t *testing.T) {
			changed := request
			cached := *first.Cached
			changed.Cached = &cached
			change(&changed)
			var refusal *Error
			if _, err := client.Step(ctx, changed); !errors.Is(err, ErrBlobMissing) || !errors.As(err, &refusal) || refusal.Status != http.StatusNotFound {
				t.Fatal(err)
			}
		})
	}
	// The client sends the params, and names the state that the server has cached.
	mixed := request
	mixed.Cached = &Cached{Params: first.Cached.Params, State: found.Cached.State}
	mixed.Params = found.Params
	after := must[*StepResult](t)(client.Step(ctx, mixed))
	whole := must[*StepResult](t)(client.Step(ctx, StepRequest{Optimizer: AdamW(0.01), Params: found.Params, Grads: request.Grads, State: found.State}))
	requireSameStep(t, after, whole)
}

func TestSmallerReplies(t *testing.T) {
	ctx := testContext(t)
	plain := newClient(t, shared.url)
	for name, client := range map[string]*Client{"TCP": plain, "shared": newSharing(t, shared.url, shareBytes)} {
		t.Run(name, func(t *testing.T) {
			request := StepRequest{Optimizer: AdamW(0.01), Params: largeTensors(1, F32), Reply: Reply{Params: ReplyBF16, State: ReplyNone, Cache: true}}
			other := StepRequest{Optimizer: AdamW(0.01), Params: request.Params}
			var bits Tensors
			for i := range uint64(4) {
				request.Grads, other.Grads = largeTensors(i+2, F32), largeTensors(i+2, F32)
				if i == 3 {
					request.Reply = Reply{}
				}
				found := must[*StepResult](t)(client.Step(ctx, request))
				expected := must[*StepResult](t)(plain.Step(ctx, other))
				other.Params, other.State = expected.Params, expected.State
				if i == 3 {
					found.Params = inOrder(found.Params, expected.Params)
					requireSameStep(t, found, expected)
					break
				}
				request.Params, request.State, request.Cached = nil, found.State, found.Cached
				if bits == nil {
					bits = found.Params
				}
				if i == 1 {
					request.Into = bits
				}
				requireSame(t, inOrder(found.Params, expected.Params), rounded(t, expected.Params))
				if !errors.Is(found.State.Err(), ErrStateKept) || !errors.Is(found.State.Save("x"), ErrStateKept) {
					t.Fatal(found.State.Err())
				}
				if _, err := found.State.Slot("exp_avg"); !errors.Is(err, ErrStateKept) {
					t.Fatal(err)
				}
				for name, read := range map[string]func(){
					"Bytes": func() { found.State.Bytes() }, "Steps": func() { found.State.Steps() }, "Step": func() { found.State.Step() }, "Optimizer": func() { found.State.Optimizer() },
					"Revision": func() { found.State.Revision() }, "SlotNames": func() { found.State.SlotNames() },
				} {
					func() {
						defer func() {
							if err, ok := recover().(error); !ok || !errors.Is(err, ErrStateKept) {
								t.Errorf("%s of a state that is not here: %v", name, err)
							}
						}()
						read()
					}()
				}
				if i == 2 {
					request.Into = nil
				}
			}
			none := must[*StepResult](t)(client.Step(ctx, StepRequest{Optimizer: SGD(0.1), Params: largeTensors(1, F32), Grads: largeTensors(2, F32), Reply: Reply{Params: ReplyNone}}))
			if none.Params != nil || none.State.Optimizer() != "sgd" || none.Cached != nil {
				t.Fatalf("%+v", none)
			}
		})
	}
}

// rounded returns the tensors in BF16, rounded to nearest even.
func rounded(t *testing.T, tensors Tensors) (out Tensors) {
	for _, tensor := range tensors {
		words := must[[]uint32](t)(wordsOf(tensor))
		bits := make([]uint16, len(words))
		for i, word := range words {
			bits[i] = uint16((word + 0x7fff + word>>16&1) >> 16)
		}
		half := FromBits(tensor.Name, BF16, bits)
		half.Shape = tensor.Shape
		out = append(out, half)
	}
	return out
}

func inOrder(tensors, order Tensors) (out Tensors) {
	for _, tensor := range order {
		found, _ := tensors.Get(tensor.Name)
		out = append(out, found)
	}
	return out
}

func TestErrorsOfReplyOptions(t *testing.T) {
	ctx := testContext(t)
	client := newClient(t, shared.url)
	step := func(change func(*StepRequest)) error {
		request := StepRequest{Optimizer: AdamW(0.01), Params: model(1), Grads: model(2)}
		change(&request)
		_, err := client.Step(ctx, request)
		return err
	}
	for name, c := range map[string]struct {
		change func(*StepRequest)
		err    error
	}{
		"a state that nobody keeps":   {func(r *StepRequest) { r.Reply.State = ReplyNone }, ErrInvalidParams},
		"an unknown form":             {func(r *StepRequest) { r.Reply.Params = "f8" }, ErrInvalidParams},
		"no handle":                   {func(r *StepRequest) { r.Cached = &Cached{State: strings.Repeat("x", 65)} }, ErrInvalidParams},
		"an unknown handle":           {func(r *StepRequest) { r.Cached = &Cached{State: "x"} }, ErrBlobMissing},
		"BF16 of F64":                 {func(r *StepRequest) { r.Params, r.Grads, r.Reply.Params = largeTensors(1, F64), nil, ReplyBF16 }, ErrUnsupportedDType},
		"a state that is not here":    {func(r *StepRequest) { r.State = &State{onServer: true} }, ErrStateKept},
		"neither values nor a handle": {func(r *StepRequest) { r.Params, r.Cached = nil, &Cached{} }, ErrBadTensor},
		"an Into of another dtype":    {func(r *StepRequest) { r.Into, r.Reply.Params = r.Params, ReplyBF16 }, ErrBadTensor},
	} {
		if err := step(c.change); !errors.Is(err, c.err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := client.Inspect(ctx, &State{onServer: true}); !errors.Is(err, ErrStateKept) {
		t.Error(err)
	}
	// A server without a cache returns no handles.
	uncached := newClient(t, ownServer(t).url)
	if result := must[*StepResult](t)(uncached.Step(ctx, StepRequest{Optimizer: SGD(1), Params: model(1), Reply: Reply{Cache: true}})); result.Cached != nil {
		t.Error(result.Cached)
	}
	// With cached params, the reply may be larger than the request. The test uses a model that is mostly frozen.
	big := Tensors{From("frozen", make([]float32, 5<<20)), From("w", []float32{1})}
	request := StepRequest{Optimizer: SGD(1), Params: big, Reply: Reply{Cache: true}}
	first := must[*StepResult](t)(client.Step(ctx, request))
	second := must[*StepResult](t)(client.Step(ctx, StepRequest{Optimizer: SGD(1), Cached: first.Cached, Grads: Tensors{From("w", []float32{1})}}))
	if w, _ := second.Params.Get("w"); !bytes.Equal(w.Data, make([]byte, 4)) || second.Cached != nil {
		t.Error(w, second.Cached)
	}
}

func wordsOf(tensor Tensor) ([]uint32, error) {
	words := make([]uint32, len(tensor.Data)/4)
	_, err := binary.Decode(tensor.Data, binary.LittleEndian, words)
	return words, err
}
