package stepd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// serverState returns the state file that the server sends for a step.
func serverState(t *testing.T, request StepRequest) []byte {
	t.Helper()
	client := newClient(t, shared.url)
	fields := must[[]field](t)(request.fields())
	return must[stepReply](t)(client.callWithoutFiles(testContext(t), "/v1/step", fields)).state
}

// mixedGroups has a group with an optimizer of its own.
var mixedGroups = []Group{{Tensors: []string{"*bias*", "b*"}, Optimizer: SGD(0.1).With("momentum", 0.9)}}

func TestStateHasTheServersBytes(t *testing.T) {
	for name, request := range map[string]StepRequest{
		"adamw":   {Optimizer: AdamW(0.1), Params: model(1), Grads: model(2)},
		"nadam":   {Optimizer: Optimizer{"name": "nadam"}, Params: model(1), Grads: model(2)},
		"groups":  {Optimizer: AdamW(0.1), Params: model(1), Grads: model(2), Groups: mixedGroups},
		"empty":   {Optimizer: AdamW(0.1), Params: model(1)},
		"doubles": {Optimizer: AdamW(0.1), Params: Tensors{From("a/b", []float64{1}), From("b", []float32{1})}, Grads: Tensors{From("b", []float32{1}), From("a/b", []float64{1})}},
	} {
		t.Run(name, func(t *testing.T) {
			raw := serverState(t, request)
			state := must[*State](t)(ReadState(raw))
			if !bytes.Equal(state.Bytes(), raw) {
				t.Fatal("the bytes differ")
			}
			path := filepath.Join(t.TempDir(), "state.safetensors")
			for range 2 { // The second save replaces the first file.
				if err := state.Save(path); err != nil {
					t.Fatal(err)
				}
			}
			if file := must[[]byte](t)(os.ReadFile(path)); !bytes.Equal(file, raw) {
				t.Fatal("the file differs")
			}
			if names, err := os.ReadDir(filepath.Dir(path)); err != nil || len(names) != 1 {
				t.Fatal(names, err)
			}
			if loaded := must[*State](t)(LoadState(path)); !bytes.Equal(loaded.Bytes(), raw) {
				t.Fatal("the loaded state differs")
			}
		})
	}
	if err := must[*State](t)(newState(optimizers{optimizer: "adamw", revision: "1"}, nil)).Save(filepath.Join(t.TempDir(), "no/folder/state")); err == nil {
		t.Fatal("a file without a folder was written")
	}
}

// A run that is saved, loaded by another client and continued has the same bytes as an uninterrupted run.
func TestResumeIsExact(t *testing.T) {
	const half = 5
	path := filepath.Join(t.TempDir(), "state.safetensors")
	run := func(from, to int, params Tensors, state *State) *StepResult {
		client := newClient(t, shared.url)
		var result *StepResult
		for step := from; step < to; step++ {
			result = must[*StepResult](t)(client.Step(testContext(t), StepRequest{Optimizer: QHAdamW(0.01), Params: params, Grads: model(uint64(step + 2)), State: state}))
			params, state = result.Params, result.State
		}
		return result
	}
	first := run(0, half, model(1), nil)
	if err := first.State.Save(path); err != nil {
		t.Fatal(err)
	}
	resumed := run(half, 2*half, first.Params, must[*State](t)(LoadState(path)))
	straight := run(0, 2*half, model(1), nil)
	requireSame(t, resumed.Params, straight.Params)
	if !bytes.Equal(resumed.State.Bytes(), straight.State.Bytes()) {
		t.Fatal("the states differ")
	}
}

func TestConvert(t *testing.T) {
	client, ctx := newClient(t, shared.url), testContext(t)
	raw := serverState(t, StepRequest{Optimizer: AdamW(0.1), Params: model(1), Grads: model(2)})
	torch := Convention{Format: "torch", Names: []string{"layer.weight", "layer.bias", "scale", "empty", "ünï\"\n\x01", "\uffff", "😀"}}
	there := must[*Converted](t)(client.Convert(ctx, ConvertRequest{File: raw, To: &torch}))
	torch.Optimizer = "adamw"
	back := must[*Converted](t)(client.Convert(ctx, ConvertRequest{File: there.File, From: &torch}))
	if len(there.Lost) != 0 || len(back.Lost) != 0 || !bytes.Equal(back.File, raw) {
		t.Fatal(there.Lost, back.Lost)
	}
	filled := must[*Converted](t)(client.Convert(ctx, ConvertRequest{File: raw, Optimizer: "qhadamw", Fill: []string{"max_exp_avg_sq"}}))
	if state := must[*State](t)(ReadState(filled.File)); state.Optimizer() != "qhadamw" || len(state.SlotNames()) != 3 {
		t.Fatal(state.Optimizer(), state.SlotNames())
	}
	foreign := Convention{Format: "qhoptim", Betas: []float64{0.9, 0.999}, Step: 3, Optimizer: "adamw"}
	if _, err := client.Convert(ctx, ConvertRequest{File: raw, From: &foreign}); !errors.As(err, new(*Error)) {
		t.Fatal(err)
	}
}

func TestTensorsInAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "params.safetensors")
	if err := model(1).Save(path); err != nil {
		t.Fatal(err)
	}
	requireSame(t, must[Tensors](t)(LoadTensors(path)), canonical(model(1)))
	if err := os.WriteFile(path, []byte("none"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadTensors(path); !errors.Is(err, ErrBadFile) {
		t.Fatal(err)
	}
}

// Python's safetensors library wrote this state, with torch's numbers.
func TestStateFromPython(t *testing.T) {
	state := must[*State](t)(LoadState(filepath.Join(root, "test/fixtures/adamw.safetensors")))
	if state.Optimizer() != "adamw" || state.Revision() != 2 || !slices.Equal(state.SlotNames(), []string{"exp_avg", "exp_avg_sq"}) {
		t.Fatal(state.Optimizer(), state.SlotNames())
	}
	info := must[*StateInfo](t)(newClient(t, shared.url).Inspect(testContext(t), state))
	for name, step := range state.Steps() {
		if info.Tensors[name].Step != step {
			t.Fatal(name)
		}
	}
}

// file returns a safetensors file: the length, the header, then the data.
func file(header, data string) []byte {
	return append(append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...), data...)
}

const (
	goodMeta = `"__metadata__":{"format":"stepd.state/1","optimizer":"adamw","revision":"1"}`
	goodStep = `"step/w":{"dtype":"I64","shape":[],"data_offsets":[0,8]}`
	step1    = "\x01\x00\x00\x00\x00\x00\x00\x00"
)

// hostile holds files that no reader may accept as a state.
var hostile = map[string][]byte{
	"nothing":                  {},
	"seven bytes":              []byte("1234567"),
	"no header":                file("", ""),
	"header of 2^64-1 bytes":   append(bytes.Repeat([]byte{0xff}, 8), "{}"...),
	"header past the end":      binary.LittleEndian.AppendUint64(nil, 3),
	"space before the header":  file(" {"+goodMeta+"}", ""),
	"header that is no object": file("[]", ""),
	"header that ends early":   file("{"+goodMeta, ""),
	"text after the header":    file("{"+goodMeta+"}{}", ""),
	"not UTF-8":                file("{"+goodMeta+",\"a\xff\":1}", ""),
	"half a surrogate":         file("{"+goodMeta+`,"step/\ud800":{"dtype":"I64","shape":[],"data_offsets":[0,8]}}`, step1),
	"half and no half":         file("{"+goodMeta+`,"step/\ud800\u0041":{"dtype":"I64","shape":[],"data_offsets":[0,8]}}`, step1),
	"a key twice":              file("{"+goodMeta+","+goodStep+","+goodStep+"}", step1),
	"a key twice by an escape": file("{"+goodMeta+","+goodStep+`,"step\/w":{"dtype":"I64","shape":[],"data_offsets":[0,8]}}`, step1),
	"metadata twice":           file("{"+goodMeta+","+goodMeta+"}", ""),
	"dtype twice":              file("{"+goodMeta+`,"step/w":{"dtype":"I64","dtype":"I64","shape":[],"data_offsets":[0,8]}}`, step1),
	"a key too many":           file("{"+goodMeta+`,"step/w":{"dtype":"I64","shape":[],"data_offsets":[0,8],"x":1}}`, step1),
	"no dtype":                 file("{"+goodMeta+`,"step/w":{"shape":[],"data_offsets":[0,8]}}`, step1),
	"an unknown dtype":         file("{"+goodMeta+`,"step/w":{"dtype":"I63","shape":[],"data_offsets":[0,8]}}`, step1),
	"three offsets":            file("{"+goodMeta+`,"step/w":{"dtype":"I64","shape":[],"data_offsets":[0,8,8]}}`, step1),
	"a negative offset":        file("{"+goodMeta+`,"step/w":{"dtype":"I64","shape":[],"data_offsets":[-8,0]}}`, step1),
	"offsets in reverse":       file("{"+goodMeta+`,"step/w":{"dtype":"I64","shape":[],"data_offsets":[8,0]}}`, step1),
	"a fraction":               file("{"+goodMeta+`,"step/w":{"dtype":"I64","shape":[],"data_offsets":[0.5,8.5]}}`, step1),
	"a leading zero":           file("{"+goodMeta+`,"step/w":{"dtype":"I64","shape":[],"data_offsets":[00,8]}}`, step1),
	"a huge shape":             file("{"+goodMeta+`,"step/w":{"dtype":"I64","shape":[4294967296,4294967296],"data_offsets":[0,8]}}`, step1),
	"a huge shape with a 0":    file("{"+goodMeta+","+goodStep+`,"exp_avg/w":{"dtype":"F32","shape":[4294967296,4294967296,0],"data_offsets":[8,8]}}`, step1),
	"an exponent":              file("{"+goodMeta+`,"step/w":{"dtype":"I64","shape":[],"data_offsets":[0,8e0]}}`, step1),
	"a fraction of 0":          file("{"+goodMeta+`,"step/w":{"dtype":"I64","shape":[],"data_offsets":[0.0,8]}}`, step1),
	"a zero below zero":        file("{"+goodMeta+`,"step/w":{"dtype":"I64","shape":[],"data_offsets":[-0,8]}}`, step1),
	"33 dimensions":            file("{"+goodMeta+`,"step/w":{"dtype":"I64","shape":[1`+strings.Repeat(",1", 32)+`],"data_offsets":[0,8]}}`, step1),
	"a wrong count":            file("{"+goodMeta+`,"step/w":{"dtype":"I64","shape":[2],"data_offsets":[0,8]}}`, step1),
	"a gap":                    file("{"+goodMeta+","+goodStep+`,"step/v":{"dtype":"I64","shape":[],"data_offsets":[16,24]}}`, step1+step1+step1),
	"a gap at the start":       file("{"+goodMeta+`,"step/v":{"dtype":"I64","shape":[],"data_offsets":[8,16]}}`, step1+step1),
	"an overlap":               file("{"+goodMeta+","+goodStep+`,"step/v":{"dtype":"I64","shape":[],"data_offsets":[4,12]}}`, step1+step1),
	"bytes at the end":         file("{"+goodMeta+","+goodStep+"}", step1+"x"),
	"bytes missing":            file("{"+goodMeta+","+goodStep+"}", step1[:7]),
	"metadata that is a list":  file(`{"__metadata__":[]}`, ""),
	"metadata of numbers":      file(`{"__metadata__":{"format":1}}`, ""),
	"no metadata":              file("{"+goodStep+"}", step1),
	"another format":           file(`{"__metadata__":{"format":"stepd.state/2","optimizer":"adamw","revision":"1"}}`, ""),
	"no optimizer":             file(`{"__metadata__":{"format":"stepd.state/1","revision":"1"}}`, ""),
	"revision 0":               file(`{"__metadata__":{"format":"stepd.state/1","optimizer":"adamw","revision":"0"}}`, ""),
	"revision 01":              file(`{"__metadata__":{"format":"stepd.state/1","optimizer":"adamw","revision":"01"}}`, ""),
	"a key without a slot":     file("{"+goodMeta+`,"w":{"dtype":"I64","shape":[],"data_offsets":[0,8]}}`, step1),
	"a slot without a step":    file("{"+goodMeta+`,"exp_avg/w":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}`, "abcd"),
	"a step in F64":            file("{"+goodMeta+`,"step/w":{"dtype":"F64","shape":[],"data_offsets":[0,8]}}`, step1),
	"a step with a dimension":  file("{"+goodMeta+`,"step/w":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}`, step1),
	"a negative step":          file("{"+goodMeta+","+goodStep+"}", "\xff\xff\xff\xff\xff\xff\xff\xff"),
}

