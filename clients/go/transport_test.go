package stepd

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tinylib/msgp/msgp"
)

// flaky is a proxy to the shared server. It answers the first calls itself.
type flaky struct {
	mu      sync.Mutex
	answers []http.HandlerFunc
	seen    []time.Time
	headers []http.Header
	next    http.Handler
}

func newFlaky(answers ...http.HandlerFunc) *flaky {
	target, _ := url.Parse(shared.url)
	return &flaky{answers: answers, next: httputil.NewSingleHostReverseProxy(target)}
}

func (f *flaky) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// The body is read completely first. Otherwise Go's server would close the body when the answer begins. The reverse proxy
	// reads past the last byte, and could then drop the connection during a fast answer.
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	f.mu.Lock()
	f.seen = append(f.seen, time.Now())
	f.headers = append(f.headers, r.Header.Clone())
	answer := f.next.ServeHTTP
	if len(f.answers) > 0 {
		answer, f.answers = f.answers[0], f.answers[1:]
	}
	f.mu.Unlock()
	answer(w, r)
}

func refuse(status int, name ErrorName, after string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if after != "" {
			w.Header().Set("Retry-After", after)
		}
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]any{"type": problemType + string(name), "name": name, "detail": "later", "code": errorTable[name].code})
	}
}

// cut sends a part of an answer, then closes the connection.
func cut(part string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if part != "" {
			w.Header().Set("Content-Length", "100000")
			_, _ = io.WriteString(w, part)
			_ = http.NewResponseController(w).Flush()
		}
		panic(http.ErrAbortHandler)
	}
}

func serve(t *testing.T, handler http.Handler) *httptest.Server {
	proxy := httptest.NewServer(handler)
	t.Cleanup(proxy.Close)
	return proxy
}

func TestRetries(t *testing.T) {
	ctx := testContext(t)
	request := StepRequest{Optimizer: AdamW(0.01), Params: model(1), Grads: model(2)}
	expected := must[*StepResult](t)(newClient(t, shared.url).Step(ctx, request))
	html := func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "<html>no backend</html>", http.StatusBadGateway)
	}
	truncated := string(msgp.AppendBytesHeader(msgp.AppendString(msgp.AppendMapHeader(nil, 5), "params"), 90_000))
	proxy := newFlaky(cut(""), refuse(503, ErrDraining, ""), cut(truncated), html, refuse(429, ErrOverloaded, "1"))
	client := newClient(t, serve(t, proxy).URL, WithRetries(5))
	request.Into = clone(request.Params)
	found := must[*StepResult](t)(client.Step(ctx, request))
	requireSame(t, found.Params, expected.Params)
	if len(proxy.seen) != 6 {
		t.Fatalf("%d calls", len(proxy.seen))
	}
	if wait := proxy.seen[5].Sub(proxy.seen[4]); wait < time.Second {
		t.Fatalf("came back after %s in spite of Retry-After", wait)
	}
}

// TestLongestWait tests the longest waits: a minute if the server asks for it, and 5 s of the client's own backoff.
func TestLongestWait(t *testing.T) {
	isBegun := func(wait, patience time.Duration) bool {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		time.AfterFunc(patience, cancel)
		return sleep(ctx, wait) || ctx.Err() != nil
	}
	if !isBegun(time.Minute, 50*time.Millisecond) {
		t.Error("a minute was not waited for")
	}
	if isBegun(time.Minute+time.Second, 10*time.Second) {
		t.Error("more than a minute was waited for")
	}
	var longest time.Duration
	for range 200 {
		longest = max(longest, retryDelay(io.ErrUnexpectedEOF, 99))
	}
	if longest <= 4*time.Second || longest > 5*time.Second {
		t.Errorf("the client's own longest pause is %s", longest)
	}
}

