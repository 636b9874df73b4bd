package stepd

import (
	"fmt"
	"testing"
)

// BenchmarkStep takes whole in-place AdamW steps over loopback. A step sends 16 bytes per parameter and receives 12.
func BenchmarkStep(b *testing.B) { benchmarkStep(b) }

// BenchmarkSharedStep takes the same steps in shared memory.
func BenchmarkSharedStep(b *testing.B) { benchmarkStep(b, WithSharedDir(sharedDir)) }

func benchmarkStep(b *testing.B, options ...Option) {
	for _, count := range []int{1 << 10, 1 << 16, 1 << 20, 4 << 20} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			client, err := New(shared.url, options...)
			if err != nil {
				b.Fatal(err)
			}
			defer client.Close()
			params := Tensors{From("w", random(1, count))}
			request := StepRequest{Optimizer: AdamW(0.01), Params: params, Grads: Tensors{From("w", random(2, count))}, Into: params}
			b.SetBytes(int64(count) * 28)
			b.ReportAllocs()
			for b.Loop() {
				result, err := client.Step(b.Context(), request)
				if err != nil {
					b.Fatal(err)
				}
				request.State = result.State
			}
		})
	}
}
