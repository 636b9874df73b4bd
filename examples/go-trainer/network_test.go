package main

import (
	"math"
	"math/rand/v2"
	"testing"
)

// The gradient of every parameter must equal the slope of the loss, measured in float64.
func TestGradients(t *testing.T) {
	const inputs, hidden, outputs, images, step = 5, 4, 3, 6, 1e-6
	source := rand.New(rand.NewPCG(7, 1))
	normal := func(count int) []float64 {
		values := make([]float64, count)
		for i := range values {
			values[i] = source.NormFloat64()
		}
		return values
	}
	n := network[float64]{normal(inputs * hidden), normal(hidden), normal(hidden * outputs), normal(outputs)}
	x, labels, batch := normal(images*inputs), []int32{0, 1, 2, 2, 1, 0}, []int32{5, 0, 3, 2}
	loss, grads := n.lossAndGrads(x, labels, batch)
	if loss <= 0 {
		t.Fatal(loss)
	}
	for name, pair := range map[string][2][]float64{
		"hidden.weight": {n.hiddenWeight, grads.hiddenWeight}, "hidden.bias": {n.hiddenBias, grads.hiddenBias},
		"output.weight": {n.outputWeight, grads.outputWeight}, "output.bias": {n.outputBias, grads.outputBias},
	} {
		some := false
		for i, value := range pair[0] {
			pair[0][i] = value + step
			above, _ := n.lossAndGrads(x, labels, batch)
			pair[0][i] = value - step
			below, _ := n.lossAndGrads(x, labels, batch)
			pair[0][i] = value
			slope := (above - below) / (2 * step)
			if math.Abs(slope-pair[1][i]) > 1e-8 {
				t.Errorf("%s[%d]: %v, and the slope is %v", name, i, pair[1][i], slope)
			}
			some = some || pair[1][i] != 0
		}
		if !some {
			t.Errorf("%s: all gradients are 0", name)
		}
	}
}

func TestAccuracy(t *testing.T) {
	n := network[float32]{[]float32{1, 0, 0, 1}, []float32{0, 0}, []float32{1, 0, 0, 1}, []float32{0, 0}}
	if found := n.accuracy([]float32{1, 0, 0, 1, 3, 2, 1, 2}, []int32{0, 1, 0, 0}); found != 0.75 {
		t.Fatal(found)
	}
}

func TestLogSoftmaxOfLargeLogits(t *testing.T) {
	if found := logSoftmax([]float64{1000, 1000}); math.Abs(found[0]+math.Ln2) > 1e-12 {
		t.Fatal(found)
	}
}
