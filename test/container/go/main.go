// Command step trains a small model through the Go client: step URL FIRST LAST FOLDER. It takes the steps FIRST to LAST - 1,
// and prints a line after each step. It reads parameters and state from FOLDER and writes them back, so that another program
// can continue.
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strconv"

	"stepd"
)

// gradient returns small fractions that float32 holds exactly, so that every language computes the same values.
func gradient(step, size int) []float32 {
	values := make([]float32, size)
	for i := range values {
		values[i] = (float32((i*7+step*3)%16) - 7.5) / 8
	}
	return values
}

func readFloats(path string) ([]float32, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	values := make([]float32, len(data)/4)
	return values, binary.Read(bytes.NewReader(data), binary.LittleEndian, values)
}

func writeFloats(path string, values []float32) error {
	var buffer bytes.Buffer
	if err := binary.Write(&buffer, binary.LittleEndian, values); err != nil {
		return err
	}
	return os.WriteFile(path, buffer.Bytes(), 0o600)
}

func run(url string, first, last int, folder string) error {
	names := []string{"b", "w"}
	values := make(map[string][]float32, len(names))
	var params stepd.Tensors
	for _, name := range names {
		read, err := readFloats(filepath.Join(folder, name+".f32"))
		if err != nil {
			return err
		}
		values[name] = read
		params = append(params, stepd.From(name, read))
	}
	file := filepath.Join(folder, "state.safetensors")
	var state *stepd.State
	if first > 0 {
		loaded, err := stepd.LoadState(file)
		if err != nil {
			return err
		}
		state = loaded
	}
	client, err := stepd.New(url, stepd.WithRetries(60))
	if err != nil {
		return err
	}
	defer client.Close()
	for step := first; step < last; step++ {
		var grads stepd.Tensors
		for _, name := range names {
			grads = append(grads, stepd.From(name, gradient(step, len(values[name]))))
		}
		result, err := client.Step(context.Background(), stepd.StepRequest{
			Optimizer: stepd.AdamW(0.01),
			Params:    params,
			Grads:     grads,
			State:     state,
			Into:      params,
		})
		if err != nil {
			return err
		}
		state = result.State
		fmt.Println(result.Step)
	}
	for name, read := range values {
		if err := writeFloats(filepath.Join(folder, name+".f32"), read); err != nil {
			return err
		}
	}
	if state == nil {
		return nil
	}
	return state.Save(file)
}

func main() {
	if len(os.Args) != 5 {
		log.Fatal("usage: step URL FIRST LAST FOLDER")
	}
	first, err := strconv.Atoi(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	last, err := strconv.Atoi(os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	if err := run(os.Args[1], first, last, os.Args[4]); err != nil {
		log.Fatal(err)
	}
}
