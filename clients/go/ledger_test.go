package stepd

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// verify runs `stepd verify` and returns its output.
func verify(t *testing.T, args ...string) string {
	t.Helper()
	command := exec.Command("../../node_modules/.bin/node", append([]string{"../../src/cli/main.ts", "verify", "--arena-mib", "16"}, args...)...)
	output, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("stepd verify: %v\n%s", err, output)
	}
	return string(output)
}

func TestLedgerOfStepsIsVerified(t *testing.T) {
	ctx := testContext(t)
	folder := t.TempDir()
	path, blobs := filepath.Join(folder, "run.jsonl"), filepath.Join(folder, "blobs")
	client := newClient(t, shared.url)
	request := StepRequest{Optimizer: AdamW(0.01), Params: model(1), Receipt: true}
	for _, steps := range [][]uint64{{1, 2}, {3}} {
		ledger := must[*Ledger](t)(OpenLedger(path, LedgerOptions{Blobs: blobs}))
		if torn := map[bool]int64{true: 0, false: 9}[steps[0] == 1]; ledger.TornBytes != torn {
			t.Errorf("%d torn bytes, not %d", ledger.TornBytes, torn)
		}
		for _, step := range steps {
			request.Grads = model(100 + step)
			result := must[*StepResult](t)(client.Step(ctx, request))
			if err := ledger.Append(request, result); err != nil {
				t.Fatal(err)
			}
			request.Params, request.State = result.Params, result.State
		}
		if err := ledger.Close(); err != nil {
			t.Fatal(err)
		}
		file := must[*os.File](t)(os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0))
		must[int](t)(file.WriteString(`{"format"`))
		file.Close()
	}
	if output := verify(t, path, "--blobs", blobs); !strings.Contains(output, "repeated: 3 lines\nthe last line is torn: its 9 bytes") {
		t.Error(output)
	}
}

func TestLedgerHasThePartsOfAShardedStep(t *testing.T) {
	ctx := testContext(t)
	path := filepath.Join(t.TempDir(), "run.jsonl")
	client := newClient(t, shared.url)
	sharded := &Sharded{Clients: []*Client{client}, RequestBytes: 1000}
	ledger := must[*Ledger](t)(OpenLedger(path, LedgerOptions{}))
	request := StepRequest{Optimizer: AdamW(0.01), Params: model(1), Clip: &Clip{MaxNorm: 1}, Receipt: true}
	request.State = must[*State](t)(client.Init(ctx, InitRequest{Optimizer: request.Optimizer, Params: request.Params}))
	for step := range uint64(2) {
		request.Grads = model(100 + step)
		result := must[*StepResult](t)(sharded.Step(ctx, request))
		if len(result.Receipts) < 2 {
			t.Fatalf("%d receipts", len(result.Receipts))
		}
		for i, receipt := range result.Receipts {
			var found struct{ Part struct{ Index, Count int } }
			if err := json.Unmarshal(receipt, &found); err != nil || found.Part.Index != i || found.Part.Count != len(result.Receipts) {
				t.Errorf("part %d: %v, %+v", i, err, found)
			}
		}
		if err := ledger.Append(request, result); err != nil {
			t.Fatal(err)
		}
		request.Params, request.State = result.Params, result.State
	}
	ledger.Close()
	verify(t, path)
}

func TestLedgerRefusals(t *testing.T) {
	ctx := testContext(t)
	folder := t.TempDir()
	path := filepath.Join(folder, "run.jsonl")
	client := newClient(t, shared.url)
	ledger := must[*Ledger](t)(OpenLedger(path, LedgerOptions{Blobs: folder}))
	defer ledger.Close()
	refused := func(err error, text string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v lacks %q", err, text)
		}
	}
	request := StepRequest{Optimizer: AdamW(0.01), Params: model(1), Grads: model(2)}
	refused(ledger.Append(request, must[*StepResult](t)(client.Step(ctx, request))), "a step with Receipt")
	request.Receipt = true
	result := must[*StepResult](t)(client.Step(ctx, request))
	request.Grads[0].Data[0] ^= 1
	refused(ledger.Append(request, result), "grads: expected the blob of the receipt")
	_, err := OpenLedger(path, LedgerOptions{})
	refused(err, "another Ledger")
	if text := must[[]byte](t)(os.ReadFile(path)); len(text) > 0 {
		t.Errorf("%s", text)
	}
}
