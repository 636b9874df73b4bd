package stepd

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// These tests run the conformance cases of all clients. Each case holds a call and the server's answer, both as the wire's
// JSON. The client's public methods make the call, with tensors of the case's dtypes.

type conformanceCall struct {
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
}

type conformanceCase struct {
	conformanceCall
	About string `json:"about"`
	// Server is "storing" for a server with a cache and a shared folder, "bare" for a server with neither, and empty for either.
	Server string `json:"server"`
	// Files are the files in the shared folder before the call. Written are their contents after the call.
	Files   map[string][]byte          `json:"files"`
	Written map[string][]byte          `json:"written"`
	Before  []conformanceCall          `json:"before"`
	Result  map[string]json.RawMessage `json:"result"`
	Error   *struct {
		Name     ErrorName `json:"name"`
		Code     int       `json:"code"`
		Status   int       `json:"status"`
		Field    string    `json:"field"`
		Expected string    `json:"expected"`
		Found    string    `json:"found"`
		Tensors  []string  `json:"tensors"`
	} `json:"error"`
}

func TestConformance(t *testing.T) {
	bare := newClient(t, ownServer(t).url)
	storing := newClient(t, shared.url)
	testConformance(t, func(c conformanceCase) *Client {
		switch {
		case c.isAboutFiles():
			return nil
		case c.Server == "storing":
			return storing
		}
		return bare
	})
}

// This test runs the same cases with all blobs in files.
func TestSharedConformance(t *testing.T) {
	bare := newSharing(t, ownServer(t).url, 1)
	storing := newSharing(t, shared.url, 1)
	testConformance(t, func(c conformanceCase) *Client {
		switch {
		case c.isAboutFiles():
			return bare
		case c.Server == "bare":
			return nil
		}
		return storing
	})
}

// isAboutFiles returns whether the case tests that a server refuses files.
func (c conformanceCase) isAboutFiles() bool { return c.Server == "bare" && c.Files != nil }

// testConformance runs the cases for which clientFor returns a client.
func testConformance(t *testing.T, clientFor func(c conformanceCase) *Client) {
	files := must[[]string](t)(filepath.Glob(filepath.Join(root, "test/conformance/cases/*.json")))
	if len(files) == 0 {
		t.Fatal("no cases")
	}
	for _, path := range files {
		c := readCase(t, path)
		client := clientFor(c)
		if client == nil {
			continue
		}
		t.Run(strings.TrimSuffix(filepath.Base(path), ".json"), func(t *testing.T) {
			var earlier []map[string]any
			for _, call := range c.Before {
				earlier = append(earlier, must[map[string]any](t)(call.withHandles(earlier).run(t, client)))
			}
			found, err := c.withHandles(earlier).run(t, client)
			if c.Error == nil {
				if err != nil {
					t.Fatal(err)
				}
				hideHandles(t, found)
				requireSameOnWire(t, found, c.Result)
				return
			}
			var refusal *Error
			if !errors.As(err, &refusal) || !errors.Is(err, c.Error.Name) {
				t.Fatalf("%v, expected %s", err, c.Error.Name)
			}
			if refusal.Name != c.Error.Name || refusal.Code != c.Error.Code || refusal.Status != c.Error.Status || refusal.Field != c.Error.Field ||
				refusal.Expected != c.Error.Expected || refusal.Found != c.Error.Found || !slices.Equal(refusal.Tensors, c.Error.Tensors) {
				t.Fatalf("%+v\nexpected %+v", refusal, c.Error)
			}
		})
	}
}

// This test runs the same reductions, split into one call per tensor.
func TestShardedReductionConformance(t *testing.T) {
	sharded := newSharded(t, ownServer(t).url)
	sharded.RequestBytes = 1
	for method, conform := range map[string]func(*testing.T, reducer, []byte) (map[string]any, error){"reduce": conformReduce, "distances": conformDistances} {
		files := must[[]string](t)(filepath.Glob(filepath.Join(root, "test/conformance/cases", method+".*.json")))
		if len(files) == 0 {
			t.Fatal("no cases")
		}
		for _, path := range files {
			c := readCase(t, path)
			t.Run(strings.TrimSuffix(filepath.Base(path), ".json"), func(t *testing.T) {
				found, err := conform(t, sharded, c.Params)
				if c.Error == nil {
					requireSameOnWire(t, must[map[string]any](t)(found, err), c.Result)
				} else if !errors.Is(err, c.Error.Name) {
					t.Fatalf("%v, expected %s", err, c.Error.Name)
				}
			})
		}
	}
}

