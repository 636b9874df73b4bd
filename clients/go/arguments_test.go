package stepd

import (
	"context"
	"crypto/tls"
	"fmt"
	"math"
	"regexp"
	"strings"
	"testing"
	"time"
)

// mistake is a call with a wrong argument. The error must contain words.
type mistake struct {
	name  string
	words string
	call  func(ctx context.Context) error
}

// Each exported function and method returns a one-line error for wrong arguments, and never panics.
func TestWrongArguments(t *testing.T) {
	client := newClient(t, shared.url, WithRetries(0))
	sharded := newSharded(t, shared.url)
	w := From("w", []float32{1, 2})
	good := StepRequest{Optimizer: AdamW(0.1), Params: Tensors{w}, Grads: Tensors{w}}
	step := func(change func(*StepRequest)) func(context.Context) error {
		return func(ctx context.Context) error {
			request := good
			change(&request)
			_, one := client.Step(ctx, request)
			_, many := sharded.Step(ctx, request)
			if (one == nil) != (many == nil) {
				return fmt.Errorf("Client: %v; Sharded: %v", one, many)
			}
			return one
		}
	}
	newOf := func(address string, options ...Option) func(context.Context) error {
		return func(context.Context) error {
			_, err := New(address, options...)
			if _, other := NewSharded([]string{address}, options...); (other == nil) != (err == nil) {
				return fmt.Errorf("New: %v; NewSharded: %v", err, other)
			}
			return err
		}
	}
	ignore := func(_ any, err error) error { return err }
	tensors := func(field string, change func(*StepRequest, Tensors)) (mistakes []mistake) {
		for name, c := range map[string]struct {
			tensors Tensors
			words   string
		}{
			"a zero value":          {Tensors{{}}, `"" has dtype ""`},
			"no dtype":              {Tensors{{Name: "w", Shape: []int{2}, Data: w.Data}}, `"w" has dtype ""`},
			"another dtype":         {Tensors{{Name: "w", DType: "float32", Shape: []int{2}, Data: w.Data}}, `"w" has dtype "float32"`},
			"no data":               {Tensors{{Name: "w", DType: F32, Shape: []int{2}}}, `"w" has 0 bytes, and shape \[2\] in F32 does not`},
			"another shape":         {Tensors{From("w", []float32{1, 2}, 3)}, `"w" has 8 bytes, and shape \[3\]`},
			"a negative size":       {Tensors{From("w", []float32{}, -1)}, `"w" has 0 bytes, and shape \[-1\]`},
			"a name that is twice":  {Tensors{w, w}, `the name "w" stands twice`},
			"a reserved name":       {Tensors{From("__metadata__", []float32{1})}, `the name "__metadata__" is reserved`},
			"another reserved name": {Tensors{From("__proto__", []float32{1})}, `the name "__proto__" is reserved`},
			"no UTF-8":              {Tensors{From("\xff", []float32{1})}, `the name "\\xff" is not UTF-8`},
			"a surrogate":           {Tensors{From("\xed\xa0\x80", []float32{1})}, `the name .* is not UTF-8`},
		} {
			mistakes = append(mistakes, mistake{field + ": " + name, c.words, step(func(r *StepRequest) { change(r, c.tensors) })})
		}
		return mistakes
	}
	cases := []mistake{
		{"no address", "address: expected http", newOf("")},
		{"no scheme", "address: expected http", newOf("127.0.0.1:8080")},
		{"another scheme", "address: expected http", newOf("htp://host")},
		{"no host", "address: expected http://host, found no host", newOf("http://")},
		{"a query", "address: expected no query", newOf("http://host?x=1")},
		{"a token with a line end", "WithToken: expected visible", newOf("http://host", WithToken("a\n"))},
		{"a negative timeout", "WithTimeout: expected 0 or more, found -1s", newOf("http://host", WithTimeout(-time.Second))},
		{"negative retries", "WithRetries: expected 0 or more, found -1", newOf("http://host", WithRetries(-1))},
		{"a negative wait", "WithRefused: expected 0 or more, found -1s", newOf("http://host", WithRefused(-time.Second))},
		{"a nil option", "expected options, found nil", newOf("http://host", nil)},
		{"an HTTP client of one's own on a socket", "WithHTTPClient excludes", newOf("unix:///x", WithHTTPClient(client.http))},
		{"an HTTP client of one's own and TLS", "WithHTTPClient excludes", newOf("http://host", WithHTTPClient(client.http), WithTLS(&tls.Config{}))},
		{"a folder that is not there", "WithSharedDir", newOf("http://host", WithSharedDir("/nowhere/x"))},
		{"no folder", "WithSharedDir", newOf("http://host", WithSharedDir(""))},
		{"no addresses", "expected at least one address, found none", func(context.Context) error { return ignore(NewSharded(nil)) }},
		{"a client that New did not make", "expected a Client of New", func(ctx context.Context) error { return ignore(new(Client).Step(ctx, good)) }},
		{"clients that are none", "expected a Client of New", func(ctx context.Context) error {
			return ignore((&Sharded{Clients: []*Client{nil, {}}}).Step(ctx, good))
		}},
		{"a Sharded without clients", "Sharded has no Clients", func(ctx context.Context) error { return ignore(new(Sharded).Step(ctx, good)) }},
		//nolint:staticcheck // The nil context is the mistake under test.
		{"no context", "expected a context, found nil", func(context.Context) error { return step(func(*StepRequest) {})(nil) }},

		{"no optimizer", "optimizer: expected an optimizer, found none", step(func(r *StepRequest) { r.Optimizer = nil })},
		{"an optimizer without a name", "/optimizer/name: expected", step(func(r *StepRequest) { r.Optimizer = Optimizer{"lr": 1} })},
		{"a hyperparameter that cannot be sent", "optimizer: ", step(func(r *StepRequest) { r.Optimizer = AdamW(1).With("betas", struct{}{}) })},
		{"a hyperparameter that is a function", "optimizer: ", step(func(r *StepRequest) { r.Optimizer = AdamW(1).With("lr", func() {}) })},
		{"a rate that is no number", "/optimizer/lr: expected", step(func(r *StepRequest) { r.Optimizer = AdamW(math.NaN()) })},
		{"a group without tensors", "/groups/0/tensors: expected", step(func(r *StepRequest) { r.Groups = []Group{{}} })},
		{"a schedule without a name", "/schedule/name: expected", step(func(r *StepRequest) { r.Schedule = Schedule{} })},
		{"a clip without limits", "/clip: expected", step(func(r *StepRequest) { r.Clip = &Clip{} })},
		{"a word for NaN that is none", "/non_finite: expected", step(func(r *StepRequest) { r.NonFinite = "ignore" })},
		{"another word for statistics", "/stats: expected", step(func(r *StepRequest) { r.Stats = "all" })},
		{"another form of the reply", "/reply/params: expected", step(func(r *StepRequest) { r.Reply.Params = "f8" })},
		{"a state of nothing", "State: expected that of a result, or nil, found a zero value", step(func(r *StepRequest) { r.State = &State{} })},
		{"an empty Cached", "Params are nil|an empty one", step(func(r *StepRequest) { r.Cached, r.Params = &Cached{}, nil })},
		{"no parameters", "Params|params", step(func(r *StepRequest) { r.Params = nil })},
		{"Into without the parameter", `Into has no "w"`, step(func(r *StepRequest) { r.Into = Tensors{} })},
		{"Into of another shape", `Into has no "w"`, step(func(r *StepRequest) { r.Into = Tensors{From("w", []float32{1})} })},

		{"Init: no optimizer", "optimizer: expected an optimizer, found none", func(ctx context.Context) error { return ignore(client.Init(ctx, InitRequest{})) }},
		{"Init: a tensor of nothing", `dtype ""`, func(ctx context.Context) error {
			return ignore(client.Init(ctx, InitRequest{Optimizer: AdamW(1), Params: Tensors{{}}}))
		}},
		{"Norms: a tensor of nothing", `dtype ""`, func(ctx context.Context) error { return ignore(client.Norms(ctx, NormsRequest{Grads: Tensors{{}}})) }},
		{"Norms: a tensor of nothing as parameter", `dtype ""`, func(ctx context.Context) error {
			return ignore(client.Norms(ctx, NormsRequest{Grads: Tensors{w}, Params: Tensors{{}}}))
		}},
		{"Plan: no optimizer", "optimizer: expected an optimizer, found none", func(ctx context.Context) error { return ignore(client.Plan(ctx, PlanRequest{})) }},
		{"Plan: a tensor of nothing", "/tensors//dtype: expected", func(ctx context.Context) error {
			return ignore(client.Plan(ctx, PlanRequest{Optimizer: AdamW(1), Params: Tensors{{}}}))
		}},
		{"Plan: a name that is twice", `the name "w" stands twice`, func(ctx context.Context) error {
			return ignore(client.Plan(ctx, PlanRequest{Optimizer: AdamW(1), Params: Tensors{w, w}}))
		}},
		{"Inspect: nil", "state: expected a State, found nil", func(ctx context.Context) error { return ignore(client.Inspect(ctx, nil)) }},
		{"Inspect: a state of nothing", "found a zero value", func(ctx context.Context) error { return ignore(client.Inspect(ctx, &State{})) }},
		{"Convert: no file", "/state: ", func(ctx context.Context) error { return ignore(client.Convert(ctx, ConvertRequest{})) }},
		{"Convert: no format", "/to/format: expected", func(ctx context.Context) error {
			return ignore(client.Convert(ctx, ConvertRequest{File: []byte("x"), To: &Convention{}}))
		}},
		{"EvaluateSchedule: no schedule", "schedule: expected a schedule, found none", func(ctx context.Context) error {
			return ignore(client.EvaluateSchedule(ctx, ScheduleRequest{}))
		}},
		{"EvaluateSchedule: a negative count", "/count: expected", func(ctx context.Context) error {
			return ignore(client.EvaluateSchedule(ctx, ScheduleRequest{Schedule: Schedule{"name": "exponential", "gamma": 0.5}, Count: -1}))
		}},
		{"Describe: no name", "Describe: expected a name, found none", func(ctx context.Context) error { return ignore(client.Describe(ctx, "")) }},
		{"Describe: another name", "adamv", func(ctx context.Context) error { return ignore(client.Describe(ctx, "adamv")) }},
		{"Values of another type", `which are no float64`, func(context.Context) error { return ignore(Values[float64](w)) }},
		{"Values of nothing", `has 0 bytes of `, func(context.Context) error { return ignore(Values[float32](Tensor{})) }},
		{"LoadTensors: no file", "no such file", func(context.Context) error { return ignore(LoadTensors("/nowhere")) }},
		{"LoadState: no file", "no such file", func(context.Context) error { return ignore(LoadState("/nowhere")) }},
		{"ReadState: no bytes", "not a valid safetensors file", func(context.Context) error { return ignore(ReadState(nil)) }},
		{"ReadState: other bytes", "not a valid safetensors file", func(context.Context) error { return ignore(ReadState([]byte("abcdefghijkl"))) }},
		{"Save: a tensor of nothing", `dtype ""`, func(context.Context) error { return Tensors{{}}.Save(t.TempDir() + "/x") }},
		{"State.Save: a state of nothing", "found a zero value", func(context.Context) error { return (&State{}).Save(t.TempDir() + "/x") }},
	}
	cases = append(cases, tensors("Params", func(r *StepRequest, ts Tensors) { r.Params = ts })...)
	cases = append(cases, tensors("Grads", func(r *StepRequest, ts Tensors) { r.Grads = ts })...)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			defer func() {
				if p := recover(); p != nil {
					t.Fatal("a panic: ", p)
				}
			}()
			err := c.call(testContext(t))
			if err == nil || !regexp.MustCompile(c.words).MatchString(err.Error()) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("%v, expected %s", err, c.words)
			}
		})
	}
}

// Close does nothing on a zero client, so that a caller may defer it before the check of New's error.
func TestCloseOfZeroClient(*testing.T) {
	new(Client).Close()
	new(Sharded).Close()
}

// A step accepts and returns tensors with unusual but valid names.
func TestUnusualNames(t *testing.T) {
	ctx := testContext(t)
	var params Tensors
	for _, name := range []string{"", "a\x00b", strings.Repeat("x", 1024), "*", "step/w", "constructor", "\uffff", "😀"} {
		params = append(params, From(name, []float32{1, 2}))
	}
	client := newClient(t, shared.url)
	first := must[*StepResult](t)(client.Step(ctx, StepRequest{Optimizer: AdamW(0.1), Params: params, Grads: params}))
	second := must[*StepResult](t)(client.Step(ctx, StepRequest{Optimizer: AdamW(0.1), Params: first.Params, Grads: params, State: first.State}))
	if second.Step != 2 || len(second.Params) != len(params) {
		t.Fatal(second)
	}
}
