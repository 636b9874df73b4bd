package stepd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/tinylib/msgp/msgp"
)

// recordingTransport records the fields of the last call.
type recordingTransport struct {
	http.RoundTripper
	fields map[string]any
}

func (r *recordingTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(request.Body)
	if err != nil {
		return nil, err
	}
	request.Body = io.NopCloser(bytes.NewReader(body))
	value, _, err := msgp.ReadIntfBytes(body)
	if err != nil {
		return nil, err
	}
	r.fields = value.(map[string]any)
	return r.RoundTripper.RoundTrip(request)
}

// file returns the name of the file that a field of the last call names.
func (r *recordingTransport) file(t *testing.T, field string) string {
	t.Helper()
	at, ok := r.fields[field].(map[string]any)
	if !ok {
		t.Fatalf("%s came in the body", field)
	}
	return at["file"].(string)
}

func newRecording(t *testing.T) (*Client, *recordingTransport) {
	transport := &recordingTransport{RoundTripper: newClient(t, shared.url).http.Transport}
	return newSharing(t, shared.url, shareBytes, WithHTTPClient(&http.Client{Transport: transport})), transport
}

// newShared shares tensors until the test ends.
func newShared(t *testing.T, client *Client, tensors Tensors) Tensors {
	t.Helper()
	given, free, err := client.Share(tensors)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(free)
	return given
}

// fileOf returns the name of the file that holds the caller's tensors. It returns an empty string if they are in Go's own
// memory.
func fileOf(client *Client, tensors Tensors) string {
	for _, r := range client.shared.regions {
		for _, tensor := range tensors {
			if len(tensor.Data) > 0 && len(r.memory) > 0 && isWithin(tensor.Data, r.memory) {
				return r.name
			}
		}
	}
	return ""
}

func isWithin(part, whole []byte) bool {
	at := uintptr(unsafe.Pointer(&part[0])) - uintptr(unsafe.Pointer(&whole[0]))
	return at < uintptr(len(whole))
}

func TestSharedMemoryIsNotCopied(t *testing.T) {
	ctx := testContext(t)
	plain := newClient(t, shared.url)
	for name, c := range map[string]struct {
		optimizer Optimizer
		dtype     DType
		masters   bool
	}{
		"adamw F32":          {AdamW(0.01), F32, false},
		"lamb F64":           {LAMB(0.01), F64, false},
		"momentum F16":       {SGD(0.01).With("momentum", 0.9), F16, false},
		"adamw BF16 masters": {AdamW(0.01), BF16, true},
	} {
		t.Run(name, func(t *testing.T) {
			client, sent := newRecording(t)
			first := largeTensors(1, c.dtype)
			request := StepRequest{Optimizer: c.optimizer, Params: newShared(t, client, first), MasterWeights: c.masters, Clip: &Clip{MaxNorm: 1}}
			requireSame(t, request.Params, first)
			request.Into = request.Params
			// If Data is nil, Share returns zeros, which the test fills in later.
			empty := largeTensors(0, c.dtype)
			for i := range empty {
				empty[i].Data = nil
			}
			request.Grads = newShared(t, client, empty)
			for _, grad := range request.Grads {
				if strings.Trim(string(grad.Data), "\x00") != "" {
					t.Fatalf("%q is not zero", grad.Name)
				}
			}
			other := request
			other.Params, other.Into = first, nil
			for i := range uint64(5) {
				other.Grads = largeTensors(i+2, c.dtype)
				for j, grad := range other.Grads {
					copy(request.Grads[j].Data, grad.Data)
				}
				found := must[*StepResult](t)(client.Step(ctx, request))
				if sent.file(t, "params") != fileOf(client, request.Params) || sent.file(t, "grads") != fileOf(client, request.Grads) {
					t.Fatal("tensors were copied")
				}
				into := sent.fields["reply"].(map[string]any)["into"].(map[string]any)
				for _, place := range into {
					if name := place.(map[string]any)["file"]; name == sent.file(t, "params") || name == sent.file(t, "grads") {
						t.Fatal("a result was to be written over an input")
					}
				}
				expected := must[*StepResult](t)(plain.Step(ctx, other))
				requireSameStep(t, found, expected)
				requireSame(t, request.Params, expected.Params)
				requireSame(t, request.Grads, other.Grads)
				if i > 0 && found.State.at == nil {
					t.Fatal("the state came in the body")
				}
				request.State, other.Params, other.State = found.State, expected.Params, expected.State
			}
			norms := must[*Norms](t)(client.Norms(ctx, NormsRequest{Grads: request.Grads, Params: request.Params}))
			if sent.file(t, "grads") != fileOf(client, request.Grads) || sent.file(t, "params") != fileOf(client, request.Params) {
				t.Fatal("tensors were copied")
			}
			if expected := must[*Norms](t)(plain.Norms(ctx, NormsRequest{Grads: other.Grads})); norms.GradNorm != expected.GradNorm {
				t.Fatal(norms.GradNorm, expected.GradNorm)
			}
		})
	}
}