// This test runs the same steps, split into one call per tensor.
func TestShardedConformance(t *testing.T) {
	files := must[[]string](t)(filepath.Glob(filepath.Join(root, "test/conformance/cases/step.*.json")))
	bare, storing := newSharded(t, ownServer(t).url), newSharded(t, shared.url)
	bare.RequestBytes, storing.RequestBytes = 1, 1
	steps := 0
	for _, path := range files {
		c := readCase(t, path)
		var members map[string]json.RawMessage
		strictly(t, c.Params, &members)
		// Some cases are skipped: global norms may differ in the last bits, errors may name other tensors, handles name all tensors at
		// once, and some optimizers need all tensors.
		var optimizer struct{ Name string }
		_ = json.Unmarshal(members["optimizer"], &optimizer)
		if allTensors[optimizer.Name] || c.Error != nil || c.Result["stats"] != nil || c.Result["cached"] != nil || members["cached"] != nil {
			continue
		}
		steps++
		sharded := bare
		if c.Server == "storing" {
			sharded = storing
		}
		t.Run(strings.TrimSuffix(filepath.Base(path), ".json"), func(t *testing.T) {
			requireSameOnWire(t, must[map[string]any](t)(conformStep(t, sharded, c.Params)), c.Result)
		})
	}
	if steps == 0 {
		t.Fatal("no cases")
	}
}

// readCase reads a case, and replaces its files by blobs, because callers pass blobs.
func readCase(t *testing.T, path string) conformanceCase {
	t.Helper()
	var c conformanceCase
	strictly(t, must[[]byte](t)(os.ReadFile(path)), &c)
	if (c.Result == nil) == (c.Error == nil) {
		t.Fatal("a case has a result or an error")
	}
	c.Params = nativeParams(t, c.Params, c.Files)
	for i, call := range c.Before {
		c.Before[i].Params = nativeParams(t, call.Params, nil)
	}
	takeBlobs(t, c.Result, c.Written)
	return c
}

// run makes a call and returns its result in wire form.
func (c conformanceCall) run(t *testing.T, client *Client) (map[string]any, error) {
	t.Helper()
	run, ok := conformanceCalls[c.Method]
	if !ok {
		t.Fatalf("method %q, which this test cannot call", c.Method)
	}
	return run(t, client, c.Params)
}

// withHandles returns the call with the handles of earlier results in place of symbols such as "$1.params".
func (c conformanceCall) withHandles(earlier []map[string]any) conformanceCall {
	for i, result := range earlier {
		cached, _ := result["cached"].(map[string]any)
		for field, handle := range cached {
			symbol := fmt.Sprintf(`"$%d.%s"`, i+1, field)
			c.Params = bytes.ReplaceAll(c.Params, []byte(symbol), []byte(strconv.Quote(handle.(map[string]any)["handle"].(string))))
		}
	}
	return c
}

// hideHandles replaces the handles in a result by "$", which stands for any handle in a case.
func hideHandles(t *testing.T, result map[string]any) {
	t.Helper()
	cached, _ := result["cached"].(map[string]any)
	for field, value := range cached {
		if handle := value.(map[string]any)["handle"].(string); strings.ContainsAny(handle, "$ ") || len(handle) > maxHandleChars {
			t.Errorf("%s: %q is no handle", field, handle)
		}
		cached[field] = map[string]any{"handle": "$"}
	}
}