func TestNoRetries(t *testing.T) {
	ctx := testContext(t)
	text := func(body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }
	}
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		limit  time.Duration
		err    error
	}{
		"the call's own fault":      {refuse(422, ErrStateCorrupt, ""), time.Minute, ErrStateCorrupt},
		"a failure of the server":   {refuse(500, ErrInternal, ""), time.Minute, ErrInternal},
		"a long Retry-After":        {refuse(429, ErrOverloaded, "3600"), time.Hour, ErrOverloaded},
		"one past the deadline":     {refuse(429, ErrOverloaded, "30"), 5 * time.Second, ErrOverloaded},
		"a date as Retry-After":     {refuse(429, ErrOverloaded, time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)), time.Hour, ErrOverloaded},
		"what is no reply":          {text("<html>"), time.Minute, ErrBadReply},
		"an empty reply":            {text(""), time.Minute, ErrBadReply},
		"a reply with text after":   {text("\x80\x80"), time.Minute, ErrBadReply},
		"a reply without its parts": {text("\x80"), time.Minute, ErrBadReply},
	} {
		t.Run(name, func(t *testing.T) {
			proxy := newFlaky(c.answer)
			limited, cancel := context.WithTimeout(ctx, c.limit)
			defer cancel()
			_, err := newClient(t, serve(t, proxy).URL).Step(limited, StepRequest{Optimizer: SGD(1), Params: model(1)})
			if !errors.Is(err, c.err) || len(proxy.seen) != 1 {
				t.Fatalf("%d calls, %v", len(proxy.seen), err)
			}
		})
	}
	t.Run("a redirect", func(t *testing.T) {
		proxy := newFlaky(http.RedirectHandler("/elsewhere", http.StatusPermanentRedirect).ServeHTTP)
		_, err := newClient(t, serve(t, proxy).URL).Step(ctx, StepRequest{Optimizer: SGD(1), Params: model(1)})
		var refusal *Error
		if !errors.As(err, &refusal) || refusal.Status != 308 || refusal.Name != "" || len(proxy.seen) != 1 {
			t.Fatal(err)
		}
	})
}

func TestTimeoutOfAnAttempt(t *testing.T) {
	hang := func(_ http.ResponseWriter, r *http.Request) {
		// This server notices a lost caller only after it has read the body.
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}
	proxy := newFlaky(hang)
	client := newClient(t, serve(t, proxy).URL, WithTimeout(time.Second))
	result := must[*StepResult](t)(client.Step(testContext(t), StepRequest{Optimizer: SGD(1), Params: model(1), Grads: model(2)}))
	if result.Step != 1 || len(proxy.seen) != 2 {
		t.Fatalf("%d calls", len(proxy.seen))
	}
	proxy.answers = []http.HandlerFunc{hang}
	client.retries = 0
	if _, err := client.Optimizers(testContext(t)); !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, new(*TransportError)) {
		t.Fatal(err)
	}
}

// stall forwards the first bytes of a connection to the shared server, and then nothing more.
func stall(t *testing.T, after int64) (address string, stalled <-chan struct{}) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	reached := make(chan struct{}, 16)
	go func() {
		for {
			caller, err := listener.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = caller.Close() })
			server, err := net.Dial("tcp", strings.TrimPrefix(shared.url, "http://"))
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = server.Close() })
			go func() { _, _ = io.Copy(caller, server) }()
			go func() {
				_, _ = io.CopyN(server, caller, after)
				reached <- struct{}{}
			}()
		}
	}()
	return "http://" + listener.Addr().String(), reached
}

// The timeout ends a reply that arrives byte by byte, and a call to a server that stops reading the request.
func TestTimeoutOfDripsAndStalls(t *testing.T) {
	drip := func(kind string, body []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", kind)
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
			for i := range body {
				if _, err := w.Write(body[i : i+1]); err != nil || http.NewResponseController(w).Flush() != nil {
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
		}
	}
	text := must[[]byte](t)(json.Marshal(map[string]any{"optimizers": []any{map[string]any{"name": strings.Repeat("x", 200)}}}))
	packed := msgp.AppendBytes(msgp.AppendString(msgp.AppendMapHeader(nil, 1), "state"), make([]byte, 200))
	stalled, _ := stall(t, 1<<20)
	for name, address := range map[string]string{
		"JSON":         serve(t, drip(jsonType, text)).URL,
		"MessagePack":  serve(t, drip(msgpackType, packed)).URL,
		"uploads stop": stalled,
	} {
		t.Run(name, func(t *testing.T) {
			client := newClient(t, address, WithTimeout(500*time.Millisecond), WithRetries(0))
			params := Tensors{From("w", make([]float32, 8<<20))}
			var err error
			if name == "JSON" {
				_, err = client.Optimizers(testContext(t))
			} else {
				_, err = client.Step(testContext(t), StepRequest{Optimizer: SGD(1), Params: params, Grads: params})
			}
			if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, new(*TransportError)) {
				t.Fatal(err)
			}
		})
	}
}