// Tensors that do not match the file's layout are copied to another file, with their current values.
func TestSharedMemoryInOtherSets(t *testing.T) {
	ctx := testContext(t)
	client, sent := newRecording(t)
	plain := newClient(t, shared.url)
	params, grads := newShared(t, client, largeTensors(1, F32)), newShared(t, client, largeTensors(2, F32))
	last := len(params) - 1
	renamed := func(tensors Tensors) Tensors {
		tensors = slices.Clone(tensors)
		tensors[last].Name = "other"
		return tensors
	}
	reshaped := func(tensors Tensors) Tensors {
		tensors = slices.Clone(tensors)
		tensors[last].Shape = []int{400, 100}
		return tensors
	}
	alien := slices.Clone(params)
	alien[0].Data = slices.Clone(alien[0].Data)
	reversed := slices.Clone(grads)
	slices.Reverse(reversed)
	for name, c := range map[string]struct {
		params, grads       Tensors
		keepsPars, keepsGrs bool
	}{
		"all":                   {params, grads, true, true},
		"in another order":      {params, reversed, true, true},
		"a part of the grads":   {params, grads[last:], true, false},
		"a part of the params":  {params[last:], grads[last:], false, false},
		"other names":           {renamed(params), renamed(grads), false, false},
		"other shapes":          {reshaped(params), reshaped(grads), false, false},
		"one from elsewhere":    {alien, grads, false, true},
		"one more":              {append(slices.Clone(params), From("more", random(3, 5))), grads, false, true},
		"grads that are params": {params, params, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			request := StepRequest{Optimizer: AdamW(0.01), Params: c.params, Grads: c.grads}
			before, beforeGrads := clone(c.params), clone(c.grads)
			found := must[*StepResult](t)(client.Step(ctx, request))
			keeps := [2]bool{sent.file(t, "params") == fileOf(client, params), sent.file(t, "grads") == fileOf(client, c.grads)}
			if keeps != [2]bool{c.keepsPars, c.keepsGrs} {
				t.Fatal(keeps)
			}
			requireSameStep(t, found, must[*StepResult](t)(plain.Step(ctx, request)))
			requireSame(t, c.params, before)
			requireSame(t, c.grads, beforeGrads)
			if fileOf(client, found.Params) != "" {
				t.Fatal("a result lies in the caller's memory")
			}
			// If Into has only some of the file's tensors, the step leaves the other tensors unchanged.
			request.Into = c.params
			into := must[*StepResult](t)(client.Step(ctx, request))
			requireSame(t, c.params, found.Params)
			requireSame(t, into.Params, found.Params)
			for i := range before {
				copy(c.params[i].Data, before[i].Data)
			}
		})
	}
}