// nativeParams converts wire params to a caller's params. It moves handles to `cached`, and drops the places for results, which
// the client chooses itself.
func nativeParams(t *testing.T, params []byte, files map[string][]byte) json.RawMessage {
	t.Helper()
	var members map[string]json.RawMessage
	strictly(t, params, &members)
	if cached := takeBlobs(t, members, files); len(cached) > 0 {
		members["cached"] = must[[]byte](t)(json.Marshal(cached))
	}
	if text, ok := members["reply"]; ok {
		var reply map[string]json.RawMessage
		strictly(t, text, &reply)
		delete(reply, "into")
		members["reply"] = must[[]byte](t)(json.Marshal(reply))
	}
	return must[[]byte](t)(json.Marshal(members))
}

// takeBlobs replaces places by the bytes of their files. It removes the handles and returns them.
func takeBlobs(t *testing.T, members map[string]json.RawMessage, files map[string][]byte) (handles map[string]string) {
	t.Helper()
	handles = map[string]string{}
	for _, name := range []string{"params", "grads", "state"} {
		var source struct {
			File           string
			Offset, Length int
			Handle         string
		}
		// Base64 strings and plain tensors do not decode into source, which then stays empty.
		_ = json.Unmarshal(members[name], &source)
		switch {
		case source.Handle != "":
			handles[name] = source.Handle
			delete(members, name)
		case source.File != "":
			members[name] = must[[]byte](t)(json.Marshal(files[source.File][source.Offset : source.Offset+source.Length]))
		}
	}
	return handles
}

// strictly decodes JSON and rejects unknown members, so that the test covers every member of a case.
func strictly(t *testing.T, text []byte, target any) {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(target); err != nil {
		t.Fatal(err)
	}
}

// requireSameOnWire compares the members of a result: tensors and blobs by their bytes, all other members as JSON.
func requireSameOnWire(t *testing.T, found map[string]any, expected map[string]json.RawMessage) {
	t.Helper()
	if names := slices.Sorted(maps.Keys(expected)); !slices.Equal(slices.Sorted(maps.Keys(found)), names) {
		t.Fatalf("members %v, expected %v", slices.Sorted(maps.Keys(found)), names)
	}
	for member, text := range expected {
		switch actual := found[member].(type) {
		case Tensors:
			var tensors wireTensors
			strictly(t, text, &tensors)
			requireSame(t, actual, tensors.tensors(t))
		case []byte:
			var blob []byte
			strictly(t, text, &blob)
			if !bytes.Equal(actual, blob) {
				t.Errorf("%s: %q, expected %q", member, actual, blob)
			}
		default:
			var plain, value any
			strictly(t, must[[]byte](t)(json.Marshal(actual)), &plain)
			strictly(t, text, &value)
			if !reflect.DeepEqual(plain, value) {
				t.Errorf("%s: %v, expected %v", member, plain, value)
			}
		}
	}
}

// wireTensors keep the order of the case. The order decides the header's length, and so the bytes that optimizer.plan reports.
type wireTensors []wireTensor

type wireTensor struct {
	name string
	// data is the bytes of a tensor from a file, and nil for other tensors.
	data   []byte
	Shape  []int       `json:"shape"`
	DType  DType       `json:"dtype"`
	Values []wireFloat `json:"values"`
}

func (w *wireTensors) UnmarshalJSON(text []byte) error {
	if text[0] == '"' {
		return w.readFile(text)
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if open, err := decoder.Token(); err != nil || open != json.Delim('{') {
		return fmt.Errorf("%v where tensors stand: %w", open, err)
	}
	*w = wireTensors{}
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			return err
		}
		tensor := wireTensor{name: name.(string), DType: F32}
		if err := decoder.Decode(&tensor); err != nil {
			return err
		}
		*w = append(*w, tensor)
	}
	return nil
}

// readFile decodes the tensors of a blob.
func (w *wireTensors) readFile(text []byte) error {
	var file []byte
	if err := json.Unmarshal(text, &file); err != nil {
		return err
	}
	_, tensors, err := readTensors(file)
	*w = wireTensors{}
	for _, tensor := range tensors {
		*w = append(*w, wireTensor{name: tensor.Name, data: tensor.Data, Shape: tensor.Shape, DType: tensor.DType})
	}
	return err
}

