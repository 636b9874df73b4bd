package stepd

import (
	"bytes"
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
)

type reducer interface {
	Reduce(context.Context, ReduceRequest) (*Reduced, error)
	Distances(context.Context, []Update, [][]float64) ([][]float64, error)
	Step(context.Context, StepRequest) (*StepResult, error)
}

// bothReducers returns a Client, and a Sharded that splits the tensors of these tests into several calls.
func bothReducers(t *testing.T) map[string]reducer {
	return map[string]reducer{"client": newClient(t, shared.url), "sharded": newSharded(t, shared.url)}
}

// waves returns repeatable values.
func waves(count, seed int) []float32 {
	values := make([]float32, count)
	for i := range values {
		values[i] = float32(math.Sin(float64(i+1) * float64(seed+1)))
	}
	return values
}

func update(seed int, weight float64) Update {
	return Update{Tensors{From("w", waves(400, seed), 20, 20), From("b", waves(7, seed+50)), From("ü", waves(300, seed+90))}, weight}
}

var weighted = []Update{update(1, 3), update(2, 0.5), update(3, 11), update(4, 2)}

func meanOf(updates []Update, name string) []float64 {
	var sum []float64
	total := 0.0
	for _, update := range updates {
		tensor, _ := update.Tensors.Get(name)
		values, _ := Values[float32](tensor)
		if sum == nil {
			sum = make([]float64, len(values))
		}
		for i, value := range values {
			// The conversion keeps the compiler from fusing the product with the addition.
			sum[i] += float64(float64(value) * update.Weight)
		}
		total += update.Weight
	}
	for i := range sum {
		sum[i] /= total
	}
	return sum
}

func TestReduceHasTheBitsOfFloat64(t *testing.T) {
	params := update(9, 0).Tensors
	for name, client := range bothReducers(t) {
		reduced := must[*Reduced](t)(client.Reduce(testContext(t), ReduceRequest{Params: params, Updates: weighted}))
		if reduced.Count != 4 || reduced.Weight != 16.5 || reduced.Skipped || len(reduced.Grads) != 3 {
			t.Fatalf("%s: %+v", name, reduced)
		}
		for i, grad := range reduced.Grads {
			param, _ := Values[float32](params[i])
			found := must[[]float32](t)(Values[float32](grad))
			for j, mean := range meanOf(weighted, grad.Name) {
				if want := float32(float64(param[j]) - mean); grad.Name != params[i].Name || found[j] != want {
					t.Fatalf("%s: %s[%d] is %v, not %v", name, grad.Name, j, found[j], want)
				}
			}
		}
	}
}

func TestReduceMedianOfI8(t *testing.T) {
	codes := func(value int8) Update {
		scale := From("w.scale", []float32{0.5}).Scalar()
		return Update{Tensors: Tensors{{Name: "w", DType: I8, Shape: []int{2}, Data: []byte{byte(value), byte(-value)}}, scale}}
	}
	for name, client := range bothReducers(t) {
		request := ReduceRequest{Updates: []Update{codes(4), codes(-100), codes(6)}, Form: FormGradients, Method: ReduceMethod{Name: Median}}
		reduced := must[*Reduced](t)(client.Reduce(testContext(t), request))
		if values := must[[]float32](t)(Values[float32](reduced.Grads[0])); !slices.Equal(values, []float32{2, -2}) {
			t.Fatalf("%s: %v", name, values)
		}
	}
}

func TestReduceCarriesAnAccumulator(t *testing.T) {
	ctx := testContext(t)
	var accumulators [][]byte
	for name, client := range bothReducers(t) {
		whole := must[*Reduced](t)(client.Reduce(ctx, ReduceRequest{Updates: weighted, Form: FormDeltas}))
		var sums []byte
		for _, one := range weighted {
			sums = must[*Reduced](t)(client.Reduce(ctx, ReduceRequest{Updates: []Update{one}, Form: FormDeltas, Accumulator: sums, Unfinished: true})).Accumulator
		}
		accumulators = append(accumulators, sums)
		folded := must[*Reduced](t)(client.Reduce(ctx, ReduceRequest{Form: FormDeltas, Accumulator: sums}))
		if folded.Count != whole.Count || folded.Weight != whole.Weight {
			t.Fatalf("%s: %+v is not %+v", name, folded, whole)
		}
		known := byName(whole.Grads)
		for _, grad := range folded.Grads {
			if !bytes.Equal(grad.Data, known[grad.Name].Data) {
				t.Fatalf("%s: %s differs", name, grad.Name)
			}
		}
	}
	if !bytes.Equal(accumulators[0], accumulators[1]) {
		t.Fatal("the accumulators of Client and Sharded differ")
	}
}

