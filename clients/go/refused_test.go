package stepd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// unusedPort returns a port at which nothing listens.
func unusedPort(t *testing.T) int {
	t.Helper()
	listener := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}

// syncBuffer is a log buffer for several goroutines.
type syncBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

// steppers returns a Client and a Sharded for one address.
func steppers(t *testing.T, address string, options ...Option) map[string]stepper {
	t.Helper()
	sharded := must[*Sharded](t)(NewSharded([]string{address, address}, options...))
	t.Cleanup(sharded.Close)
	sharded.RequestBytes = 1
	return map[string]stepper{"client": newClient(t, address, options...), "sharded": sharded}
}

func TestWaitsForRestartingServer(t *testing.T) {
	request := StepRequest{Optimizer: AdamW(0.01), Params: model(1), Grads: model(2)}
	expected := must[*StepResult](t)(newClient(t, shared.url).Step(testContext(t), request))
	port := unusedPort(t)
	var log syncBuffer
	logger := WithLogger(slog.New(slog.NewTextHandler(&log, nil)))
	started := make(chan *server, 1)
	time.AfterFunc(1500*time.Millisecond, func() {
		server, err := startServer(fmt.Sprintf("STEPD_PORT=%d", port))
		if err != nil {
			t.Error(err)
		}
		started <- server
	})
	t.Cleanup(func() {
		if server := <-started; server != nil {
			server.kill()
		}
	})
	results := make(chan error)
	clients := steppers(t, fmt.Sprintf("http://127.0.0.1:%d", port), logger)
	for _, client := range clients {
		go func() {
			result, err := client.Step(testContext(t), request)
			if err == nil && !bytes.Equal(result.State.Bytes(), expected.State.Bytes()) {
				err = errors.New("another state than that of a server that was there")
			}
			results <- err
		}()
	}
	for range clients {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if !strings.Contains(log.text.String(), "level=WARN") || !strings.Contains(log.text.String(), "refuses connections; trying again for 30s") {
		t.Fatal(log.text.String())
	}
}

func TestGivesUpRefusingAddress(t *testing.T) {
	address := fmt.Sprintf("http://127.0.0.1:%d", unusedPort(t))
	for name, c := range map[string]struct {
		options []Option
		limit   time.Duration
	}{
		"no retries":      {[]Option{WithRetries(0)}, time.Minute},
		"WithRefused(0)":  {[]Option{WithRefused(0)}, time.Minute},
		"a shorter limit": {[]Option{WithRefused(200 * time.Millisecond)}, time.Minute},
		"the context":     {nil, 500 * time.Millisecond},
		"a Unix socket":   {[]Option{WithRefused(200 * time.Millisecond)}, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			at := address
			if name == "a Unix socket" {
				at = "unix://" + t.TempDir() + "/none"
			}
			var log syncBuffer
			logger := WithLogger(slog.New(slog.NewTextHandler(&log, nil)))
			for kind, client := range steppers(t, at, append(c.options, logger)...) {
				ctx, cancel := context.WithTimeout(testContext(t), c.limit)
				start := time.Now()
				_, err := client.Step(ctx, StepRequest{Optimizer: AdamW(0.01), Params: model(1), Grads: model(2)})
				cancel()
				if !isRefused(err) && !errors.Is(err, context.DeadlineExceeded) {
					t.Fatal(kind, err)
				}
				var lost *TransportError
				if errors.As(err, &lost) && (lost.URL != at || !strings.Contains(err.Error(), at)) {
					t.Fatalf("%s: %v does not name %s", kind, err, at)
				}
				if waited := time.Since(start); waited > 20*time.Second {
					t.Fatalf("%s: given up after %s", kind, waited)
				}
			}
			if log := log.text.String(); log != "" && !strings.Contains(log, "stepd at "+at+" refuses connections") {
				t.Fatal(log)
			}
		})
	}
}