func (w wireTensors) tensors(t *testing.T) Tensors {
	t.Helper()
	if w == nil {
		return nil
	}
	tensors := Tensors{}
	for _, wire := range w {
		tensor := Tensor{Name: wire.name, DType: wire.DType, Shape: wire.Shape, Data: append(alignedBytes(0), wire.data...)}
		for _, value := range wire.Values {
			data, err := appendExactly(tensor.Data, tensor.DType, float64(value))
			if err != nil {
				t.Fatalf("%q: %v", tensor.Name, err)
			}
			tensor.Data = data
		}
		tensors = append(tensors, tensor)
	}
	return tensors
}

// appendExactly appends a value in a dtype. It returns an error if the dtype would round the value.
func appendExactly(data []byte, dtype DType, value float64) ([]byte, error) {
	single := math.Float32bits(float32(value))
	isExact := float64(float32(value)) == value || math.IsNaN(value)
	switch dtype {
	case F64:
		return binary.LittleEndian.AppendUint64(data, math.Float64bits(value)), nil
	case F32:
		if isExact {
			return binary.LittleEndian.AppendUint32(data, single), nil
		}
	case BF16:
		if isExact && single&0xffff == 0 {
			return binary.LittleEndian.AppendUint16(data, uint16(single>>16)), nil
		}
	case F16:
		if bits, ok := halfBits(value); ok {
			return binary.LittleEndian.AppendUint16(data, bits), nil
		}
	}
	return nil, fmt.Errorf("%v is no %s", value, dtype)
}

// halfBits returns a value as F16. It returns false if F16 would round the value.
func halfBits(value float64) (uint16, bool) {
	const fractionBits, smallest, infinity, quietNaN = 10, -14, 0x7c00, 0x7e00
	sign := uint16(math.Float64bits(value)>>48) & 0x8000
	switch magnitude := math.Abs(value); {
	case math.IsNaN(value):
		return quietNaN, true
	case math.IsInf(value, 0):
		return sign | infinity, true
	case magnitude == 0:
		return sign, true
	default:
		exponent := max(math.Ilogb(magnitude), smallest)
		// The leading one of a normal number carries into the exponent's field.
		units := math.Ldexp(magnitude, fractionBits-exponent)
		bits := uint32(units) + uint32(exponent-smallest)<<fractionBits
		return sign | uint16(bits), units == math.Trunc(units) && bits < infinity
	}
}

// members returns the members of a result whose Go type uses the wire's names.
func members(t *testing.T, result any) map[string]any {
	t.Helper()
	var wire map[string]any
	strictly(t, must[[]byte](t)(json.Marshal(result)), &wire)
	return wire
}

type wireSlices map[string]struct {
	Offset int64 `json:"offset"`
}

func (w wireSlices) offsets() map[string]int64 {
	offsets := map[string]int64{}
	for name, slice := range w {
		offsets[name] = slice.Offset
	}
	return offsets
}