// An abandoned call may read the caller's memory after the retry, when the memory holds other values.
func TestSharedMemoryAfterALostReply(t *testing.T) {
	ctx := testContext(t)
	plain := newClient(t, shared.url)
	proxy := newFlaky()
	client := newSharing(t, serve(t, proxy).URL, shareBytes)
	first := largeTensors(1, F32)
	request := StepRequest{Optimizer: AdamW(0.01), Params: newShared(t, client, first), Grads: newShared(t, client, first)}
	request.Into = request.Params
	other := StepRequest{Optimizer: AdamW(0.01), Params: first}
	var late [][]byte
	// The lost calls will write to these files. They stay open, as they do in a running call.
	var rooms []*os.File
	open := func(body []byte) {
		call, _, err := msgp.ReadIntfBytes(body)
		if err != nil {
			panic(err)
		}
		for _, place := range call.(map[string]any)["reply"].(map[string]any)["into"].(map[string]any) {
			file, err := os.OpenFile(filepath.Join(sharedDir, place.(map[string]any)["file"].(string)), os.O_WRONLY, 0)
			if err != nil {
				panic(err)
			}
			rooms = append(rooms, file)
		}
	}
	var found, expected []*StepResult
	for i := range uint64(8) {
		var body, again []byte
		if i == 2 || i == 3 {
			proxy.mu.Lock()
			proxy.answers = []http.HandlerFunc{lose(proxy.next, &body), func(w http.ResponseWriter, r *http.Request) {
				open(body)
				lose(proxy.next, &again)(w, r)
			}}
			proxy.mu.Unlock()
		}
		other.Grads = largeTensors(i+2, F32)
		for j, grad := range other.Grads {
			copy(request.Grads[j].Data, grad.Data)
		}
		found = append(found, must[*StepResult](t)(client.Step(ctx, request)))
		expected = append(expected, must[*StepResult](t)(plain.Step(ctx, other)))
		if !bytes.Equal(body, again) {
			t.Fatal("another call was sent")
		}
		if body != nil {
			late = append(late, body)
		}
		for _, grad := range request.Grads {
			clear(grad.Data)
		}
		for _, body := range late {
			response, err := http.Post(shared.url+"/v1/step", msgpackType, bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			_ = response.Body.Close()
		}
		for _, file := range rooms {
			if _, err := file.WriteAt(bytes.Repeat([]byte{0xff}, 100_000), 0); err != nil {
				t.Fatal(err)
			}
		}
		requireSame(t, request.Params, expected[i].Params)
		request.State, other.Params, other.State = found[i].State, expected[i].Params, expected[i].State
	}
	for i := range found {
		if !bytes.Equal(found[i].State.Bytes(), expected[i].State.Bytes()) {
			t.Fatalf("the state of step %d has changed", i)
		}
	}
	for _, file := range rooms {
		_ = file.Close()
	}
	if len(late) != 2 || len(rooms) != 4 {
		t.Fatal(len(late), len(rooms))
	}
	if fileOf(client, request.Params) == "" || fileOf(client, request.Grads) == "" {
		t.Fatal("the caller's memory is no file any more")
	}
}

func TestSharedMemoryAfterErrors(t *testing.T) {
	client := newSharing(t, shared.url, shareBytes)
	params := newShared(t, client, largeTensors(1, F32))
	request := StepRequest{Optimizer: AdamW(-1), Params: params, Grads: newShared(t, client, largeTensors(2, F32)), Into: params}
	before := clone(params)
	if _, err := client.Step(testContext(t), request); !errors.Is(err, ErrInvalidParams) {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(testContext(t))
	cancel()
	request.Optimizer = AdamW(0.01)
	if _, err := client.Step(cancelled, request); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	requireSame(t, params, before)
	if slices.ContainsFunc(client.shared.regions, func(r *region) bool { return r.busy > 0 }) {
		t.Fatal("a file is still lent")
	}
	must[*StepResult](t)(client.Step(testContext(t), request))

	if _, _, err := client.Share(Tensors{{Name: "w", DType: F32, Shape: []int{1}, Data: []byte{1}}}); !errors.Is(err, ErrBadTensor) {
		t.Fatal(err)
	}
	for _, bad := range []Tensor{{Name: "w", DType: "F31", Shape: []int{1}}, {Name: "w", DType: F32, Shape: []int{-1}}, {Name: metadataKey, DType: F32}} {
		if _, _, err := client.Share(Tensors{bad}); !errors.Is(err, ErrBadTensor) {
			t.Fatal(bad, err)
		}
	}
	// No file can be created in this folder.
	gone := must[string](t)(os.MkdirTemp(sharedDir, "x"))
	closed := must[*Client](t)(New(shared.url, WithSharedDir(gone)))
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	if _, _, err := closed.Share(largeTensors(1, F32)); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

func TestSharedMemoryIsFreed(t *testing.T) {
	ctx := testContext(t)
	client := newSharing(t, shared.url, shareBytes)
	first := must3(t)(client.Share(largeTensors(1, F32)))
	name := fileOf(client, first.tensors)
	if name == "" {
		t.Fatal("no file")
	}
	// While a call uses the file, no other caller gets the file.
	p := must[*encodedRequest](t)(client.pack(ctx, []field{{"grads", must[blob](t)(fileParts(nil, first.tensors))}}, results{}))
	first.free()
	second := must3(t)(client.Share(largeTensors(2, F32)))
	if fileOf(client, second.tensors) == name {
		t.Fatal("a call's file was given to somebody else")
	}
	p.release()
	third := must3(t)(client.Share(largeTensors(3, F32)))
	if fileOf(client, third.tensors) != name {
		t.Fatal("the file is not used again")
	}
	// A second free by the first owner does nothing, because the file has a new owner.
	first.free()
	requireSame(t, third.tensors, largeTensors(3, F32))
	third.free()
	// Share returns zeros, although the file held other tensors before.
	empty := largeTensors(4, F32)
	for i := range empty {
		empty[i].Data = nil
	}
	for _, tensor := range newShared(t, client, empty) {
		if strings.Trim(string(tensor.Data), "\x00") != "" {
			t.Fatalf("%q has another's values", tensor.Name)
		}
	}
	client.Close()
	if left := must[[]os.DirEntry](t)(os.ReadDir(sharedDir)); len(left) > 0 {
		t.Fatal(left)
	}
	// The memory is still valid, and calls copy it.
	request := StepRequest{Optimizer: AdamW(0.01), Params: second.tensors, Grads: second.tensors}
	requireSameStep(t, must[*StepResult](t)(client.Step(ctx, request)), must[*StepResult](t)(newClient(t, shared.url).Step(ctx, request)))
	requireSame(t, second.tensors, largeTensors(2, F32))
	second.free()
	second.free()
}

type given struct {
	tensors Tensors
	free    func()
}

func must3(t *testing.T) func(tensors Tensors, free func(), err error) given {
	return func(tensors Tensors, free func(), err error) given {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return given{tensors, free}
	}
}

// Garbage collection of the client removes its files, but the memory stays valid.
func TestSharedMemoryOutlivesTheClient(t *testing.T) {
	outlived := func() Tensors {
		dropped := must[*Client](t)(New(shared.url, WithSharedDir(sharedDir)))
		return newShared(t, dropped, largeTensors(1, F32))
	}()
	for end := time.Now().Add(10 * time.Second); len(must[[]string](t)(filepath.Glob(filepath.Join(sharedDir, "stepd-go-*")))) > 0; time.Sleep(10 * time.Millisecond) {
		if runtime.GC(); time.Now().After(end) {
			t.Fatal("files are left")
		}
	}
	requireSame(t, outlived, largeTensors(1, F32))
}

func TestShareWithoutSharedMemory(t *testing.T) {
	ctx := testContext(t)
	plain, client := newClient(t, shared.url), newSharing(t, shared.url, shareBytes)
	for _, c := range []*Client{plain, client} {
		original := model(1)
		copied := newShared(t, c, original)
		requireSame(t, copied, original)
		copied[0].Data[0] ^= 1
		if bytes.Equal(copied[0].Data, original[0].Data) {
			t.Fatal("it is the caller's own memory")
		}
		for _, tensor := range copied {
			if values := must[[]float32](t)(Values[float32](tensor)); len(values) > 0 && !isWithin(tensor.Data[:1], bytesOf(values)) {
				t.Fatalf("the values of %q are a copy", tensor.Name)
			}
		}
	}
	if len(client.shared.regions) > 0 {
		t.Fatal("a file for little")
	}
	// Memory that belongs to another client is copied.
	request := StepRequest{Optimizer: AdamW(0.01), Params: newShared(t, client, largeTensors(1, F32)), Grads: largeTensors(2, F32)}
	beside := newSharing(t, shared.url, shareBytes)
	expected := must[*StepResult](t)(plain.Step(ctx, request))
	requireSameStep(t, must[*StepResult](t)(beside.Step(ctx, request)), expected)
	// Sharded also copies if a call needs only some of the tensors.
	sharded := &Sharded{Clients: []*Client{client, beside}, RequestBytes: 100_000}
	request.Into = request.Params
	requireSameStep(t, must[*StepResult](t)(sharded.Step(ctx, request)), expected)
	requireSame(t, request.Params, expected.Params)
}

func TestFilesAreFilledWithZeros(t *testing.T) {
	file := must[*os.File](t)(os.Create(filepath.Join(t.TempDir(), "file")))
	defer file.Close()
	for _, size := range []int64{0, 3, 3<<20 + 5} {
		if err := errors.Join(file.Truncate(0), fill(file, size)); err != nil {
			t.Fatal(err)
		}
		found := must[[]byte](t)(os.ReadFile(file.Name()))
		if int64(len(found)) != size || len(bytes.Trim(found, "\x00")) > 0 {
			t.Fatalf("%d bytes for %d", len(found), size)
		}
	}
}
