package stepd_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"path/filepath"

	"stepd"
)

// gradient returns the gradient of 0.5 * sum((w - 3)^2).
func gradient(w []float32) []float32 {
	g := make([]float32, len(w))
	for i := range w {
		g[i] = w[i] - 3
	}
	return g
}

// In a training loop, each step updates the weights in place, and passes its state to the next step.
func Example() {
	client, err := stepd.New(os.Getenv("STEPD_URL")) // for example http://127.0.0.1:8080 or unix:///run/stepd.sock
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	w := []float32{0, 1, 10}
	params := stepd.Tensors{stepd.From("w", w)}
	var state *stepd.State
	for range 300 {
		result, err := client.Step(context.Background(), stepd.StepRequest{
			Optimizer: stepd.AdamW(0.1).With("weight_decay", 0.0),
			Params:    params,
			Grads:     stepd.Tensors{stepd.From("w", gradient(w))},
			State:     state,
			Into:      params,
		})
		if err != nil {
			log.Fatal(err)
		}
		state = result.State
	}
	fmt.Printf("%.2f after %d steps\n", w, state.Step())
	// Output: [3.00 3.00 3.00] after 300 steps
}

// A run is two files, the parameters and the state. A process that loads both continues with the same bits.
func ExampleLoadState() {
	client, err := stepd.New(os.Getenv("STEPD_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	folder, err := os.MkdirTemp("", "stepd")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(folder)

	// The second call continues the run of the first, as a new process would.
	for range 2 {
		if err := train(context.Background(), client, folder, 150); err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// [3.00 3.00 3.02] after 150 steps
	// [3.00 3.00 3.00] after 300 steps
}

// load returns the parameters and the state of a saved run, or those of a new run if the folder has none.
func load(folder string) (stepd.Tensors, *stepd.State, error) {
	params, err := stepd.LoadTensors(filepath.Join(folder, "params.safetensors"))
	if errors.Is(err, fs.ErrNotExist) {
		return stepd.Tensors{stepd.From("w", []float32{0, 1, 10})}, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	state, err := stepd.LoadState(filepath.Join(folder, "state.safetensors"))
	return params, state, err
}

// train continues a run for some steps, and saves it.
func train(ctx context.Context, client *stepd.Client, folder string, steps int) error {
	params, state, err := load(folder)
	if err != nil {
		return err
	}
	w, err := stepd.Values[float32](params[0]) // a view of the parameters
	if err != nil {
		return err
	}
	for range steps {
		result, err := client.Step(ctx, stepd.StepRequest{
			Optimizer: stepd.AdamW(0.1).With("weight_decay", 0.0),
			Params:    params,
			Grads:     stepd.Tensors{stepd.From("w", gradient(w))},
			State:     state,
			Into:      params,
		})
		if err != nil {
			return err
		}
		state = result.State
	}
	fmt.Printf("%.2f after %d steps\n", w, state.Step())
	if err := params.Save(filepath.Join(folder, "params.safetensors")); err != nil {
		return err
	}
	return state.Save(filepath.Join(folder, "state.safetensors"))
}

// The server evaluates the schedule at the number of steps in the state, so a resumed run needs nothing else.
func ExampleSchedule() {
	client, err := stepd.New(os.Getenv("STEPD_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	ctx := context.Background()
	w := []float32{0, 1, 10}
	params := stepd.Tensors{stepd.From("w", w)}
	var state *stepd.State
	for range 3 {
		result, err := client.Step(ctx, stepd.StepRequest{
			Optimizer: stepd.AdamW(1e-3),
			Schedule:  stepd.Schedule{"name": "warmup_cosine", "warmup_steps": 100, "total_steps": 1000, "start_factor": 0.01},
			Params:    params,
			Grads:     stepd.Tensors{stepd.From("w", gradient(w))},
			State:     state,
			Into:      params,
		})
		if err != nil {
			log.Fatal(err)
		}
		state = result.State
		fmt.Printf("%.3g\n", result.LR)
	}
	// Output:
	// 1e-05
	// 1.99e-05
	// 2.98e-05
}

// An error of the server has a name and details.
func ExampleError() {
	client, err := stepd.New(os.Getenv("STEPD_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	_, err = client.Step(context.Background(), stepd.StepRequest{
		Optimizer: stepd.AdamW(-1),
		Params:    stepd.Tensors{stepd.From("w", []float32{1})},
	})
	var refusal *stepd.Error
	if errors.Is(err, stepd.ErrInvalidParams) && errors.As(err, &refusal) {
		fmt.Printf("%s: expected %s, found %s\n", refusal.Field, refusal.Expected, refusal.Found)
	}
	// Output: /optimizer/lr: expected at least 0, found -1
}

// If the server runs on the same host, tensors go through files in a folder that both processes share.
func ExampleWithSharedDir() {
	// STEPD_SHARED_DIR is the setting with which the server was started, such as /dev/shm/stepd.
	client, err := stepd.New(os.Getenv("STEPD_URL"), stepd.WithSharedDir(os.Getenv("STEPD_SHARED_DIR")))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close() // Close removes the files

	w := make([]float32, 1<<20)
	params := stepd.Tensors{stepd.From("w", w)}
	var state *stepd.State
	for range 3 {
		result, err := client.Step(context.Background(), stepd.StepRequest{
			Optimizer: stepd.AdamW(0.1), Params: params, Grads: stepd.Tensors{stepd.From("w", gradient(w))}, State: state, Into: params,
		})
		if err != nil {
			log.Fatal(err)
		}
		state = result.State // the state stays in its file, which the next step names
	}
	fmt.Printf("%.2f after %d steps\n", w[0], state.Step())
	// Output: 0.30 after 3 steps
}

// Parameters and gradients are in the shared folder from the start, so a step copies nothing.
func ExampleClient_Share() {
	client, err := stepd.New(os.Getenv("STEPD_URL"), stepd.WithSharedDir(os.Getenv("STEPD_SHARED_DIR")))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	zeros := stepd.Tensors{{Name: "w", DType: stepd.F32, Shape: []int{1 << 20}}}
	params, freeParams, err := client.Share(zeros)
	if err != nil {
		log.Fatal(err)
	}
	defer freeParams()
	grads, freeGrads, err := client.Share(zeros)
	if err != nil {
		log.Fatal(err)
	}
	defer freeGrads()
	w, err := stepd.Values[float32](params[0])
	if err != nil {
		log.Fatal(err)
	}
	g, err := stepd.Values[float32](grads[0])
	if err != nil {
		log.Fatal(err)
	}
	var state *stepd.State
	for range 3 {
		for i := range w {
			g[i] = w[i] - 3
		}
		result, err := client.Step(context.Background(), stepd.StepRequest{
			Optimizer: stepd.AdamW(0.1), Params: params, Grads: grads, State: state, Into: params,
		})
		if err != nil {
			log.Fatal(err)
		}
		state = result.State
	}
	fmt.Printf("%.2f after %d steps\n", w[0], state.Step())
	// Output: 0.30 after 3 steps
}

// Parameters and state stay on the server. A step sends gradients in BF16 or F32, and returns parameters in BF16.
func ExampleStepRequest_cached() {
	client, err := stepd.New(os.Getenv("STEPD_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	request := stepd.StepRequest{
		Optimizer: stepd.AdamW(0.1),
		Params:    stepd.Tensors{stepd.From("w", []float32{0, 1, 10})},
		Grads:     stepd.Tensors{stepd.From("w", []float32{-3, -2, 7})},
	}
	for step := range 4 {
		request.Reply = stepd.Reply{Cache: true, Params: stepd.ReplyBF16, State: stepd.ReplyNone}
		if step == 3 {
			request.Reply = stepd.Reply{Cache: true} // a full reply now and then lets the caller continue after stepd.ErrBlobMissing
		}
		result, err := client.Step(context.Background(), request)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(result.Step, result.Params[0].DType, result.State.Err() == nil)
		request.Params, request.State, request.Cached = nil, nil, result.Cached
	}
	// Output:
	// 1 BF16 false
	// 2 BF16 false
	// 3 BF16 false
	// 4 F32 true
}

// A step of this model takes several calls over several replicas, with exact clipping by the norm of all gradients.
func ExampleSharded() {
	sharded, err := stepd.NewSharded([]string{os.Getenv("STEPD_URL"), os.Getenv("STEPD_URL")})
	if err != nil {
		log.Fatal(err)
	}
	sharded.RequestBytes = 32 << 20

	result, err := sharded.Step(context.Background(), stepd.StepRequest{
		Optimizer: stepd.SGD(1),
		Params:    stepd.Tensors{stepd.From("a", []float32{0}), stepd.From("b", []float32{0})},
		Grads:     stepd.Tensors{stepd.From("a", []float32{30}), stepd.From("b", []float32{40})},
		Clip:      &stepd.Clip{MaxNorm: 5},
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, tensor := range result.Params {
		values, err := stepd.Values[float32](tensor)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s %.1f\n", tensor.Name, values)
	}
	// Output:
	// a [-3.0]
	// b [-4.0]
}