// conformanceCalls maps each method to a function that makes a case's call and returns the result in wire form.
var conformanceCalls = map[string]func(t *testing.T, client *Client, params []byte) (map[string]any, error){
	"optimizer.step": func(t *testing.T, client *Client, params []byte) (map[string]any, error) {
		return conformStep(t, client, params)
	},
	"optimizer.reduce": func(t *testing.T, client *Client, params []byte) (map[string]any, error) {
		return conformReduce(t, client, params)
	},
	"optimizer.distances": func(t *testing.T, client *Client, params []byte) (map[string]any, error) {
		return conformDistances(t, client, params)
	},
	"optimizer.init": func(t *testing.T, client *Client, params []byte) (map[string]any, error) {
		var wire struct {
			Optimizer     Optimizer   `json:"optimizer"`
			Groups        []Group     `json:"groups"`
			Params        wireTensors `json:"params"`
			MasterWeights bool        `json:"master_weights"`
		}
		strictly(t, params, &wire)
		state, err := client.Init(testContext(t), InitRequest{
			Optimizer: wire.Optimizer, Groups: wire.Groups, Params: wire.Params.tensors(t), MasterWeights: wire.MasterWeights,
		})
		if err != nil {
			return nil, err
		}
		return map[string]any{"state": state.Bytes()}, nil
	},
	"optimizer.norms": func(t *testing.T, client *Client, params []byte) (map[string]any, error) {
		var wire struct {
			Grads     wireTensors `json:"grads"`
			Params    wireTensors `json:"params"`
			LossScale float64     `json:"loss_scale"`
			Slices    wireSlices  `json:"slices"`
		}
		strictly(t, params, &wire)
		norms, err := client.Norms(testContext(t), NormsRequest{
			Grads: wire.Grads.tensors(t), Params: wire.Params.tensors(t), LossScale: wire.LossScale, Slices: wire.Slices.offsets(),
		})
		if err != nil {
			return nil, err
		}
		tensors := map[string]any{}
		for name, sums := range norms.Tensors {
			tensor := map[string]any{"grad_squares": onWire(sums.GradSquares), "zeros": sums.Zeros, "non_finite": sums.NonFinite}
			if sums.ParamSquares != nil {
				tensor["param_squares"] = onWire(*sums.ParamSquares)
			}
			for field, shards := range map[string][]float64{"grad_shard_squares": sums.GradShardSquares, "param_shard_squares": sums.ParamShardSquares} {
				if shards != nil {
					tensor[field] = shards
				}
			}
			tensors[name] = tensor
		}
		result := map[string]any{"tensors": tensors, "grad_norm": onWire(norms.GradNorm)}
		if norms.Warnings != nil {
			result["warnings"] = norms.Warnings
		}
		return result, nil
	},
	"optimizer.plan": func(t *testing.T, client *Client, params []byte) (map[string]any, error) {
		var wire struct {
			Optimizer     Optimizer   `json:"optimizer"`
			Groups        []Group     `json:"groups"`
			Tensors       wireTensors `json:"tensors"`
			GradDType     DType       `json:"grad_dtype"`
			MasterWeights bool        `json:"master_weights"`
		}
		strictly(t, params, &wire)
		plan, err := client.Plan(testContext(t), PlanRequest{
			Optimizer: wire.Optimizer, Groups: wire.Groups, Params: wire.Tensors.tensors(t), GradDType: wire.GradDType, MasterWeights: wire.MasterWeights,
		})
		if err != nil {
			return nil, err
		}
		return members(t, plan), nil
	},
	"optimizer.describe": func(t *testing.T, client *Client, params []byte) (map[string]any, error) {
		var wire struct {
			Name string `json:"name"`
		}
		strictly(t, params, &wire)
		description, err := client.Describe(testContext(t), wire.Name)
		if err != nil {
			return nil, err
		}
		return members(t, description), nil
	},
	"state.inspect": func(t *testing.T, client *Client, params []byte) (map[string]any, error) {
		var wire struct {
			State []byte `json:"state"`
		}
		strictly(t, params, &wire)
		info, err := client.Inspect(testContext(t), must[*State](t)(ReadState(wire.State)))
		if err != nil {
			return nil, err
		}
		return members(t, info), nil
	},
	"state.convert": func(t *testing.T, client *Client, params []byte) (map[string]any, error) {
		var wire struct {
			State     []byte      `json:"state"`
			From      *Convention `json:"from"`
			To        *Convention `json:"to"`
			Optimizer string      `json:"optimizer"`
			Fill      []string    `json:"fill"`
		}
		strictly(t, params, &wire)
		converted, err := client.Convert(testContext(t), ConvertRequest{File: wire.State, From: wire.From, To: wire.To, Optimizer: wire.Optimizer, Fill: wire.Fill})
		if err != nil {
			return nil, err
		}
		return map[string]any{"state": converted.File, "lost": append([]string{}, converted.Lost...)}, nil
	},
	"schedule.evaluate": func(t *testing.T, client *Client, params []byte) (map[string]any, error) {
		var wire ScheduleRequest
		strictly(t, params, &wire)
		rates, err := client.EvaluateSchedule(testContext(t), wire)
		if err != nil {
			return nil, err
		}
		result := members(t, rates)
		if rates.Momentums == nil {
			delete(result, "momentums")
		}
		return result, nil
	},
}

