package stepd

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/tinylib/msgp/msgp"
)

// These tests use servers and callers that break the rules.

// allMethods maps the name of each method to a function that calls the method.
var allMethods = map[string]func(ctx context.Context, c *Client) error{
	"Step": func(ctx context.Context, c *Client) error {
		_, err := c.Step(ctx, StepRequest{Optimizer: SGD(1), Params: model(1), Grads: model(2)})
		return err
	},
	"Init": func(ctx context.Context, c *Client) error {
		_, err := c.Init(ctx, InitRequest{Optimizer: SGD(1), Params: model(1)})
		return err
	},
	"Norms": func(ctx context.Context, c *Client) error {
		_, err := c.Norms(ctx, NormsRequest{Grads: model(1)})
		return err
	},
	"Plan": func(ctx context.Context, c *Client) error {
		_, err := c.Plan(ctx, PlanRequest{Optimizer: SGD(1), Params: model(1)})
		return err
	},
	"Inspect": func(ctx context.Context, c *Client) error {
		state, err := newState(optimizers{optimizer: "sgd", revision: "1"}, nil)
		if err == nil {
			_, err = c.Inspect(ctx, state)
		}
		return err
	},
	"Convert": func(ctx context.Context, c *Client) error {
		_, err := c.Convert(ctx, ConvertRequest{File: []byte("a file")})
		return err
	},
	"EvaluateSchedule": func(ctx context.Context, c *Client) error {
		_, err := c.EvaluateSchedule(ctx, ScheduleRequest{Schedule: Schedule{"name": "constant"}, Count: 3})
		return err
	},
	"Optimizers": func(ctx context.Context, c *Client) error { _, err := c.Optimizers(ctx); return err },
	"Describe":   func(ctx context.Context, c *Client) error { _, err := c.Describe(ctx, "sgd"); return err },
	"Info":       func(ctx context.Context, c *Client) error { _, err := c.Info(ctx); return err },
}

// A well-formed reply without the expected members is an error: its missing values would otherwise be read as zeros.
func TestRepliesWithoutMembers(t *testing.T) {
	for _, body := range []string{"{}", "null", "[]", `""`, "0", `{"tensors":{},"lrs":[],"momentums":[],"optimizers":[],"name":"","format":""}`,
		`{"grad_norm":null,"tensors":{"scale":{}}}`, `{"grad_norm":1,"tensors":{"layer.weight":{"grad_squares":null}}}`, "\x80", "\xc0", "\x90", "\x81\xa5state\xc4\x00"} {
		client := newClient(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(w, body)
		})).URL)
		for name, call := range allMethods {
			if name == "Convert" && body == "\x81\xa5state\xc4\x00" {
				continue // Convert does not parse the file in the reply, so an empty file is valid.
			}
			if err := call(testContext(t), client); !errors.Is(err, ErrBadReply) {
				t.Errorf("%s of %q: %v", name, body, err)
			}
		}
	}
}

func TestStepRepliesWithoutAMember(t *testing.T) {
	values := map[string]any{"step": 1, "lr": 0.5, "skipped": false,
		"params": file(`{"w":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}`, "abcd"), "state": file("{"+goodMeta+","+goodStep+"}", step1)}
	sent := Tensors{{Name: "w", DType: F32, Shape: []int{}}}
	whole := must[[]byte](t)(msgp.AppendIntf(nil, values))
	must[*StepResult](t)(resultOf(must[stepReply](t)(decodeStep(bytes.NewReader(whole), -1, 0, nil)), sent))
	for member := range values {
		rest := maps.Clone(values)
		delete(rest, member)
		reply := must[stepReply](t)(decodeStep(bytes.NewReader(must[[]byte](t)(msgp.AppendIntf(nil, rest))), -1, 0, nil))
		if _, err := resultOf(reply, sent); !errors.Is(err, ErrBadReply) {
			t.Errorf("without %s: %v", member, err)
		}
	}
}

// The client stops reading an endless reply. The reply takes at most a fixed multiple of the memory that the request allows.
func TestEndlessReplies(t *testing.T) {
	header := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, c := range map[string]struct{ start, rest []byte }{
		"text":            {[]byte(`{"name":"`), bytes.Repeat([]byte("a"), 1<<20)},
		"a blob":          {header(msgp.AppendMapHeader(nil, 5), msgp.AppendString(nil, "state"), msgp.AppendBytesHeader(nil, 60<<20)), make([]byte, 1<<20)},
		"a skipped value": {header(msgp.AppendMapHeader(nil, 5), msgp.AppendString(nil, "x"), []byte{0xdd, 0xff, 0xff, 0xff, 0xff}), msgp.AppendString(nil, strings.Repeat("a", 1<<20))},
	} {
		t.Run(name, func(t *testing.T) {
			var written atomic.Int64
			client := newClient(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				_, err := w.Write(c.start)
				for n := 0; err == nil; n, err = w.Write(c.rest) {
					written.Add(int64(n))
				}
			})).URL)
			method := "Step"
			if name == "text" {
				method = "Info"
			}
			if err := allMethods[method](testContext(t), client); !errors.Is(err, ErrBadReply) {
				t.Fatal(err)
			}
			if sent := written.Load(); sent > 2*maxReply(1<<20) {
				t.Fatalf("%d bytes were read", sent)
			}
		})
	}
}

