package stepd

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// fixedAnswer gives every call the same answer, and counts the calls.
type fixedAnswer struct {
	mu     sync.Mutex
	answer http.HandlerFunc
	calls  int
}

func (a *fixedAnswer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.calls++
	a.mu.Unlock()
	a.answer(w, r)
}

func (a *fixedAnswer) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.calls
}

// foreignAnswer returns a handler that answers as a proxy or another service does, not as stepd.
func foreignAnswer(status int, mediaType, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", mediaType)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text)
	}
}

func TestReplicaFailuresGoToAnother(t *testing.T) {
	ctx := testContext(t)
	request := StepRequest{Optimizer: AdamW(0.1), Params: model(1), Grads: model(2), Clip: &Clip{MaxNorm: 1}}
	expected := must[*StepResult](t)(newClient(t, shared.url).Step(ctx, request))
	for name, answer := range map[string]http.HandlerFunc{
		"INTERNAL_ERROR":              refuse(500, ErrInternal, ""),
		"OVERLOADED, for an hour":     refuse(429, ErrOverloaded, "3600"),
		"DRAINING":                    refuse(503, ErrDraining, ""),
		"junk with 200":               foreignAnswer(200, msgpackType, "junk"),
		"nothing with 200":            foreignAnswer(200, msgpackType, ""),
		"another method's reply":      foreignAnswer(200, jsonType, `{"status":"ok"}`),
		"a proxy's 502":               foreignAnswer(502, "text/html", "<html>"),
		"a proxy's 504":               foreignAnswer(504, "text/html", "<html>"),
		"a foreign 500":               foreignAnswer(500, "text/plain", "oops"),
		"a foreign 404":               foreignAnswer(404, "text/html", "<html>"),
		"a foreign 400":               foreignAnswer(400, "text/plain", "bad host"),
		"another service's own error": foreignAnswer(422, jsonType, `{"type":"about:blank","name":"INVALID_PARAMS","code":-32602,"detail":"?"}`),
		"a redirect":                  http.RedirectHandler("/elsewhere", http.StatusPermanentRedirect).ServeHTTP,
		"a lost connection":           cut(""),
		"a part of a reply":           cut("\x85"),
		"silence":                     func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body); <-r.Context().Done() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad := &fixedAnswer{answer: answer}
			sharded := must[*Sharded](t)(NewSharded([]string{serve(t, bad).URL, shared.url}, WithRetries(0), WithTimeout(3*time.Second)))
			sharded.RequestBytes = 1000
			result, err := sharded.Step(ctx, request)
			if err != nil {
				t.Fatal(err)
			}
			requireSame(t, result.Params, expected.Params)
			if bad.count() == 0 {
				t.Fatal("the replica that fails was not called")
			}
		})
	}
}

func TestCallErrorsAreNotRetried(t *testing.T) {
	for status, name := range map[int]ErrorName{400: ErrInvalidParams, 401: ErrUnauthenticated, 413: ErrPayloadTooLarge, 415: ErrUnsupportedMediaType, 422: ErrStateMismatch} {
		first, second := &fixedAnswer{answer: refuse(status, name, "")}, &fixedAnswer{answer: refuse(status, name, "")}
		sharded := newSharded(t, serve(t, first).URL, serve(t, second).URL)
		_, err := sharded.Step(testContext(t), StepRequest{Optimizer: AdamW(1), Params: Tensors{From("w", []float32{1})}})
		if !errors.Is(err, name) || first.count()+second.count() != 1 {
			t.Errorf("%d: %d and %d calls, %v", status, first.count(), second.count(), err)
		}
	}
}

func TestRoundsOverAllReplicas(t *testing.T) {
	const retries = 2
	var all []*fixedAnswer
	var urls []string
	for range 3 {
		replica := &fixedAnswer{answer: refuse(503, ErrDraining, "0")}
		all = append(all, replica)
		urls = append(urls, serve(t, replica).URL)
	}
	sharded := must[*Sharded](t)(NewSharded(urls, WithRetries(retries)))
	_, err := sharded.Step(testContext(t), StepRequest{Optimizer: AdamW(1), Params: Tensors{From("w", []float32{1})}})
	if !errors.Is(err, ErrDraining) {
		t.Fatal(err)
	}
	for i, replica := range all {
		if replica.count() != 1+retries {
			t.Errorf("replica %d had %d calls of %d", i, replica.count(), 1+retries)
		}
	}
	all[0].answer = refuse(503, ErrDraining, "1")
	all[1].answer, all[2].answer = all[0].answer, all[0].answer
	start := time.Now()
	if _, err := sharded.Step(testContext(t), StepRequest{Optimizer: AdamW(1), Params: Tensors{From("w", []float32{1})}}); !errors.Is(err, ErrDraining) {
		t.Fatal(err)
	}
	if took := time.Since(start); took < retries*time.Second {
		t.Errorf("%s for %d pauses of a second", took, retries)
	}
}

