package stepd

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const root = "../.."

// shared is the server of all tests that need no server of their own. It has a cache and shares sharedDir.
var (
	shared    *server
	sharedDir string
)

func TestMain(m *testing.M) {
	// The workers of `go test -fuzz` call no server, and are killed at the end.
	if slices.Contains(os.Args, "-test.fuzzworker") {
		os.Exit(m.Run())
	}
	os.Exit(func() int {
		var err error
		if sharedDir, err = os.MkdirTemp(memoryDir(), "stepd-go-test-"); err == nil {
			defer os.RemoveAll(sharedDir)
			shared, err = startServer("STEPD_SHARED_DIR="+sharedDir, "STEPD_CACHE_MIB=64")
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer shared.kill()
		// The examples read these variables.
		os.Setenv("STEPD_URL", shared.url)
		os.Setenv("STEPD_SHARED_DIR", sharedDir)
		code := m.Run()
		if left, err := os.ReadDir(sharedDir); err != nil || len(left) > 0 {
			fmt.Fprintln(os.Stderr, "left in the shared folder:", left, err)
			return 1
		}
		return code
	}())
}

// memoryDir returns the path of a file system in memory, or an empty string if there is none.
func memoryDir() string {
	if _, err := os.Stat("/dev/shm"); err != nil {
		return ""
	}
	return "/dev/shm"
}

type server struct {
	url     string
	process *exec.Cmd
	exited  chan struct{}
}

// startServer starts `node src/main.ts` on a free port, and waits until it logs its address.
func startServer(env ...string) (*server, error) {
	node := "node"
	// The repository's own Node is used if it is installed, because the system's Node may be too old.
	if own, err := filepath.Abs(filepath.Join(root, "node_modules/.bin/node")); err == nil {
		if _, err := os.Stat(own); err == nil {
			node = own
		}
	}
	s := &server{process: exec.Command(node, "src/main.ts"), exited: make(chan struct{})}
	s.process.Dir = root
	// Many tests start a server, so the servers share a cache of compiled sources. Its path is relative to s.process.Dir.
	s.process.Env = append([]string{"PATH=" + os.Getenv("PATH"), "NODE_COMPILE_CACHE=build/compile-cache", "STEPD_PORT=0", "STEPD_ARENA_MIB=256", "STEPD_LOG_LEVEL=warn", "STEPD_WORKERS=1"}, env...)
	out, err := s.process.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := s.process.Start(); err != nil {
		return nil, err
	}
	var log strings.Builder
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if _, rest, ok := strings.Cut(lines.Text(), " listens on "); ok {
			s.url, _, _ = strings.Cut(rest, `"`)
			go func() {
				_, _ = io.Copy(io.Discard, out)
				_ = s.process.Wait()
				close(s.exited)
			}()
			return s, nil
		}
		log.WriteString(lines.Text() + "\n")
	}
	_ = s.process.Wait()
	return nil, fmt.Errorf("the server did not start: %s", log.String())
}

// kill stops the server with SIGKILL, as if its machine were lost.
func (s *server) kill() {
	_ = s.process.Process.Kill()
	<-s.exited
}

func ownServer(t *testing.T, env ...string) *server {
	t.Helper()
	s, err := startServer(env...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.kill)
	return s
}

func newClient(t *testing.T, url string, options ...Option) *Client {
	t.Helper()
	client, err := New(url, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// random returns normally distributed values. Equal seeds give equal values.
func random(seed uint64, count int) []float32 {
	source := rand.New(rand.NewPCG(seed, 1))
	values := make([]float32, count)
	for i := range values {
		values[i] = float32(source.NormFloat64())
	}
	return values
}

var testShapes = []struct {
	name  string
	shape []int
}{
	{"layer.weight", []int{50, 40}}, {"layer.bias", []int{40}}, {"scale", []int{}}, {"empty", []int{0, 3}}, {"ünï\"\n\x01", []int{3}}, {"\uffff", []int{2}}, {"😀", []int{2}},
}

// model returns tensors with all kinds of names and shapes.
func model(seed uint64) Tensors {
	var tensors Tensors
	for i, t := range testShapes {
		elements, _ := product(t.shape)
		tensors = append(tensors, From(t.name, random(seed*100+uint64(i), int(elements)), t.shape...))
		tensors[i].Shape = t.shape
	}
	return tensors
}

func clone(tensors Tensors) Tensors {
	copied := slices.Clone(tensors)
	for i := range copied {
		copied[i].Data = append(alignedBytes(0), copied[i].Data...)
	}
	return copied
}

func requireSame(t *testing.T, found, expected Tensors) {
	t.Helper()
	if len(found) != len(expected) {
		t.Fatalf("%d tensors, expected %d", len(found), len(expected))
	}
	for i, tensor := range expected {
		if found[i].Name != tensor.Name || !found[i].sameType(tensor) || string(found[i].Data) != string(tensor.Data) {
			t.Fatalf("tensor %d: %q %s %v is not %q %s %v, or its bytes differ", i, found[i].Name, found[i].DType, found[i].Shape, tensor.Name, tensor.DType, tensor.Shape)
		}
	}
}

func must[T any](t *testing.T) func(value T, err error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}
