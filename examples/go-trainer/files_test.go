package main

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"stepd"
)

func small() network[float32] {
	return network[float32]{[]float32{1, 2, 3, 4, 5, 6}, []float32{7, 8}, []float32{9, 10}, []float32{11}}
}

func TestRunsAreReadAsTheyWereSaved(t *testing.T) {
	prefix := filepath.Join(t.TempDir(), "run")
	if err := saveRun(prefix, small(), zerosLike(small()), nil); err != nil {
		t.Fatal(err)
	}
	found, err := readNetwork(paramsFile(prefix))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(found.hiddenWeight, small().hiddenWeight) || !slices.Equal(found.outputBias, small().outputBias) || found.inputs() != 3 {
		t.Fatalf("%+v", found)
	}
	// The tensors are views of the network, so a step's writes change the network.
	tensors := found.tensors()
	copy(tensors[3].Data, []byte{0, 0, 128, 63})
	if found.outputBias[0] != 1 {
		t.Fatal(found.outputBias)
	}
}

func TestReadNetworkRejectsWrongTensors(t *testing.T) {
	for expected, change := range map[string]func(stepd.Tensors) stepd.Tensors{
		"expected the tensor output.bias, found none":         func(ts stepd.Tensors) stepd.Tensors { return ts[:3] },
		"hidden.weight: expected shape [3 2], found [2 3]":    func(ts stepd.Tensors) stepd.Tensors { ts[0].Shape = []int{2, 3}; return ts },
		"hidden.bias: expected values, found none":            func(ts stepd.Tensors) stepd.Tensors { ts[1] = stepd.From("hidden.bias", []float32{}); return ts },
		`"hidden.bias" has 16 bytes of F64, which are no flo`: func(ts stepd.Tensors) stepd.Tensors { ts[1] = stepd.From("hidden.bias", []float64{1, 2}); return ts },
	} {
		path := filepath.Join(t.TempDir(), "params")
		if err := change(small().tensors()).Save(path); err != nil {
			t.Fatal(err)
		}
		if _, err := readNetwork(path); err == nil || !strings.Contains(err.Error(), expected) || !strings.Contains(err.Error(), path) {
			t.Errorf("%v, expected %q", err, expected)
		}
	}
}
