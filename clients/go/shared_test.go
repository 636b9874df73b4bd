package stepd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// newSharing returns a client that uses a shared folder for calls of at least `least` bytes.
func newSharing(t *testing.T, url string, least int64, options ...Option) *Client {
	t.Helper()
	client := newClient(t, url, append([]Option{WithSharedDir(sharedDir)}, options...)...)
	client.shared.minBytes = least
	return client
}

// largeTensors returns tensors that are large enough for the shared folder.
func largeTensors(seed uint64, dtype DType) Tensors {
	values := random(seed, 40_000)
	switch dtype {
	case F32:
		return append(model(seed), From("big", values, 200, 200))
	case F64:
		doubles := make([]float64, len(values))
		for i, value := range values {
			doubles[i] = float64(value)
		}
		return Tensors{From("big", doubles)}
	}
	bits := make([]uint16, len(values))
	for i := range bits {
		// The values are from 1 to 2, in either dtype.
		bits[i] = 0x3f80 | uint16(i&0x7f)
		if dtype == F16 {
			bits[i] = 0x3c00 | uint16(i&0x3ff)
		}
	}
	return Tensors{FromBits("big", dtype, bits)}
}

func requireSameStep(t *testing.T, found, expected *StepResult) {
	t.Helper()
	requireSame(t, found.Params, expected.Params)
	if !bytes.Equal(found.State.Bytes(), expected.State.Bytes()) || found.Step != expected.Step || found.LR != expected.LR {
		t.Fatal("another state")
	}
}

func TestSharedStepsEqualTCP(t *testing.T) {
	ctx := testContext(t)
	plain := newClient(t, shared.url)
	for name, c := range map[string]struct {
		optimizer Optimizer
		dtype     DType
		masters   bool
	}{
		"adamw F32":          {AdamW(0.01), F32, false},
		"sgd F32":            {SGD(0.01), F32, false},
		"lamb F64":           {LAMB(0.01), F64, false},
		"momentum BF16":      {SGD(0.01).With("momentum", 0.9), BF16, false},
		"nadam F16":          {Optimizer{"name": "nadam"}, F16, false},
		"adamw BF16 masters": {AdamW(0.01), BF16, true},
	} {
		t.Run(name, func(t *testing.T) {
			sent := &countingTransport{RoundTripper: plain.http.Transport}
			client := newSharing(t, shared.url, shareBytes, WithHTTPClient(&http.Client{Transport: sent}))
			request := StepRequest{Optimizer: c.optimizer, Params: largeTensors(1, c.dtype), MasterWeights: c.masters, Clip: &Clip{MaxNorm: 1}}
			other := request
			inPlace := request
			inPlace.Params = clone(request.Params)
			inPlace.Into = inPlace.Params
			for i := range uint64(5) {
				grads := largeTensors(i+2, c.dtype)
				request.Grads, other.Grads, inPlace.Grads = grads, grads, grads
				expected := must[*StepResult](t)(plain.Step(ctx, other))
				found := must[*StepResult](t)(client.Step(ctx, request))
				within := must[*StepResult](t)(client.Step(ctx, inPlace))
				if i > 0 && found.State.at == nil {
					t.Fatal("the state came in the body")
				}
				other.Params, other.State = expected.Params, expected.State
				request.Params, request.State = found.Params, found.State
				inPlace.State = within.State
				if i%2 == 1 {
					// Only some steps are compared, because requireSameStep reads the state, and unread states must work too.
					requireSameStep(t, found, expected)
					requireSameStep(t, within, expected)
					requireSame(t, inPlace.Params, expected.Params)
				}
			}
			if sent.bytes.Load() > 10*4096 {
				t.Fatalf("%d bytes were sent", sent.bytes.Load())
			}
		})
	}
}

func TestSharedOtherMethods(t *testing.T) {
	ctx := testContext(t)
	plain := newClient(t, shared.url)
	sent := &countingTransport{RoundTripper: plain.http.Transport}
	client := newSharing(t, shared.url, shareBytes, WithHTTPClient(&http.Client{Transport: sent}))
	params := largeTensors(1, F32)
	init := InitRequest{Optimizer: AdamW(0.1), Params: params}
	state, expected := must[*State](t)(client.Init(ctx, init)), must[*State](t)(plain.Init(ctx, init))
	if !bytes.Equal(state.Bytes(), expected.Bytes()) {
		t.Fatal("another state")
	}
	norms := NormsRequest{Grads: params}
	if a, b := must[*Norms](t)(client.Norms(ctx, norms)), must[*Norms](t)(plain.Norms(ctx, norms)); a.GradNorm != b.GradNorm {
		t.Fatal(a, b)
	}
	stepped := must[*StepResult](t)(client.Step(ctx, StepRequest{Optimizer: AdamW(0.1), Params: params, Grads: params, State: state}))
	if info := must[*StateInfo](t)(client.Inspect(ctx, stepped.State)); info.Tensors["big"].Step != 1 || stepped.State.at == nil {
		t.Fatalf("%+v", info)
	}
	converted := must[*Converted](t)(client.Convert(ctx, ConvertRequest{File: stepped.State.Bytes()}))
	if !bytes.Equal(converted.File, stepped.State.Bytes()) {
		t.Fatal("another file")
	}
	if sent.bytes.Load() > 5*4096 {
		t.Fatalf("%d bytes were sent", sent.bytes.Load())
	}
	// Another client receives the state as bytes.
	if info := must[*StateInfo](t)(newSharing(t, shared.url, shareBytes).Inspect(ctx, stepped.State)); info.Tensors["big"].Step != 1 {
		t.Fatalf("%+v", info)
	}
}

