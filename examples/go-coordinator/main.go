// Command go-coordinator runs the outer steps of federated learning. Workers post their deltas over HTTP. Once all have arrived,
// the coordinator combines them with stepd, in the order of the workers' names, and takes a step of SGD with Nesterov momentum.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"stepd"
)

// optimizer is the outer optimizer of DiLoCo.
var optimizer = stepd.Optimizer{"name": "sgd", "lr": 0.7, "momentum": 0.9, "nesterov": true}

// maxUpdateBytes is the largest body of an update.
const maxUpdateBytes = 1 << 30

func main() {
	url := flag.String("url", cmp.Or(os.Getenv("STEPD_URL"), "http://127.0.0.1:8080"), "where stepd listens, also as STEPD_URL")
	listen := flag.String("listen", "127.0.0.1:8090", "where workers send their updates")
	folder := flag.String("folder", "coordinator", "where parameters, state and round are kept")
	start := flag.String("start", "", "a safetensors file with the first parameters, for a new folder")
	workers := flag.Int("workers", 2, "updates of a round")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *url, *listen, *folder, *start, *workers); err != nil {
		fmt.Fprintln(os.Stderr, "go-coordinator:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, url, listen, folder, start string, workers int) error {
	client, err := stepd.New(url)
	if err != nil {
		return err
	}
	defer client.Close()
	c, err := open(client, folder, start, workers)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	log.Printf("round %d, listening on http://%s", c.Round, listener.Addr())
	server := &http.Server{Handler: c.handler()}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// latest names the files of the last round. Replacing its file replaces parameters, state and round at once.
type latest struct {
	Round  int    `json:"round"`
	Params string `json:"params"`
	State  string `json:"state,omitempty"`
}

type coordinator struct {
	latest
	client  *stepd.Client
	folder  string
	workers int

	mu      sync.Mutex
	params  stepd.Tensors
	state   *stepd.State
	updates map[string]stepd.Update
	// done is closed at the end of the round.
	done chan struct{}
}

const latestFile = "latest.json"

// open continues the run in the folder, or starts one.
func open(client *stepd.Client, folder, start string, workers int) (*coordinator, error) {
	c := &coordinator{client: client, folder: folder, workers: workers, updates: map[string]stepd.Update{}, done: make(chan struct{})}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, err
	}
	// A killed process may have left partial files.
	parts, err := filepath.Glob(filepath.Join(folder, "*.part"))
	if err != nil {
		return nil, err
	}
	for _, part := range parts {
		_ = os.Remove(part)
	}
	text, err := os.ReadFile(filepath.Join(folder, latestFile))
	if errors.Is(err, os.ErrNotExist) {
		if start == "" {
			return nil, fmt.Errorf("%s has no run, and -start names no parameters", folder)
		}
		if c.params, err = stepd.LoadTensors(start); err != nil {
			return nil, err
		}
		return c, c.save(0, c.params, nil)
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &c.latest); err != nil {
		return nil, fmt.Errorf("%s: %w", latestFile, err)
	}
	if c.params, err = stepd.LoadTensors(filepath.Join(folder, c.Params)); err != nil {
		return nil, err
	}
	if c.State != "" {
		c.state, err = stepd.LoadState(filepath.Join(folder, c.State))
	}
	return c, err
}

func (c *coordinator) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /params", c.sendParams)
	mux.HandleFunc("POST /updates", c.receiveUpdate)
	return mux
}

// sendParams sends the current parameters, with the number of the round in a header.
func (c *coordinator) sendParams(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w.Header().Set("Round", strconv.Itoa(c.Round))
	http.ServeFile(w, r, filepath.Join(c.folder, c.Params))
}

// receiveUpdate receives deltas as a safetensors file, with worker, round and weight in the query. It replies after the round's step.
func (c *coordinator) receiveUpdate(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	weight, err := strconv.ParseFloat(query.Get("weight"), 64)
	if err != nil || query.Get("worker") == "" {
		http.Error(w, "expected worker, round and weight", http.StatusBadRequest)
		return
	}
	deltas, err := c.readTensors(http.MaxBytesReader(w, r.Body, maxUpdateBytes))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	update := stepd.Update{Tensors: deltas, Weight: weight}
	done, err := c.add(r.Context(), query.Get("worker"), query.Get("round"), update)
	if err != nil {
		http.Error(w, err.Error(), statusOf(err))
		return
	}
	select {
	case <-done:
	case <-r.Context().Done():
	}
}

