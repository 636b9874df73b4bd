// Command go-trainer trains a classifier of handwritten digits in Go, with every optimizer step done by stepd. The network, the
// data, the first parameters and the batches are those of examples/digits in Python. Each trainer can resume the other's runs.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/schollz/progressbar/v3"

	"stepd"
)

type arguments struct {
	url, data, settings, optimizer string
	save, resume, replay           string
	lr                             *float64
	epochs, stopAfter, seed        int
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	reached, err := train(ctx, readArguments())
	if err != nil {
		fmt.Fprintln(os.Stderr, "go-trainer:", err)
	}
	if err != nil || !reached {
		os.Exit(1)
	}
}

func readArguments() arguments {
	var a arguments
	flag.StringVar(&a.url, "url", cmp.Or(os.Getenv("STEPD_URL"), "http://127.0.0.1:8080"), "where stepd listens, also as STEPD_URL")
	flag.StringVar(&a.data, "data", "", "what examples/digits/train.py --export wrote")
	flag.StringVar(&a.settings, "settings", "../digits/settings.json", "what the trainers of all languages agree on")
	flag.StringVar(&a.optimizer, "optimizer", "adamw", "any optimizer of the service")
	flag.Func("lr", "learning rate (one that suits the optimizer)", func(text string) (err error) {
		a.lr = new(float64)
		_, err = fmt.Sscan(text, a.lr)
		return err
	})
	flag.IntVar(&a.epochs, "epochs", 30, "passes over the training set")
	flag.IntVar(&a.stopAfter, "stop-after", -1, "end before the last epoch, after this step of the whole run")
	flag.StringVar(&a.save, "save", "", "write PREFIX.params, .state and .grads (of the last step) .safetensors")
	flag.StringVar(&a.resume, "resume", "", "go on from what -save PREFIX wrote, here or in another language")
	flag.StringVar(&a.replay, "replay", "", "take the gradients of the first step from a file")
	flag.IntVar(&a.seed, "seed", -1, "that the data were made with; -1 is that of the settings")
	flag.Parse()
	return a
}

// train runs the training and reports whether it reached the goal.
func train(ctx context.Context, a arguments) (reached bool, err error) {
	settings, err := readSettings(a.settings)
	if err != nil {
		return false, err
	}
	data, err := readDigits(a.data)
	if err != nil {
		return false, err
	}
	if a.seed < 0 {
		a.seed = settings.Seed
	}
	if int(data.seed) != a.seed {
		return false, fmt.Errorf("%s: expected data of seed %d, found %d", a.data, a.seed, data.seed)
	}
	if len(data.batches) < a.epochs {
		return false, fmt.Errorf("%s: expected batches of %d epochs, found %d", a.data, a.epochs, len(data.batches))
	}
	n, state, err := start(a, data.first)
	if err != nil {
		return false, err
	}
	grads, replay := zerosLike(n), a.replay != ""
	if replay {
		if grads, err = readNetwork(a.replay); err != nil {
			return false, err
		}
	}
	optimizer := maps.Clone(settings.Optimizers[a.optimizer]).With("name", a.optimizer)
	if a.lr != nil {
		optimizer["lr"] = *a.lr
	}
	client, err := stepd.New(a.url)
	if err != nil {
		return false, err
	}
	defer client.Close()

	batches := slices.Concat(data.batches[:a.epochs]...)
	done, stop := int(state.Step()), len(batches)
	if a.stopAfter >= 0 {
		stop = min(a.stopAfter, stop)
	}
	fmt.Printf("%d images to train, %d to test, %d parameters\n", len(data.trainLabels), len(data.testLabels), n.size())
	fmt.Printf("optimizer %v\n", optimizer)
	bar := newBar(len(batches), done)
	params := n.tensors()
	losses, counted := 0.0, 0
	for step := done; step < stop; step++ {
		loss, own := n.lossAndGrads(data.trainImages, data.trainLabels, batches[step])
		if !replay {
			grads = own
		}
		replay = false
		result, err := client.Step(ctx, stepd.StepRequest{
			Optimizer: optimizer, Groups: settings.Groups, Params: params, Grads: grads.tensors(), State: state,
			Into: params, // The step writes the new parameters into the network.
		})
		if err != nil {
			return false, err
		}
		state = result.State
		losses, counted = losses+float64(loss), counted+1
		bar.Describe(fmt.Sprintf("loss %.4f", loss))
		_ = bar.Add(1)
		if perEpoch := len(data.batches[0]); (step+1)%perEpoch == 0 {
			_ = bar.Clear()
			fmt.Printf("epoch %3d  loss %.4f\n", (step+1)/perEpoch, losses/float64(counted))
			losses, counted = 0, 0
		}
	}
	_ = bar.Exit()

	if a.save != "" {
		if err := saveRun(a.save, n, grads, state); err != nil {
			return false, err
		}
	}
	accuracy := n.accuracy(data.testImages, data.testLabels)
	fmt.Printf("test accuracy %.2f%% after %d steps\n", 100*accuracy, state.Step())
	return accuracy > settings.Goal || stop < len(batches), nil
}

// start returns the network and the state from which the run continues.
func start(a arguments, first network[float32]) (network[float32], *stepd.State, error) {
	if a.resume == "" {
		return first, nil, nil
	}
	n, err := readNetwork(paramsFile(a.resume))
	if err != nil {
		return n, nil, err
	}
	state, err := stepd.LoadState(stateFile(a.resume))
	return n, state, err
}

func newBar(total, done int) *progressbar.ProgressBar {
	bar := progressbar.NewOptions(total,
		progressbar.OptionSetWriter(os.Stderr), progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString("step"),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionOnCompletion(func() { fmt.Fprintln(os.Stderr) }))
	_ = bar.Set(done)
	return bar
}
