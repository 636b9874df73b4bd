// Command interop calls a service through the rpc package of go-ethereum: interop URL. It passes all params by position: an
// empty list, or a list with one object. It reads the params of the calls as JSON from standard input. It prints the results as
// JSON: list, describe, step, and the error of a describe that fails.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"log"
	"os"
	"time"

	"github.com/ethereum/go-ethereum/rpc"
)

type failure struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

func main() {
	var params struct{ Describe, Step, Unknown map[string]any }
	if err := json.NewDecoder(os.Stdin).Decode(&params); err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client, err := rpc.DialContext(ctx, os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	var results struct {
		List     json.RawMessage `json:"list"`
		Describe json.RawMessage `json:"describe"`
		Step     json.RawMessage `json:"step"`
		Error    failure         `json:"error"`
	}
	if err := client.CallContext(ctx, &results.List, "optimizer.list"); err != nil {
		log.Fatal(err)
	}
	batch := []rpc.BatchElem{
		{Method: "optimizer.describe", Args: []any{params.Describe}, Result: &results.Describe},
		{Method: "optimizer.step", Args: []any{params.Step}, Result: &results.Step},
	}
	if err := errors.Join(client.BatchCallContext(ctx, batch), batch[0].Error, batch[1].Error); err != nil {
		log.Fatal(err)
	}
	var known rpc.Error
	if err := client.CallContext(ctx, nil, "optimizer.describe", params.Unknown); !errors.As(err, &known) {
		log.Fatalf("expected an error of the service, found %v", err)
	}
	results.Error = failure{known.ErrorCode(), known.Error()}
	if err := json.NewEncoder(os.Stdout).Encode(results); err != nil {
		log.Fatal(err)
	}
}
