package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"

	"stepd"
)

// This file reads and writes settings, the data set, and interrupted runs.

// settings holds the settings that the trainers of all languages share.
type settings struct {
	Goal       float64
	Seed       int
	Groups     []stepd.Group
	Optimizers map[string]stepd.Optimizer
}

func readSettings(path string) (settings, error) {
	var s settings
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	if err != nil {
		return s, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// parameters names a network's tensors, in order.
var parameters = []string{"hidden.weight", "hidden.bias", "output.weight", "output.bias"}

// tensors returns views of the network's values: a change to a view changes the network.
func (n network[T]) tensors() stepd.Tensors {
	return stepd.Tensors{
		stepd.From(parameters[0], n.hiddenWeight, n.inputs(), n.hidden()), stepd.From(parameters[1], n.hiddenBias),
		stepd.From(parameters[2], n.outputWeight, n.hidden(), n.outputs()), stepd.From(parameters[3], n.outputBias),
	}
}

// networkOf copies a network from the tensors whose names begin with a prefix.
func networkOf(tensors stepd.Tensors, prefix string) (network[float32], error) {
	var n network[float32]
	for i, target := range []*[]float32{&n.hiddenWeight, &n.hiddenBias, &n.outputWeight, &n.outputBias} {
		tensor, ok := tensors.Get(prefix + parameters[i])
		if !ok {
			return n, fmt.Errorf("expected the tensor %s, found none", prefix+parameters[i])
		}
		values, err := stepd.Values[float32](tensor)
		if err != nil {
			return n, err
		}
		if len(values) == 0 {
			return n, fmt.Errorf("%s: expected values, found none", tensor.Name)
		}
		*target = slices.Clone(values)
	}
	for i, tensor := range n.tensors() {
		if found, _ := tensors.Get(prefix + parameters[i]); !slices.Equal(found.Shape, tensor.Shape) {
			return n, fmt.Errorf("%s: expected shape %v, found %v", found.Name, tensor.Shape, found.Shape)
		}
	}
	return n, nil
}

// digits is the file that examples/digits/train.py --export writes: the training and test images, the first parameters, and the
// images of each step.
type digits struct {
	seed                    int32
	trainImages, testImages []float32
	trainLabels, testLabels []int32
	// batches lists the images of each step, by epoch and then by step.
	batches [][][]int32
	first   network[float32]
}

func readDigits(path string) (*digits, error) {
	tensors, err := stepd.LoadTensors(path)
	if err != nil {
		return nil, err
	}
	r, d := reader{tensors: tensors}, &digits{}
	d.first, r.err = networkOf(tensors, "params/")
	seed, _ := r.indexes("seed", 0, math.MaxInt32)
	d.trainImages, d.trainLabels = r.images("train", d.first)
	d.testImages, d.testLabels = r.images("test", d.first)
	order, shape := r.indexes("batches", 3, len(d.trainLabels))
	if r.err != nil {
		return nil, fmt.Errorf("%s: %w", path, r.err)
	}
	d.seed = seed[0]
	steps := slices.Collect(slices.Chunk(order, max(1, shape[2])))
	d.batches = slices.Collect(slices.Chunk(steps, max(1, shape[1])))
	return d, nil
}

// reader reads tensors and keeps the first error. After an error, its results are meaningless.
type reader struct {
	tensors stepd.Tensors
	err     error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

// images returns the images of a part of the data set, and their labels.
func (r *reader) images(part string, n network[float32]) ([]float32, []int32) {
	labels, _ := r.indexes(part+".labels", 1, n.outputs())
	tensor, _ := r.tensors.Get(part + ".images")
	images, err := stepd.Values[float32](tensor)
	if err != nil || !slices.Equal(tensor.Shape, []int{len(labels), n.inputs()}) {
		r.fail("%s.images: expected F32 of shape %v, found %q %v", part, []int{len(labels), n.inputs()}, tensor.DType, tensor.Shape)
	}
	return images, labels
}

// indexes returns a tensor's whole numbers and its shape. The numbers must be below the limit.
func (r *reader) indexes(name string, dimensions, limit int) ([]int32, []int) {
	tensor, _ := r.tensors.Get(name)
	values := make([]int32, len(tensor.Data)/4)
	if tensor.DType != "I32" || len(tensor.Shape) != dimensions {
		r.fail("%s: expected I32 of %d dimensions, found %q %v", name, dimensions, tensor.DType, tensor.Shape)
	} else if _, err := binary.Decode(tensor.Data, binary.LittleEndian, values); err != nil {
		r.fail("%s: %w", name, err)
	}
	for i, value := range values {
		if value < 0 || int(value) >= limit {
			r.fail("%s[%d]: expected 0 to %d, found %d", name, i, limit-1, value)
		}
	}
	return values, tensor.Shape
}

// An interrupted run consists of three files that trainers in all languages read: the parameters, the optimizer's state, and
// the gradients of the last step.
func paramsFile(prefix string) string { return prefix + ".params.safetensors" }
func stateFile(prefix string) string  { return prefix + ".state.safetensors" }
func gradsFile(prefix string) string  { return prefix + ".grads.safetensors" }

func readNetwork(path string) (network[float32], error) {
	tensors, err := stepd.LoadTensors(path)
	if err != nil {
		return network[float32]{}, err
	}
	n, err := networkOf(tensors, "")
	if err != nil {
		return n, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}

func saveRun(prefix string, n, grads network[float32], state *stepd.State) error {
	err := errors.Join(n.tensors().Save(paramsFile(prefix)), grads.tensors().Save(gradsFile(prefix)))
	if state != nil {
		return errors.Join(err, state.Save(stateFile(prefix)))
	}
	// The state of an earlier run does not belong to these parameters, so it is removed.
	if removed := os.Remove(stateFile(prefix)); !errors.Is(removed, fs.ErrNotExist) {
		err = errors.Join(err, removed)
	}
	return err
}