func TestHostileStates(t *testing.T) {
	client, ctx := newClient(t, shared.url), testContext(t)
	for name, content := range hostile {
		if _, err := ReadState(content); !errors.Is(err, ErrBadFile) {
			t.Errorf("%s: %v", name, err)
		}
		// The server refuses the file too.
		sent := []field{{"state", blob{parts: [][]byte{content}, size: int64(len(content))}}}
		err := client.json(ctx, "/v1/state/inspect", sent, new(any), 0)
		if !errors.Is(err, ErrStateCorrupt) && !errors.Is(err, ErrUnsupportedDType) {
			t.Errorf("%s: the server says %v", name, err)
		}
	}
	good := must[*State](t)(ReadState(file("{"+goodMeta+","+goodStep+`} `, step1)))
	if good.Steps()["w"] != 1 {
		t.Fatal(good.Steps())
	}
	escaped := must[*State](t)(ReadState(file("{"+goodMeta+`,"step/\ud83d\ude00\u00e9\n\/\"":{"data_offsets":[0,8], "shape" : [ ],"dtype":"I64"}}`, step1)))
	if escaped.Steps()["😀é\n/\""] != 1 {
		t.Fatal(escaped.Steps())
	}
}

func TestStepOfState(t *testing.T) {
	client, ctx := newClient(t, shared.url), testContext(t)
	both := Tensors{From("a", []float32{1}), From("b", []float32{2})}
	first := must[*StepResult](t)(client.Step(ctx, StepRequest{Optimizer: AdamW(0.1), Params: both, Grads: both}))
	// Without a gradient, b takes no step.
	second := must[*StepResult](t)(client.Step(ctx, StepRequest{Optimizer: AdamW(0.1), Params: first.Params, Grads: both[:1], State: first.State}))
	steps, step := second.State.Steps(), second.State.Step()
	if steps["a"] != 2 || steps["b"] != 1 || step != 2 || step != second.Step {
		t.Fatal(steps, step, second.Step)
	}
	if step := (*State)(nil).Step(); step != 0 {
		t.Fatal(step)
	}
}