func TestSharedWithTokens(t *testing.T) {
	folder := must[string](t)(os.MkdirTemp(memoryDir(), "stepd-go-test-"))
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	tokens, token := filepath.Join(folder, "tokens"), strings.Repeat("0123456789abcdef", 4)
	own := filepath.Join(folder, "shared", "me")
	if err := errors.Join(os.WriteFile(tokens, []byte("me "+token+"\n"), 0o600), os.MkdirAll(own, 0o700)); err != nil {
		t.Fatal(err)
	}
	address := ownServer(t, "STEPD_TOKENS_FILE="+tokens, "STEPD_SHARED_DIR="+filepath.Join(folder, "shared")).url
	client := newClient(t, address, WithToken(token), WithSharedDir(own))
	request := StepRequest{Optimizer: AdamW(0.01), Params: largeTensors(1, F32), Grads: largeTensors(2, F32)}
	first := must[*StepResult](t)(client.Step(testContext(t), request))
	requireSameStep(t, first, must[*StepResult](t)(newClient(t, shared.url).Step(testContext(t), request)))
	if len(must[[]os.DirEntry](t)(os.ReadDir(own))) == 0 {
		t.Fatal("no files")
	}
	// The server accepts files only from the token's own folder.
	beside := newClient(t, address, WithToken(token), WithSharedDir(filepath.Join(folder, "shared")))
	if _, err := beside.Step(testContext(t), request); !errors.Is(err, ErrInvalidParams) {
		t.Fatal(err)
	}
	client.Close()
	if left := must[[]os.DirEntry](t)(os.ReadDir(own)); len(left) > 0 {
		t.Fatal(left)
	}
}

// lose lets the server run a call, then cuts the connection instead of replying. It keeps the request's body.
func lose(next http.Handler, body *[]byte) http.HandlerFunc {
	return func(_ http.ResponseWriter, r *http.Request) {
		*body, _ = io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(*body))
		recorder := httptest.NewRecorder()
		next.ServeHTTP(recorder, r)
		if recorder.Code != http.StatusOK {
			panic(recorder.Body.String())
		}
		panic(http.ErrAbortHandler)
	}
}