// errRound refuses an update of another round.
var errRound = errors.New("another round")

// statusOf returns the status of the reply to an update that the coordinator does not accept.
func statusOf(err error) int {
	var refusal *stepd.Error
	switch {
	case errors.Is(err, errRound):
		return http.StatusConflict
	case errors.As(err, &refusal) && refusal.Status < http.StatusInternalServerError:
		return http.StatusUnprocessableEntity
	}
	return http.StatusBadGateway
}

func (c *coordinator) readTensors(from io.Reader) (stepd.Tensors, error) {
	file, err := os.CreateTemp(c.folder, "update-*.part")
	if err != nil {
		return nil, err
	}
	defer os.Remove(file.Name())
	_, err = io.Copy(file, from)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, err
	}
	return stepd.LoadTensors(file.Name())
}

// add adds an update to the round, and takes the step after the last one. A second update of a worker replaces its first.
func (c *coordinator) add(ctx context.Context, worker, round string, update stepd.Update) (<-chan struct{}, error) {
	if err := c.check(ctx, round, update); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.requireRound(round); err != nil {
		return nil, err
	}
	c.updates[worker] = update
	done := c.done
	if len(c.updates) < c.workers {
		return done, nil
	}
	// A worker that disconnects must not end the round for the others.
	if err := c.step(context.WithoutCancel(ctx)); err != nil {
		delete(c.updates, worker)
		return nil, err
	}
	return done, nil
}

// check reduces an update by itself. Otherwise an update with NaN or another shape would make the step fail for all workers.
func (c *coordinator) check(ctx context.Context, round string, update stepd.Update) error {
	c.mu.Lock()
	params, err := c.params, c.requireRound(round)
	c.mu.Unlock()
	if err != nil {
		return err
	}
	_, err = c.client.Reduce(ctx, stepd.ReduceRequest{Params: params, Updates: []stepd.Update{update}, Form: stepd.FormDeltas})
	return err
}

func (c *coordinator) requireRound(round string) error {
	if round != strconv.Itoa(c.Round) {
		return fmt.Errorf("%w: expected an update of round %d, found round %q", errRound, c.Round, round)
	}
	return nil
}

// step combines the updates and takes the outer step.
func (c *coordinator) step(ctx context.Context) error {
	var updates []stepd.Update
	for _, worker := range slices.Sorted(maps.Keys(c.updates)) {
		updates = append(updates, c.updates[worker])
	}
	reduced, err := c.client.Reduce(ctx, stepd.ReduceRequest{Params: c.params, Updates: updates, Form: stepd.FormDeltas})
	if err != nil {
		return err
	}
	params, state := c.params, c.state
	// Weights that sum to 0 change nothing.
	if !reduced.Skipped {
		result, err := c.client.Step(ctx, stepd.StepRequest{Optimizer: optimizer, Params: params, Grads: reduced.Grads, State: state})
		if err != nil {
			return err
		}
		params, state = result.Params, result.State
	}
	if err := c.save(c.Round+1, params, state); err != nil {
		return err
	}
	log.Printf("round %d: %d updates of weight %g", c.Round, reduced.Count, reduced.Weight)
	c.updates = map[string]stepd.Update{}
	close(c.done)
	c.done = make(chan struct{})
	return nil
}

// save writes parameters and state, then the file that names them. If it fails, the files of the round before stay in use.
func (c *coordinator) save(round int, params stepd.Tensors, state *stepd.State) error {
	next := latest{Round: round, Params: fmt.Sprintf("round-%d.params.safetensors", round)}
	if err := params.Save(filepath.Join(c.folder, next.Params)); err != nil {
		return err
	}
	if state != nil {
		next.State = fmt.Sprintf("round-%d.state.safetensors", round)
		if err := state.Save(filepath.Join(c.folder, next.State)); err != nil {
			return err
		}
	}
	text, err := json.Marshal(next)
	if err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(c.folder, latestFile), text); err != nil {
		return err
	}
	for _, name := range []string{c.Params, c.State} {
		if name != "" && name != next.Params && name != next.State {
			_ = os.Remove(filepath.Join(c.folder, name))
		}
	}
	c.latest, c.params, c.state = next, params, state
	return nil
}

// replaceFile replaces a file at once. The new content is on the disk before the file has its name.
func replaceFile(path string, content []byte) error {
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.part")
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err := errors.Join(err, file.Sync(), file.Chmod(0o644), file.Close()); err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	return os.Rename(file.Name(), path)
}