// net/http may read a body after the call has returned, when the tensors belong to the caller again.
func TestTensorsAreNotReadAfterTheCall(t *testing.T) {
	up := &upload{body: blob{parts: [][]byte{[]byte("abc"), []byte("def")}, size: 6}}
	reader := must[io.ReadCloser](t)(up.reader())
	part := make([]byte, 4)
	if n, err := reader.Read(part); n != 4 || err != nil || string(part) != "abcd" {
		t.Fatal(n, err)
	}
	up.close()
	if n, err := reader.Read(part); n != 0 || !errors.Is(err, io.ErrClosedPipe) {
		t.Fatal(n, err)
	}
}

func TestCancellationDuringUpload(t *testing.T) {
	address, stalled := stall(t, 3<<20)
	client := newClient(t, address)
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	weights := random(1, 8<<20)
	params := Tensors{From("w", weights)}
	done := make(chan error)
	go func() {
		_, err := client.Step(ctx, StepRequest{Optimizer: SGD(1), Params: params, Grads: params, Into: params})
		// Nothing reads the tensors any more. The race detector would notice a read.
		clear(weights)
		done <- err
	}()
	<-stalled
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the call goes on")
	}
	must[*StepResult](t)(newClient(t, shared.url).Step(testContext(t), StepRequest{Optimizer: SGD(1), Params: model(1), Grads: model(2)}))
}

// The client sends a large body only after the server has admitted it.
func TestRefusalBeforeTheUpload(t *testing.T) {
	small := ownServer(t, "STEPD_ARENA_MIB=32")
	address := small.url
	sent := &countingTransport{RoundTripper: newClient(t, address).http.Transport}
	client := newClient(t, address, WithHTTPClient(&http.Client{Transport: sent}))
	params := Tensors{From("w", make([]float32, 24<<20))}
	if _, err := client.Step(testContext(t), StepRequest{Optimizer: SGD(1), Params: params}); !errors.Is(err, ErrPayloadTooLarge) {
		t.Fatal(err)
	}
	if bytes := sent.bytes.Load(); bytes != 0 {
		t.Fatalf("%d bytes were sent to be refused", bytes)
	}
}

type countingTransport struct {
	http.RoundTripper
	bytes atomic.Int64
}

func (c *countingTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	request.Body = &countingBody{request.Body, c}
	return c.RoundTripper.RoundTrip(request)
}

type countingBody struct {
	io.ReadCloser
	transport *countingTransport
}

func (b *countingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.transport.bytes.Add(int64(n))
	return n, err
}

func TestTLSAndToken(t *testing.T) {
	proxy := newFlaky()
	secure := httptest.NewTLSServer(proxy)
	t.Cleanup(secure.Close)
	roots := x509.NewCertPool()
	roots.AddCert(secure.Certificate())
	ctx := testContext(t)
	client := newClient(t, secure.URL, WithTLS(&tls.Config{RootCAs: roots}), WithToken("secret"))
	must[*StepResult](t)(client.Step(ctx, StepRequest{Optimizer: SGD(1), Params: model(1), Grads: model(2)}))
	if found := proxy.headers[0].Get("Authorization"); found != "Bearer secret" {
		t.Fatal(found)
	}
	if _, err := newClient(t, secure.URL, WithRetries(0)).Info(ctx); !errors.As(err, new(*TransportError)) {
		t.Fatal("a certificate of nobody was taken: ", err)
	}
	must[*Info](t)(newClient(t, secure.URL, WithHTTPClient(secure.Client())).Info(ctx))
}