func TestSharedStepAfterALostReply(t *testing.T) {
	ctx := testContext(t)
	plain := newClient(t, shared.url)
	proxy := newFlaky()
	client := newSharing(t, serve(t, proxy).URL, shareBytes)
	request := StepRequest{Optimizer: AdamW(0.01), Params: largeTensors(1, F32), Grads: largeTensors(2, F32)}
	request.Into = request.Params
	other := request
	other.Params = clone(request.Params)
	other.Into = nil
	var late [][]byte
	// These states were read and written by lost calls, and their files must never be reused.
	var touched []string
	for i := range uint64(8) {
		var body []byte
		if i == 2 || i == 3 {
			proxy.mu.Lock()
			proxy.answers = []http.HandlerFunc{lose(proxy.next, &body), lose(proxy.next, &body)}
			proxy.mu.Unlock()
		}
		request.Grads, other.Grads = largeTensors(i+2, F32), largeTensors(i+2, F32)
		found := must[*StepResult](t)(client.Step(ctx, request))
		expected := must[*StepResult](t)(plain.Step(ctx, other))
		if body != nil {
			late = append(late, body)
			touched = append(touched, request.State.at.region.name, found.State.at.region.name)
		}
		for _, body := range late {
			// The abandoned call runs late, and must not change any later result.
			response, err := http.Post(shared.url+"/v1/step", msgpackType, bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			_ = response.Body.Close()
		}
		requireSameStep(t, found, expected)
		request.State, other.Params, other.State = found.State, expected.Params, expected.State
	}
	if len(late) != 2 || len(proxy.seen) < 12 {
		t.Fatal(len(late), len(proxy.seen))
	}
	runtime.GC()
	must[*StepResult](t)(client.Step(ctx, request))
	for _, r := range client.shared.regions {
		if slices.Contains(touched, r.name) {
			t.Fatal("a file that a lost call may still use is kept")
		}
	}
}

func TestSharedResultsDoNotChange(t *testing.T) {
	ctx := testContext(t)
	client, plain := newSharing(t, shared.url, shareBytes), newClient(t, shared.url)
	request := StepRequest{Optimizer: AdamW(0.01), Params: largeTensors(1, F32)}
	other := request
	var found, expected []*StepResult
	for i := range uint64(40) {
		request.Grads, other.Grads = largeTensors(i+2, F32), largeTensors(i+2, F32)
		found = append(found, must[*StepResult](t)(client.Step(ctx, request)))
		expected = append(expected, must[*StepResult](t)(plain.Step(ctx, other)))
		request.State, other.State = found[i].State, expected[i].State
		request.Params, other.Params = found[i].Params, expected[i].Params
		if i == 20 {
			// The next step uses the caller's changes.
			request.Params, other.Params = clone(found[i].Params), clone(found[i].Params)
			request.Params[0].Data[5] ^= 1
			other.Params[0].Data[5] ^= 1
		}
		if i == 30 {
			clear(request.Grads[0].Data)
		}
	}
	client.Close()
	for i := range found {
		requireSameStep(t, found[i], expected[i])
	}
}

func TestSharedFilesAreReused(t *testing.T) {
	ctx := testContext(t)
	client := newSharing(t, shared.url, shareBytes)
	params := Tensors{From("w", random(1, 1<<20))}
	request := StepRequest{Optimizer: AdamW(0.01), Params: params, Grads: params, Into: params}
	for range 40 {
		request.State = must[*StepResult](t)(client.Step(ctx, request)).State
	}
	total := int64(0)
	for _, r := range client.shared.regions {
		total += r.size
	}
	// Without reuse, 40 states would take 320 MiB.
	if most := int64(heldBytes + 5*(8<<20) + 3*(4<<20)); total > most || request.State.Steps()["w"] != 40 {
		t.Fatalf("%d bytes in %d files", total, len(client.shared.regions))
	}
	// Files of another size replace the unused files over time.
	small := StepRequest{Optimizer: AdamW(0.01), Params: largeTensors(1, F32), Grads: largeTensors(2, F32)}
	request.State = nil
	for range idleUses + 1 {
		small.State = must[*StepResult](t)(client.Step(ctx, small)).State
	}
	runtime.GC()
	must[*StepResult](t)(client.Step(ctx, small))
	for _, r := range client.shared.regions {
		if r.size > 1<<20 {
			t.Fatalf("a file of %d bytes is still there", r.size)
		}
	}
}

// If the new state does not fit the place that the client reserved, the step still has the same result.
func TestSharedStateGrows(t *testing.T) {
	ctx := testContext(t)
	client := newSharing(t, shared.url, shareBytes)
	request := StepRequest{Optimizer: SGD(0.01), Params: largeTensors(1, F32), Grads: largeTensors(2, F32)}
	for range 2 {
		request.State = must[*StepResult](t)(client.Step(ctx, request)).State
	}
	request.Optimizer = SGD(0.01).With("momentum", 0.9)
	for range 3 {
		expected := must[*StepResult](t)(newClient(t, shared.url).Step(ctx, request))
		found := must[*StepResult](t)(client.Step(ctx, request))
		requireSameStep(t, found, expected)
		request.State = found.State
	}
}

func TestSharedClosing(t *testing.T) {
	ctx := testContext(t)
	folder := must[string](t)(os.MkdirTemp(sharedDir, "x"))
	if err := os.Remove(folder); err != nil {
		t.Fatal(err)
	}
	client := newSharing(t, shared.url, shareBytes)
	request := StepRequest{Optimizer: AdamW(0.01), Params: largeTensors(1, F32), Grads: largeTensors(2, F32)}
	for range 2 {
		request.State = must[*StepResult](t)(client.Step(ctx, request)).State
	}
	files := must[[]string](t)(filepath.Glob(filepath.Join(sharedDir, "stepd-go-*")))
	if len(files) == 0 {
		t.Fatal("no files")
	}
	if mode := must[os.FileInfo](t)(os.Stat(files[0])).Mode(); mode&^0o660 != 0 {
		t.Fatal(mode)
	}
	client.Close()
	if left := must[[]os.DirEntry](t)(os.ReadDir(sharedDir)); len(left) > 0 {
		t.Fatal(left)
	}
	// The state stays valid, and the client creates new files.
	requireSameStep(t, must[*StepResult](t)(client.Step(ctx, request)), must[*StepResult](t)(newClient(t, shared.url).Step(ctx, request)))

	// Garbage collection of a client removes its files too.
	func() {
		dropped := must[*Client](t)(New(shared.url, WithSharedDir(sharedDir)))
		must[*StepResult](t)(dropped.Step(ctx, request))
		dropped.http.CloseIdleConnections()
		client.Close()
	}()
	for end := time.Now().Add(10 * time.Second); len(must[[]os.DirEntry](t)(os.ReadDir(sharedDir))) > 0; time.Sleep(10 * time.Millisecond) {
		if runtime.GC(); time.Now().After(end) {
			t.Fatal("files are left")
		}
	}
}

func TestSharedErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{"", file, filepath.Join(file, "x"), "/proc"} {
		if _, err := New(shared.url, WithSharedDir(folder)); err == nil || !strings.Contains(err.Error(), "WithSharedDir") {
			t.Errorf("%q: %v", folder, err)
		}
	}
	request := StepRequest{Optimizer: AdamW(0.01), Params: largeTensors(1, F32), Grads: largeTensors(2, F32)}
	var refusal *Error
	alone := newSharing(t, ownServer(t).url, shareBytes)
	if _, err := alone.Step(testContext(t), request); !errors.As(err, &refusal) || refusal.Name != ErrInvalidParams || !strings.Contains(refusal.Message, "shares no folder") {
		t.Fatal(err)
	}
	// Small calls use no folder.
	must[*StepResult](t)(alone.Step(testContext(t), StepRequest{Optimizer: AdamW(0.01), Params: model(1), Grads: model(2)}))

	client := newSharing(t, shared.url, shareBytes)
	cancelled, cancel := context.WithCancel(testContext(t))
	cancel()
	request.Into = request.Params
	before := clone(request.Params)
	if _, err := client.Step(cancelled, request); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	bad := request
	bad.Optimizer = AdamW(-1)
	if _, err := client.Step(testContext(t), bad); !errors.Is(err, ErrInvalidParams) {
		t.Fatal(err)
	}
	requireSame(t, request.Params, before)
	if slices.ContainsFunc(client.shared.regions, func(r *region) bool { return r.busy > 0 }) {
		t.Fatal("a file is still lent")
	}
	// A truncated file is an error.
	request.State = must[*StepResult](t)(client.Step(testContext(t), request)).State
	state := must[*StepResult](t)(client.Step(testContext(t), request)).State
	if err := state.at.region.file.Truncate(100); err != nil {
		t.Fatal(err)
	}
	if _, err := state.WriteTo(io.Discard); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	request.State = state
	if _, err := client.Step(testContext(t), request); !errors.Is(err, ErrInvalidParams) {
		t.Fatal(err)
	}
}