type wireUpdates []struct {
	Tensors wireTensors `json:"tensors"`
	Weight  *float64    `json:"weight"`
}

func (w wireUpdates) updates(t *testing.T) []Update {
	t.Helper()
	var updates []Update
	for _, wire := range w {
		update := Update{Tensors: wire.Tensors.tensors(t), Weight: 1}
		if wire.Weight != nil {
			update.Weight = *wire.Weight
		}
		updates = append(updates, update)
	}
	return updates
}

type wireReduction struct {
	Params  wireTensors `json:"params"`
	Updates wireUpdates `json:"updates"`
	Form    Form        `json:"form"`
	Method  struct {
		Name    string  `json:"name"`
		Divisor float64 `json:"divisor"`
		Cut     int     `json:"cut"`
	} `json:"method"`
	Accumulator []byte `json:"accumulator"`
	Finish      *bool  `json:"finish"`
	NonFinite   string `json:"non_finite"`
	Missing     string `json:"missing"`
}

func (w wireReduction) request(t *testing.T) ReduceRequest {
	t.Helper()
	return ReduceRequest{
		Params: w.Params.tensors(t), Updates: w.Updates.updates(t), Form: w.Form, Method: ReduceMethod(w.Method), Accumulator: w.Accumulator,
		Unfinished:    w.Finish != nil && !*w.Finish,
		DropNonFinite: w.NonFinite == "drop", PropagateNonFinite: w.NonFinite == "propagate", Renormalize: w.Missing == "renormalize",
	}
}

// reductionReport returns the members of a reduction that have no tensors.
func reductionReport(reduced *Reduced) map[string]any {
	return map[string]any{"count": reduced.Count, "weight": reduced.Weight, "dropped": append([]int{}, reduced.Dropped...), "skipped": reduced.Skipped}
}

func conformReduce(t *testing.T, client reducer, params []byte) (map[string]any, error) {
	var wire wireReduction
	strictly(t, params, &wire)
	request := wire.request(t)
	reduced, err := client.Reduce(testContext(t), request)
	if err != nil {
		return nil, err
	}
	found := reductionReport(reduced)
	if request.Unfinished {
		found["accumulator"] = reduced.Accumulator
	} else {
		found["grads"] = reduced.Grads
	}
	return found, nil
}

func conformDistances(t *testing.T, client reducer, params []byte) (map[string]any, error) {
	var wire struct {
		Updates   wireUpdates   `json:"updates"`
		Distances [][]wireFloat `json:"distances"`
	}
	strictly(t, params, &wire)
	var earlier [][]float64
	for _, row := range wire.Distances {
		values := make([]float64, len(row))
		for i, value := range row {
			values[i] = float64(value)
		}
		earlier = append(earlier, values)
	}
	distances, err := client.Distances(testContext(t), wire.Updates.updates(t), earlier)
	if err != nil {
		return nil, err
	}
	rows := []any{}
	for _, row := range distances {
		values := []any{}
		for _, value := range row {
			values = append(values, onWire(value))
		}
		rows = append(rows, values)
	}
	return map[string]any{"distances": rows}, nil
}