func TestTooManyMembers(t *testing.T) {
	keys := msgp.AppendMapHeader(nil, 2_000)
	for i := range 2_000 {
		keys = msgp.AppendNil(msgp.AppendString(keys, fmt.Sprint(i)))
	}
	lost := msgp.AppendArrayHeader(msgp.AppendString(msgp.AppendMapHeader(nil, 1), "lost"), 2_000)
	for range 2_000 {
		lost = msgp.AppendString(lost, "")
	}
	for _, reply := range [][]byte{keys, lost} {
		if _, err := decodeStep(bytes.NewReader(reply), -1, 0, nil); !errors.Is(err, ErrBadReply) {
			t.Error(err)
		}
		// A large request allows a large reply.
		if _, err := decodeStep(bytes.NewReader(reply), -1, 1<<20, nil); err != nil {
			t.Error(err)
		}
	}
}

// The decoder gives the same result for any split of the bytes, and an error for a truncated reply.
func TestShortReads(t *testing.T) {
	whole := replySeeds()[0]
	expected := must[stepReply](t)(decodeStep(bytes.NewReader(whole), int64(len(whole)), 0, nil))
	for name, from := range map[string]io.Reader{
		"a byte at a time":       iotest.OneByteReader(bytes.NewReader(whole)),
		"half of each read":      iotest.HalfReader(bytes.NewReader(whole)),
		"the end with the last":  iotest.DataErrReader(bytes.NewReader(whole)),
		"the end with each byte": iotest.DataErrReader(iotest.OneByteReader(bytes.NewReader(whole))),
	} {
		found, err := decodeStep(from, -1, 0, nil)
		if err != nil || !bytes.Equal(found.params, expected.params) || !bytes.Equal(found.state, expected.state) || found.step != expected.step {
			t.Errorf("%s: %v", name, err)
		}
	}
	for end := range whole {
		for _, length := range []int64{int64(len(whole)), int64(end), -1} {
			if _, err := decodeStep(bytes.NewReader(whole[:end]), length, 0, nil); !errors.Is(err, ErrBadReply) {
				t.Fatalf("%d of %d bytes, length %d: %v", end, len(whole), length, err)
			}
		}
	}
}