func TestSharedShards(t *testing.T) {
	ctx := testContext(t)
	sharded := must[*Sharded](t)(NewSharded([]string{shared.url, shared.url}, WithSharedDir(sharedDir)))
	t.Cleanup(sharded.Close)
	sharded.RequestBytes = 500_000
	request := StepRequest{Optimizer: AdamW(0.01), Params: append(largeTensors(1, F32), From("more", random(7, 50_000))), Clip: &Clip{MaxNorm: 1}}
	other := request
	for i := range uint64(3) {
		request.Grads = append(largeTensors(i+2, F32), From("more", random(i, 50_000)))
		other.Grads = request.Grads
		expected := must[*StepResult](t)(newClient(t, shared.url).Step(ctx, other))
		found := must[*StepResult](t)(sharded.Step(ctx, request))
		requireSameStep(t, found, expected)
		request.Params, request.State = found.Params, found.State
		other.Params, other.State = expected.Params, expected.State
	}
}

// Concurrent steps use different files.
func TestConcurrentSharedSteps(t *testing.T) {
	ctx := testContext(t)
	client, plain := newSharing(t, shared.url, shareBytes), newClient(t, shared.url)
	start := StepRequest{Optimizer: AdamW(0.01), Params: largeTensors(1, F32), Grads: largeTensors(2, F32)}
	start.State = must[*StepResult](t)(client.Step(ctx, start)).State
	start.State = must[*StepResult](t)(client.Step(ctx, start)).State
	done := make(chan error)
	for k := range uint64(4) {
		go func() {
			request, other := start, start
			for i := range uint64(4) {
				request.Grads = largeTensors(10*k+i, F32)
				other.Grads = request.Grads
				found, err := client.Step(ctx, request)
				expected, err2 := plain.Step(ctx, other)
				if err = errors.Join(err, err2); err == nil && !bytes.Equal(found.State.Bytes(), expected.State.Bytes()) {
					err = fmt.Errorf("another state in goroutine %d", k)
				}
				if err != nil {
					done <- err
					return
				}
				request.Params, request.State, other.Params, other.State = found.Params, found.State, expected.Params, expected.State
			}
			done <- nil
		}()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
