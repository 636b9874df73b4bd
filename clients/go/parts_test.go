package stepd

import (
	"errors"
	"math"
	"net/http"
	"slices"
	"testing"
	"time"
)

// partsTensors returns a tensor of eleven shards, of which the last is short, and small tensors.
func partsTensors(seed uint64, dtype DType) Tensors {
	tensors := model(seed)
	big := From("größe", random(seed+100, 720_002), 2, 360_001)
	if dtype == BF16 {
		bits := make([]byte, 2*720_002)
		for i := range 720_002 {
			copy(bits[2*i:], big.Data[4*i+2:4*i+4])
		}
		big = Tensor{Name: big.Name, DType: BF16, Shape: big.Shape, Data: bits}
	}
	return append(tensors, big)
}

// TestParts compares steps in parts over two connections with steps of one call.
func TestParts(t *testing.T) {
	ctx := testContext(t)
	plain, split := newClient(t, shared.url), newClient(t, shared.url, WithParts(2))
	seed := uint64(7)
	for name, c := range map[string]StepRequest{
		"plain":               {Optimizer: AdamW(0.01)},
		"clip":                {Optimizer: AdamW(0.01), Clip: &Clip{MaxNorm: 0.5}, LossScale: 8},
		"skip":                {Optimizer: AdamW(0.01), NonFinite: Skip},
		"moments in 8 bits":   {Optimizer: AdamW(0.01).With("state_dtype", "Q8"), RoundingSeed: &seed},
		"stochastic rounding": {Optimizer: AdamW(0.01), RoundingSeed: &seed},
		"scalar slots":        {Optimizer: Optimizer{"name": "nadam"}},
		"whole tensors":       {Optimizer: LAMB(0.01)},
	} {
		t.Run(name, func(t *testing.T) {
			dtype := F32
			if c.RoundingSeed != nil {
				dtype = BF16
			}
			one, two := c, c
			one.Params = partsTensors(1, dtype)
			two.Params = one.Params
			for step := range uint64(2) {
				one.Grads = partsTensors(2+step, F32)
				two.Grads = one.Grads
				if !split.splits(two) {
					t.Fatal("the step is one call")
				}
				two.Into = slices.Clone(two.Params)
				for i := range two.Into {
					two.Into[i].Data = slices.Clone(two.Into[i].Data)
				}
				expected := must[*StepResult](t)(plain.Step(ctx, one))
				found := must[*StepResult](t)(split.Step(ctx, two))
				requireSameStep(t, found, expected)
				requireSame(t, two.Into, expected.Params)
				one.Params, one.State = expected.Params, expected.State
				two.Params, two.State = found.Params, found.State
			}
		})
	}
}

func TestPartsStayOnTheServer(t *testing.T) {
	ctx := testContext(t)
	plain, split := newClient(t, shared.url), newClient(t, shared.url, WithParts(2))
	request := StepRequest{Optimizer: AdamW(0.01), Params: partsTensors(1, F32), Grads: partsTensors(2, F32)}
	expected := must[*StepResult](t)(plain.Step(ctx, request))
	request.Reply = Reply{Cache: true, State: ReplyNone}
	found := must[*StepResult](t)(split.Step(ctx, request))
	if len(found.Cached.shards) < 4 {
		t.Fatalf("%d calls", len(found.Cached.shards))
	}
	next := StepRequest{Optimizer: AdamW(0.01), Grads: partsTensors(3, F32), Cached: found.Cached}
	expected = must[*StepResult](t)(plain.Step(ctx, StepRequest{
		Optimizer: AdamW(0.01), Params: expected.Params, State: expected.State, Grads: next.Grads,
	}))
	result := must[*StepResult](t)(split.Step(ctx, next))
	for _, param := range result.Params {
		requireSame(t, Tensors{param}, Tensors{byName(expected.Params)[param.Name]})
	}
	if !slices.Equal(result.State.Bytes(), expected.State.Bytes()) {
		t.Fatal("another state")
	}
}

