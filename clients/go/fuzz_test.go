package stepd

import (
	"bytes"
	"context"
	"errors"
	"math"
	"runtime"
	"slices"
	"testing"

	"github.com/tinylib/msgp/msgp"
)

// A file that the strict reader accepts has the same contents after the canonical writer has written it.
func FuzzReadTensors(f *testing.F) {
	for _, content := range hostile {
		f.Add(content)
	}
	f.Add(file("{"+goodMeta+","+goodStep+"}", step1))
	f.Add(file(`{"a":{"dtype":"F32","shape":[0],"data_offsets":[4,4]},"b":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}`, "abcd"))
	f.Fuzz(func(t *testing.T, content []byte) {
		metadata, tensors, err := readTensors(content)
		if err != nil {
			if !errors.Is(err, ErrBadFile) {
				t.Fatal(err)
			}
			return
		}
		parts, err := fileParts(metadata, tensors)
		if err != nil {
			t.Fatal(err)
		}
		again, found, err := readTensors(slices.Concat(parts.parts...))
		if err != nil || len(again) != len(metadata) {
			t.Fatal(err, again, metadata)
		}
		requireSame(t, canonical(found), canonical(tensors))
		if state, err := ReadState(content); err == nil {
			if same, err := ReadState(state.Bytes()); err != nil || !bytes.Equal(same.Bytes(), state.Bytes()) {
				t.Fatal(err)
			}
		}
	})
}

// replySeeds returns valid replies and broken replies.
func replySeeds() [][]byte {
	state := file("{"+goodMeta+","+goodStep+"}", step1)
	whole := msgp.AppendMapHeader(nil, 8)
	whole = msgp.AppendBytes(msgp.AppendString(whole, "params"), file(`{"w":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}`, "abcd"))
	whole = msgp.AppendBytes(msgp.AppendString(whole, "state"), state)
	whole = msgp.AppendInt(msgp.AppendString(whole, "step"), 7)
	whole = msgp.AppendFloat64(msgp.AppendString(whole, "lr"), 0.5)
	whole = msgp.AppendBool(msgp.AppendString(whole, "skipped"), true)
	whole, _ = msgp.AppendIntf(msgp.AppendString(whole, "warnings"), []string{"one", "two"})
	whole, _ = msgp.AppendIntf(msgp.AppendString(whole, "new"), map[string]any{"a": []any{1, "b", nil}})
	stat := map[string]any{"grad_norm": 1.5, "param_norm": 1, "update_norm": 0.0, "zeros": 1, "non_finite": 0, "trust_ratio": 2.0, "clipped": true, "x": 1}
	at := map[string]any{"file": "f", "offset": 0, "length": 12, "x": 1}
	kept := map[string]any{"handle": "0f.params", "x": 1}
	elsewhere, _ := msgp.AppendIntf(nil, map[string]any{"params": at, "state": at, "cached": map[string]any{"params": kept, "state": kept, "x": 1}})
	whole, _ = msgp.AppendIntf(msgp.AppendString(whole, "stats"), map[string]any{"grad_norm": 2, "clipped": false, "tensors": map[string]any{"w": stat}})
	return [][]byte{
		whole, whole[:len(whole)/2], elsewhere, elsewhere[:len(elsewhere)/2], append(bytes.Clone(whole), 0xc0), nil,
		{0xdf, 0xff, 0xff, 0xff, 0xff},
		msgp.AppendBytesHeader(msgp.AppendString(msgp.AppendMapHeader(nil, 1), "state"), math.MaxUint32),
		append(msgp.AppendString(msgp.AppendMapHeader(nil, 1), "x"), bytes.Repeat([]byte{0x91}, 1000)...),
		append(msgp.AppendString(msgp.AppendMapHeader(nil, 1), "x"), 0xdd, 0xff, 0xff, 0xff, 0xff),
		append(msgp.AppendString(msgp.AppendMapHeader(nil, 1), "warnings"), 0xdd, 0xff, 0xff, 0xff, 0xff, 0xdb, 0xff, 0xff, 0xff, 0xff),
		append(msgp.AppendString(msgp.AppendMapHeader(nil, 1), "x"), 0xc9, 0xff, 0xff, 0xff, 0xff, 1),
		append(msgp.AppendInt(msgp.AppendString(msgp.AppendMapHeader(nil, 2), "step"), -1), 0xa4, 's', 't', 'e', 'p', 1),
	}
}

// resultOf returns the result of a call that sent all of its tensors.
func resultOf(reply stepReply, sent Tensors) (*StepResult, error) {
	p := &encodedRequest{}
	if err := p.check(reply); err != nil {
		return nil, err
	}
	return p.result(context.Background(), StepRequest{Params: sent}, reply, nil, false)
}

// The decoder accepts or refuses any bytes. If it accepts them, the result holds only bytes of the reply.
func FuzzDecodeStep(f *testing.F) {
	for _, seed := range replySeeds() {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, reply []byte) {
		known, err := decodeStep(bytes.NewReader(reply), int64(len(reply)), 0, nil)
		unknown, errUnknown := decodeStep(bytes.NewReader(reply), -1, 0, new(scratch))
		if (err == nil) != (errUnknown == nil) {
			t.Fatalf("with its length %v, without %v", err, errUnknown)
		}
		if err != nil {
			if !errors.Is(err, ErrBadReply) {
				t.Fatal(err)
			}
			return
		}
		if len(known.params)+len(known.state) > len(reply) || !bytes.Equal(known.params, unknown.params) || !bytes.Equal(known.state, unknown.state) {
			t.Fatal("blobs that did not come")
		}
		if result, err := resultOf(known, nil); err == nil && result.Step < 0 {
			t.Fatal(result.Step)
		}
	})
}

func TestReplyWithAllFields(t *testing.T) {
	reply := must[stepReply](t)(decodeStep(bytes.NewReader(replySeeds()[0]), -1, 0, nil))
	result := must[*StepResult](t)(resultOf(reply, Tensors{{Name: "w", DType: F32, Shape: []int{}}}))
	w := result.Stats.Tensors["w"]
	if result.Step != 7 || result.LR != 0.5 || !result.Skipped || len(result.Warnings) != 2 || result.Stats.GradNorm != 2 || w.ParamNorm != 1 || *w.TrustRatio != 2 {
		t.Fatalf("%+v %+v", result, result.Stats)
	}
	if _, err := resultOf(reply, nil); !errors.Is(err, ErrBadReply) {
		t.Fatal(err)
	}
}

// A length that announces gigabytes allocates no memory, whether the Content-Length is false or missing.
func TestAllocationFollowsReceivedBytes(t *testing.T) {
	const most = 64 << 20
	for i, seed := range replySeeds() {
		for _, length := range []int64{int64(len(seed)), -1, math.MaxInt64} {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, _ = decodeStep(bytes.NewReader(seed), length, 0, nil)
			runtime.ReadMemStats(&after)
			if used := after.TotalAlloc - before.TotalAlloc; used > most {
				t.Errorf("reply %d with length %d: %d bytes", i, length, used)
			}
		}
	}
	grown := msgp.AppendBytes(msgp.AppendString(msgp.AppendMapHeader(nil, 1), "state"), bytes.Repeat([]byte("abc"), 2<<20))
	reply := must[stepReply](t)(decodeStep(bytes.NewReader(grown), -1, 0, nil))
	if !bytes.Equal(reply.state, bytes.Repeat([]byte("abc"), 2<<20)) {
		t.Fatal("a blob that grew is not what came")
	}
}