func TestReduceDropsWhatIsNotFinite(t *testing.T) {
	spoilt := slices.Clone(weighted)
	spoilt[2].Tensors = slices.Clone(spoilt[2].Tensors)
	spoilt[2].Tensors[1] = From("b", append(waves(6, 3), float32(math.NaN())))
	rest := []Update{weighted[0], weighted[1], weighted[3]}
	for name, client := range bothReducers(t) {
		request := ReduceRequest{Params: update(9, 0).Tensors, Updates: spoilt}
		var refusal *Error
		if _, err := client.Reduce(testContext(t), request); !errors.As(err, &refusal) || refusal.Name != ErrNonFiniteGradient || refusal.Field != "/updates/2/tensors" || !strings.Contains(refusal.Message, `"b"`) {
			t.Fatalf("%s: %v", name, err)
		}
		request.DropNonFinite = true
		dropped := must[*Reduced](t)(client.Reduce(testContext(t), request))
		expected := must[*Reduced](t)(client.Reduce(testContext(t), ReduceRequest{Params: request.Params, Updates: rest}))
		if !slices.Equal(dropped.Dropped, []int{2}) || dropped.Count != 3 || dropped.Weight != expected.Weight {
			t.Fatalf("%s: %+v", name, dropped)
		}
		requireSame(t, dropped.Grads, expected.Grads)
	}
}

func TestReduceOfNothingSkips(t *testing.T) {
	for name, client := range bothReducers(t) {
		reduced := must[*Reduced](t)(client.Reduce(testContext(t), ReduceRequest{Params: update(9, 0).Tensors}))
		if !reduced.Skipped || reduced.Count != 0 || len(reduced.Grads) != 0 {
			t.Fatalf("%s: %+v", name, reduced)
		}
	}
}

func TestDistancesHaveTheBitsOfOneCall(t *testing.T) {
	updates := []Update{update(1, 1), update(2, 1), update(3, 1)}
	var matrices [][][]float64
	for name, client := range bothReducers(t) {
		distances := must[[][]float64](t)(client.Distances(testContext(t), updates, nil))
		for i := range updates {
			for j := range updates {
				want := 0.0
				for _, tensor := range updates[i].Tensors {
					other, _ := updates[j].Tensors.Get(tensor.Name)
					a, b := must[[]float32](t)(Values[float32](tensor)), must[[]float32](t)(Values[float32](other))
					for k := range a {
						want += (float64(a[k]) - float64(b[k])) * (float64(a[k]) - float64(b[k]))
					}
				}
				if math.Abs(distances[i][j]-want) > 1e-12*want {
					t.Fatalf("%s: the distance of %d and %d is %v, not %v", name, i, j, distances[i][j], want)
				}
			}
		}
		matrices = append(matrices, distances)
	}
	for i, row := range matrices[0] {
		if !slices.Equal(row, matrices[1][i]) {
			t.Fatalf("%v is not %v", row, matrices[1][i])
		}
	}
}

func TestStepWithReduceHasTheBitsOfAStepWithItsGradients(t *testing.T) {
	params := update(9, 0).Tensors
	for name, client := range bothReducers(t) {
		step := func(request StepRequest) *StepResult {
			request.Optimizer, request.Params, request.Clip = Optimizer{"name": "adamw", "lr": 0.01}, params, &Clip{MaxNorm: 0.5}
			return must[*StepResult](t)(client.Step(testContext(t), request))
		}
		reduced := must[*Reduced](t)(client.Reduce(testContext(t), ReduceRequest{Params: params, Updates: weighted}))
		expected := step(StepRequest{Grads: reduced.Grads})
		found := step(StepRequest{Reduce: &ReduceRequest{Updates: weighted}})
		requireSame(t, found.Params, expected.Params)
		if !bytes.Equal(found.State.Bytes(), expected.State.Bytes()) || expected.Reduced != nil {
			t.Fatalf("%s: the states differ", name)
		}
		if report := found.Reduced; report.Count != 4 || report.Weight != 16.5 || report.Skipped || len(report.Dropped) > 0 {
			t.Fatalf("%s: %+v", name, report)
		}
		none := step(StepRequest{State: found.State, Reduce: &ReduceRequest{}})
		requireSame(t, none.Params, params)
		if !none.Skipped || !none.Reduced.Skipped || none.Warnings != nil || !bytes.Equal(none.State.Bytes(), found.State.Bytes()) {
			t.Fatalf("%s: %+v", name, none)
		}
		for _, wrong := range []StepRequest{
			{Grads: reduced.Grads, Reduce: &ReduceRequest{}},
			{Reduce: &ReduceRequest{Params: params}},
			{Reduce: &ReduceRequest{Unfinished: true}},
		} {
			wrong.Optimizer, wrong.Params = Optimizer{"name": "sgd"}, params
			if _, err := client.Step(testContext(t), wrong); !errors.Is(err, ErrBadTensor) {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
}