func TestPartsSendGradientsOnce(t *testing.T) {
	ctx := testContext(t)
	transport := &countingTransport{RoundTripper: http.DefaultTransport}
	plain, split := newClient(t, shared.url), newClient(t, shared.url, WithParts(2), WithHTTPClient(&http.Client{Transport: transport}))
	request := StepRequest{Optimizer: AdamW(0.01), Params: partsTensors(1, F32), Grads: partsTensors(2, F32), Clip: &Clip{MaxNorm: 0.1}}
	expected := must[*StepResult](t)(plain.Step(ctx, request))
	requireSameStep(t, must[*StepResult](t)(split.Step(ctx, request)), expected)
	if sent, once := transport.bytes.Load(), stepBytes(request); sent > once+64<<10 {
		t.Fatalf("%d bytes were sent for tensors of %d", sent, once)
	}
}

func TestNormsKeepGradientsForOneStep(t *testing.T) {
	ctx := testContext(t)
	client := newClient(t, shared.url)
	request := StepRequest{Optimizer: AdamW(0.01), Params: partsTensors(1, F32), Grads: partsTensors(2, F32)}
	expected := must[*StepResult](t)(client.Step(ctx, request))
	norms := must[*Norms](t)(client.Norms(ctx, NormsRequest{Grads: request.Grads, Keep: true}))
	request.Cached = norms.Cached
	grads := request.Grads
	request.Grads = nil
	requireSameStep(t, must[*StepResult](t)(client.Step(ctx, request)), expected)
	if _, err := client.Step(ctx, request); !errors.Is(err, ErrBlobMissing) {
		t.Fatalf("%v", err)
	}
	request.Grads = grads
	requireSameStep(t, must[*StepResult](t)(client.Step(ctx, request)), expected)
}

func TestPartsGrowWithTheRoundTripAndTheRate(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		sent            int64
		took, roundTrip time.Duration
		least, most     int64
	}{
		{64 * mib, 500 * time.Millisecond, 50 * time.Millisecond, 25 * mib, 32 * mib},
		{256 * mib, 250 * time.Millisecond, 100 * time.Microsecond, 12 * mib, 14 * mib},
		{32 * mib, time.Second, 100 * time.Microsecond, 2 * mib, 2 * mib},
		{1 << 40, time.Millisecond, time.Second, 64 * mib, 64 * mib},
	} {
		if found := partBytesFor(c.sent, c.took, c.roundTrip); found < c.least || found > c.most {
			t.Errorf("%+v: %d", c, found)
		}
	}
	client := newClient(t, shared.url, WithParts(2))
	request := StepRequest{Optimizer: AdamW(0.01), Params: partsTensors(1, F32), Grads: partsTensors(2, F32)}
	must[*StepResult](t)(client.Step(testContext(t), request))
	if client.roundTrip.Load() <= 0 || client.partBytes.Load() < firstPartBytes {
		t.Fatalf("round trip %d ns, parts of %d bytes", client.roundTrip.Load(), client.partBytes.Load())
	}
	// Each connection has two parts at least.
	sharded := &Sharded{Clients: []*Client{client}, Parallel: 2}
	sharded.partBytes.Store(32 * mib)
	if one, two := sharded.partLimit(64*mib), sharded.partLimit(1<<40); one != 16*mib || two != 32*mib {
		t.Fatalf("parts of %d and %d bytes", one, two)
	}
}

func TestPartsNameNonFiniteGradients(t *testing.T) {
	ctx := testContext(t)
	request := StepRequest{Optimizer: AdamW(0.01), Params: partsTensors(1, F32), Grads: partsTensors(2, F32)}
	values := must[[]float32](t)(Values[float32](request.Grads[len(request.Grads)-1]))
	values[3], values[720_001] = float32(math.NaN()), float32(math.Inf(1))
	_, expected := newClient(t, shared.url).Step(ctx, request)
	_, found := newClient(t, shared.url, WithParts(2)).Step(ctx, request)
	one, two := (*Error)(nil), (*Error)(nil)
	if !errors.As(expected, &one) || !errors.As(found, &two) || one.Found != two.Found || !slices.Equal(one.Tensors, two.Tensors) {
		t.Fatalf("%v is not %v", found, expected)
	}
}

func TestPartsOnThisHost(t *testing.T) {
	for address, parts := range map[string]int{
		"http://stepd.example": 2, "http://127.0.0.1": 1, "http://[::1]:8080": 1, "http://localhost": 1, "unix:///run/stepd": 1,
	} {
		if client := newClient(t, address); client.parts != parts {
			t.Errorf("%s: %d connections", address, client.parts)
		}
	}
}