func conformStep(t *testing.T, client stepper, params []byte) (map[string]any, error) {
	var wire struct {
		Optimizer Optimizer      `json:"optimizer"`
		Groups    []Group        `json:"groups"`
		Params    wireTensors    `json:"params"`
		Grads     wireTensors    `json:"grads"`
		Reduce    *wireReduction `json:"reduce"`
		State     []byte         `json:"state"`
		Slices    wireSlices     `json:"slices"`
		Schedule  Schedule       `json:"schedule"`
		Clip      *struct {
			MaxNorm   float64    `json:"max_norm"`
			MaxValue  float64    `json:"max_value"`
			TotalNorm *wireFloat `json:"total_norm"`
		} `json:"clip"`
		LossScale          float64    `json:"loss_scale"`
		NonFinite          NonFinite  `json:"non_finite"`
		OthersNonFinite    bool       `json:"others_non_finite"`
		Stats              StatsLevel `json:"stats"`
		MasterWeights      bool       `json:"master_weights"`
		StochasticRounding *struct {
			Seed uint64 `json:"seed"`
		} `json:"stochastic_rounding"`
		Reply struct {
			Params ReplyForm `json:"params"`
			State  ReplyForm `json:"state"`
			Cache  bool      `json:"cache"`
		} `json:"reply"`
		Cached *struct {
			Params string `json:"params"`
			State  string `json:"state"`
		} `json:"cached"`
	}
	strictly(t, params, &wire)
	request := StepRequest{
		Optimizer: wire.Optimizer, Groups: wire.Groups, Params: wire.Params.tensors(t), Grads: wire.Grads.tensors(t), Slices: wire.Slices.offsets(), Schedule: wire.Schedule,
		LossScale: wire.LossScale, NonFinite: wire.NonFinite, OthersNonFinite: wire.OthersNonFinite, Stats: wire.Stats, MasterWeights: wire.MasterWeights,
		Reply: Reply(wire.Reply),
	}
	if clip := wire.Clip; clip != nil {
		request.Clip = &Clip{MaxNorm: clip.MaxNorm, MaxValue: clip.MaxValue, TotalNorm: (*float64)(clip.TotalNorm)}
	}
	if wire.Cached != nil {
		request.Cached = &Cached{Params: wire.Cached.Params, State: wire.Cached.State}
	}
	if wire.Reduce != nil {
		reduction := wire.Reduce.request(t)
		request.Reduce = &reduction
	}
	if wire.State != nil {
		request.State = must[*State](t)(ReadState(wire.State))
	}
	if wire.StochasticRounding != nil {
		request.RoundingSeed = &wire.StochasticRounding.Seed
	}
	result, err := client.Step(testContext(t), request)
	if err != nil {
		return nil, err
	}
	found := map[string]any{"step": result.Step, "lr": onWire(result.LR), "skipped": result.Skipped}
	if wire.Reply.Params != ReplyNone {
		found["params"] = result.Params
	} else if result.Params != nil {
		t.Errorf("parameters that were to be left out: %v", result.Params)
	}
	if wire.Reply.State != ReplyNone {
		found["state"] = result.State.Bytes()
	} else if !errors.Is(result.State.Err(), ErrStateKept) {
		t.Errorf("a state that was to be left out: %v", result.State.Err())
	}
	if cached := result.Cached; cached != nil {
		named := map[string]any{}
		for name, handle := range map[string]string{"params": cached.Params, "state": cached.State} {
			if handle != "" {
				named[name] = map[string]any{"handle": handle}
			}
		}
		found["cached"] = named
	}
	if result.Warnings != nil {
		found["warnings"] = result.Warnings
	}
	if result.Reduced != nil {
		found["reduce"] = reductionReport(result.Reduced)
	}
	if stats := result.Stats; stats != nil {
		wire := map[string]any{"grad_norm": onWire(stats.GradNorm), "param_norm": onWire(stats.ParamNorm), "update_norm": onWire(stats.UpdateNorm),
			"zeros": stats.Zeros, "non_finite": stats.NonFinite, "clipped": stats.Clipped}
		if stats.Tensors != nil {
			tensors := map[string]any{}
			for name, stat := range stats.Tensors {
				tensor := map[string]any{"grad_norm": onWire(stat.GradNorm), "param_norm": onWire(stat.ParamNorm), "update_norm": onWire(stat.UpdateNorm),
					"zeros": stat.Zeros, "non_finite": stat.NonFinite}
				if stat.TrustRatio != nil {
					tensor["trust_ratio"] = onWire(*stat.TrustRatio)
				}
				tensors[name] = tensor
			}
			wire["tensors"] = tensors
		}
		found["stats"] = wire
	}
	return found, nil
}