func TestReplicaCoolDown(t *testing.T) {
	var r replicas
	if first := r.pick([]bool{false, false}, -1); first != 0 {
		t.Fatal(first)
	}
	for _, seconds := range []int{1, 2, 4, 8, 16, 32, 60, 60, 60} {
		start := time.Now()
		r.recordFailure(0, start)
		// If a call started before the last failure, its own failure changes nothing.
		r.recordFailure(0, start.Add(-time.Nanosecond))
		if coolDown := r.health[0].coolDownUntil.Sub(r.health[0].failedAt); coolDown != time.Duration(seconds)*time.Second {
			t.Fatalf("a cool-down of %s, expected %d s", coolDown, seconds)
		}
	}
	for range 4 {
		if picked := r.pick([]bool{false, false}, -1); picked != 1 {
			t.Fatal("a replica that rests was picked")
		}
	}
	if picked := r.pick([]bool{false, true}, -1); picked != 0 {
		t.Fatal("the only one left was not picked")
	}
	r.health[0].coolDownUntil = time.Now()
	probes := 0
	for range 6 {
		if r.pick([]bool{false, false}, -1) == 0 {
			probes++
		}
	}
	if probes != 1 {
		t.Fatalf("%d calls at once to one that may be dead still", probes)
	}
	r.recordSuccess(0)
	picked := map[int]bool{r.pick([]bool{false, false}, -1): true, r.pick([]bool{false, false}, -1): true}
	if len(picked) != 2 {
		t.Fatal("a replica that answered is still cooling down")
	}
	start := time.Now()
	r.recordFailure(0, start)
	if coolDown := r.health[0].coolDownUntil.Sub(r.health[0].failedAt); coolDown != time.Second {
		t.Fatalf("a cool-down of %s after a success", coolDown)
	}
}

// A refusal shows that the replica works, and ends the replica's cool-down.
func TestRefusalEndsCoolDown(t *testing.T) {
	sharded := newSharded(t, shared.url, "http://127.0.0.1:1")
	sharded.replicas.health = []health{{failures: 3, coolDownUntil: time.Now().Add(time.Second)}, {failures: 3, coolDownUntil: time.Now().Add(time.Minute)}}
	if _, err := sharded.Step(testContext(t), StepRequest{Optimizer: SGD(-1)}); !errors.Is(err, ErrInvalidParams) {
		t.Fatal(err)
	}
	if h := sharded.replicas.health; h[0].failures != 0 || h[1].failures != 3 {
		t.Fatalf("%+v", h)
	}
}

// The client tries a dead replica at 0, 1 and 3 seconds, although the test makes 4 calls per second.
func TestDeadReplicaCoolsDownLonger(t *testing.T) {
	dead := &fixedAnswer{answer: cut("")}
	sharded := newSharded(t, serve(t, dead).URL, shared.url)
	ctx := testContext(t)
	for start := time.Now(); time.Since(start) < 3500*time.Millisecond; time.Sleep(20 * time.Millisecond) {
		must[*StepResult](t)(sharded.Step(ctx, StepRequest{Optimizer: SGD(1), Params: Tensors{From("w", []float32{1})}}))
	}
	if calls := dead.count(); calls < 2 || calls > 3 {
		t.Fatalf("%d calls of a dead replica", calls)
	}
}

func TestRetryAfter(t *testing.T) {
	for text, expected := range map[string]time.Duration{"0": 0, "2": 2 * time.Second, "1.5": 1500 * time.Millisecond, "999999999999": 365 * 24 * time.Hour,
		time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat): 0} {
		if found, ok := retryAfter(text); !ok || found != expected {
			t.Errorf("%q: %s %v", text, found, ok)
		}
	}
	if found, ok := retryAfter(time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)); !ok || found < 59*time.Minute || found > time.Hour {
		t.Error(found, ok)
	}
	for _, text := range []string{"", "-1", "soon", "NaN", "Infinity", "inf", "0x10", "1e3", "1_0", ".", "1.2.3", strings.Repeat("9", 400), "Tue, 99 Nov 2026 00:00:00 GMT"} {
		if found, ok := retryAfter(text); ok || found != 0 {
			t.Errorf("%q: %s %v", text, found, ok)
		}
	}
	if wait := retryDelay(&Error{Status: 503}, 0); wait < firstBackoff/2 || wait > firstBackoff {
		t.Errorf("a pause of %s where the server said nothing", wait)
	}
	if wait := retryDelay(&Error{Status: 503, hasRetryAfter: true}, 0); wait != 0 {
		t.Errorf("a pause of %s where the server said none", wait)
	}
}

// No error repeats a password or a token, whichever part of the address holds the secret.
func TestErrorsKeepSecrets(t *testing.T) {
	const secret = "hunter2"
	for _, address := range []string{
		"http://user:hunter2@host", "http://user:hunter2@host:port", "https://hunter2@host", "http://user:hunter2/x@host", "http://user:hun%zzhunter2@host",
		"user:hunter2@host:80", "//user:hunter2@host", "ftp://user:hunter2@host", "unix://user:hunter2@/socket", "http://host/?token=hunter2", "http://host/#hunter2",
		"http://user:hunter2", "hunter2", "ftp://hunter2", "http://[hunter2", "http://host:hunter2", "http://user:\nhunter2@host", "http:///hunter2", "unix:hunter2",
	} {
		if client, err := New(address); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%q: %v %v", address, client, err)
		}
		if _, err := NewSharded([]string{"http://a", address}); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%q: %v", address, err)
		}
	}
	if _, err := New("http://host", WithToken(secret+"\n")); err == nil || strings.Contains(err.Error(), secret) {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(testContext(t), 10*time.Second)
	defer cancel()
	for _, answer := range []http.HandlerFunc{cut(""), foreignAnswer(200, msgpackType, "junk"), foreignAnswer(401, "text/html", "no"), refuse(401, ErrUnauthenticated, "")} {
		_, err := newClient(t, serve(t, answer).URL, WithToken(secret), WithRetries(0)).Step(ctx, StepRequest{Optimizer: AdamW(1)})
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Error(err)
		}
	}
	// A socket's path may contain an @.
	newClient(t, "unix:///run/a@b")
}
