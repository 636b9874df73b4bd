// Command trainer is a trainer in its own module, outside this repository. module_test.go builds it in the ways that README.md
// describes.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"stepd"
)

func main() {
	client, err := stepd.New(os.Getenv("STEPD_URL"))
	if err != nil {
		log.Fatal(err)
	}
	w := []float32{1, 2, 3}
	params := stepd.Tensors{stepd.From("w", w)}
	var state *stepd.State
	for range 2 {
		result, err := client.Step(context.Background(), stepd.StepRequest{
			Optimizer: stepd.SGD(0.5), Params: params, Grads: params, State: state, Into: params,
		})
		if err != nil {
			log.Fatal(err)
		}
		state = result.State
	}
	fmt.Println(w, state.Steps()["w"])
}
