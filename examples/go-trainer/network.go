package main

import (
	"math"
	"slices"
)

// This file holds the classifier and its gradients, written out by hand: a hidden layer with ReLU, and the mean cross-entropy
// of a batch.

type float interface{ float32 | float64 }

// network holds its weights in row-major order, one row for each input. Gradients have the same type.
type network[T float] struct {
	hiddenWeight, hiddenBias, outputWeight, outputBias []T
}

func (n network[T]) inputs() int  { return len(n.hiddenWeight) / len(n.hiddenBias) }
func (n network[T]) hidden() int  { return len(n.hiddenBias) }
func (n network[T]) outputs() int { return len(n.outputBias) }

func (n network[T]) size() int {
	return len(n.hiddenWeight) + len(n.hiddenBias) + len(n.outputWeight) + len(n.outputBias)
}

// zerosLike allocates gradients of a network's shape.
func zerosLike[T float](n network[T]) network[T] {
	return network[T]{
		make([]T, len(n.hiddenWeight)), make([]T, len(n.hiddenBias)), make([]T, len(n.outputWeight)), make([]T, len(n.outputBias)),
	}
}

// layer adds bias + in * weight to out.
func layer[T float](out, in, weight, bias []T) {
	copy(out, bias)
	for i, value := range in {
		axpy(out, value, weight[i*len(out):])
	}
}

// axpy adds scale * x to y.
func axpy[T float](y []T, scale T, x []T) {
	for i := range y {
		y[i] += scale * x[i]
	}
}

func dot[T float](a, b []T) (sum T) {
	for i := range a {
		sum += a[i] * b[i]
	}
	return sum
}

// forward computes the hidden activations and the logits of one image.
func (n network[T]) forward(image, hidden, logits []T) {
	layer(hidden, image, n.hiddenWeight, n.hiddenBias)
	for i := range hidden {
		hidden[i] = max(hidden[i], 0)
	}
	layer(logits, hidden, n.outputWeight, n.outputBias)
}

// lossAndGrads returns the loss of a batch of images, and its gradient for every parameter.
func (n network[T]) lossAndGrads(images []T, labels, batch []int32) (T, network[T]) {
	grads := zerosLike(n)
	hidden, dHidden := make([]T, n.hidden()), make([]T, n.hidden())
	logits := make([]T, n.outputs())
	loss, scale := T(0), 1/T(len(batch))
	for _, index := range batch {
		image := row(images, index, n.inputs())
		label := labels[index]
		n.forward(image, hidden, logits)
		loss -= scale * logSoftmax(logits)[label]
		// The gradient of a logit is its probability, minus 1 for the correct digit.
		dLogits := logits
		for i := range dLogits {
			dLogits[i] = scale * T(math.Exp(float64(dLogits[i])))
		}
		dLogits[label] -= scale
		axpy(grads.outputBias, 1, dLogits)
		for i, value := range hidden {
			axpy(grads.outputWeight[i*n.outputs():][:n.outputs()], value, dLogits)
			dHidden[i] = 0
			if value > 0 {
				dHidden[i] = dot(dLogits, n.outputWeight[i*n.outputs():])
			}
		}
		axpy(grads.hiddenBias, 1, dHidden)
		for i, value := range image {
			axpy(grads.hiddenWeight[i*n.hidden():][:n.hidden()], value, dHidden)
		}
	}
	return loss, grads
}

// logSoftmax replaces logits by log-probabilities.
func logSoftmax[T float](logits []T) []T {
	most, sum := slices.Max(logits), 0.0
	for _, logit := range logits {
		sum += math.Exp(float64(logit - most))
	}
	for i := range logits {
		logits[i] -= most + T(math.Log(sum))
	}
	return logits
}

// accuracy returns the share of images whose label has the largest logit.
func (n network[T]) accuracy(images []T, labels []int32) float64 {
	hidden, logits := make([]T, n.hidden()), make([]T, n.outputs())
	right := 0
	for i, label := range labels {
		n.forward(row(images, int32(i), n.inputs()), hidden, logits)
		if slices.Index(logits, slices.Max(logits)) == int(label) {
			right++
		}
	}
	return float64(right) / float64(len(labels))
}

func row[T float](images []T, index int32, size int) []T {
	return images[int(index)*size:][:size]
}