// Errors about hostile files are short, whatever text they quote, and name the file.
func TestErrorsAreShort(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	for _, header := range []string{
		"{" + goodMeta + `,"` + long + `":{"dtype":"I64","shape":[],"data_offsets":[0,8]},"` + long + `":{}}`,
		"{" + goodMeta + `,"` + long + `":{"dtype":"I64","shape":[],"data_offsets":[0,8]}}`,
		"{" + goodMeta + `,"step/w":{"dtype":"` + long + `","shape":[],"data_offsets":[0,8]}}`,
		"{" + goodMeta + `,"step/w":{"` + long + `":1}}`,
		`{"__metadata__":{"format":"` + long + `"}}`,
		"{" + goodMeta + `,"exp_avg/` + long + `":{"dtype":"F64","shape":[],"data_offsets":[0,8]}}`,
	} {
		path := filepath.Join(t.TempDir(), "run.state")
		if err := os.WriteFile(path, file(header, step1), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := LoadState(path)
		if !errors.Is(err, ErrBadFile) || !strings.Contains(err.Error(), path) || len(err.Error()) > len(path)+500 {
			t.Errorf("%.300v", err)
		}
	}
	refusal := &Error{Name: ErrOverloaded, Message: "no room", RequestID: "7"}
	if text := refusal.Error(); text != "stepd: OVERLOADED: no room (request 7)" {
		t.Error(text)
	}
}

// A token or a request id that a header cannot hold is an error, and the client sends nothing.
func TestInvalidHeaderValues(t *testing.T) {
	for _, token := range []string{"a\nb", "a b", "ä", "\x00"} {
		if _, err := New(shared.url, WithToken(token)); err == nil || strings.Contains(err.Error(), token) {
			t.Errorf("the token %q: %v", token, err)
		}
	}
	proxy := newFlaky()
	address := serve(t, proxy).URL
	for _, id := range []string{"a b", "a\r\nX: y", "ü", strings.Repeat("a", 129)} {
		_, err := newClient(t, address, WithRequestID(func(context.Context) string { return id })).Info(testContext(t))
		if err == nil || errors.As(err, new(*TransportError)) {
			t.Errorf("the id %q: %v", id, err)
		}
	}
	if len(proxy.seen) > 0 {
		t.Fatalf("%d calls", len(proxy.seen))
	}
	if _, err := newClient(t, shared.url).Describe(testContext(t), ""); err == nil {
		t.Error("an optimizer without a name was described")
	}
}

// Several clients may use one TLS configuration, and no client changes it.
func TestTLSConfigurationIsNotChanged(t *testing.T) {
	secure := httptest.NewTLSServer(newFlaky())
	t.Cleanup(secure.Close)
	roots := x509.NewCertPool()
	roots.AddCert(secure.Certificate())
	config := &tls.Config{RootCAs: roots}
	var calls sync.WaitGroup
	for range 4 {
		client := newClient(t, secure.URL, WithTLS(config))
		calls.Add(1)
		go func() {
			defer calls.Done()
			if _, err := client.Info(context.Background()); err != nil {
				t.Error(err)
			}
		}()
	}
	calls.Wait()
	if len(config.NextProtos) > 0 {
		t.Fatal(config.NextProtos)
	}
}

func TestContextErrors(t *testing.T) {
	reason := errors.New("the run was stopped")
	later := refuse(429, ErrOverloaded, "30")
	hang := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "\x85")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
	open := map[string]func(address string) stepper{
		"Client":              func(address string) stepper { return newClient(t, address) },
		"Sharded":             func(address string) stepper { return newSharded(t, address) },
		"Sharded as one call": func(address string) stepper { return newSharded(t, address) },
	}
	for name, answer := range map[string]http.HandlerFunc{"while it waits to come again": later, "in the middle of a reply": hang} {
		for kind, open := range open {
			t.Run(name+", "+kind, func(t *testing.T) {
				reached := make(chan struct{}, 16)
				real := newFlaky()
				address := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/v1/norms" {
						real.ServeHTTP(w, r)
						return
					}
					reached <- struct{}{}
					answer(w, r)
				})).URL
				ctx, cancel := context.WithCancelCause(testContext(t))
				go func() {
					<-reached
					time.Sleep(50 * time.Millisecond)
					cancel(reason)
				}()
				start := time.Now()
				params := model(1)
				request := StepRequest{Optimizer: SGD(1), Params: params, Grads: model(2), Into: params}
				if kind == "Sharded as one call" {
					request.Grads, request.NonFinite, request.Clip = Tensors{From("scale", []float32{float32(math.NaN())}).Scalar()}, Propagate, &Clip{MaxNorm: 1}
				}
				_, err := open(address).Step(ctx, request)
				if !errors.Is(err, context.Canceled) || !errors.Is(err, reason) || time.Since(start) > 10*time.Second {
					t.Fatalf("%v after %s", err, time.Since(start))
				}
				requireSame(t, params, model(1))
			})
		}
	}
}

// Many callers share one client, without mixing their tensors and without leaking goroutines.
func TestConcurrentCallers(t *testing.T) {
	const callers, steps = 16, 5
	before := runtime.NumGoroutine()
	client := must[*Client](t)(New(shared.url))
	sharded := &Sharded{Clients: []*Client{client, client}, RequestBytes: 1000}
	// Every other caller uses Sharded. Each caller has different values.
	run := func(client stepper, seed uint64) (Tensors, error) {
		params := model(seed)
		var state *State
		for step := range uint64(steps) {
			result, err := client.Step(context.Background(), StepRequest{Optimizer: AdamW(0.01), Params: params, Grads: model(seed + step + 1), State: state, Into: params})
			if err != nil {
				return nil, err
			}
			state = result.State
		}
		return params, nil
	}
	found := make([]Tensors, callers)
	var calls sync.WaitGroup
	for i := range callers {
		calls.Add(1)
		go func() {
			defer calls.Done()
			var err error
			if found[i], err = run([]stepper{client, sharded}[i%2], uint64(i)); err != nil {
				t.Error(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i)*time.Millisecond)
			defer cancel()
			_, _ = client.Step(ctx, StepRequest{Optimizer: AdamW(0.01), Params: model(1), Grads: model(2)})
		}()
	}
	calls.Wait()
	for i := range callers {
		requireSame(t, found[i], must[Tensors](t)(run(client, uint64(i))))
	}
	client.Close()
	for wait := 0; runtime.NumGoroutine() > before; wait++ {
		if wait == 100 {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
