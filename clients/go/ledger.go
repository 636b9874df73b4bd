package stepd

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Ledger is a file with a line for each step: its receipt, in JSON. `stepd verify` checks a ledger and repeats its steps. A process
// that is killed leaves at most one torn line at the end, and the next OpenLedger of the file removes it. A Ledger is not safe for
// concurrent use.
type Ledger struct {
	// TornBytes is the size of the torn last line that OpenLedger has removed.
	TornBytes int64
	file      *os.File
	options   LedgerOptions
	appended  int
}

// LedgerOptions are the options of OpenLedger. The zero value keeps receipts alone.
type LedgerOptions struct {
	// Blobs is a folder that receives the gradients, and the parameters and the state of the first step, as SHA256.safetensors. That
	// is enough to repeat all steps.
	Blobs string
	// Every also keeps the parameters and the state of every n-th step, from which single steps can be repeated. 0 keeps none.
	Every int
}

// OpenLedger opens or creates a ledger. On Linux, it returns an error if another process has the ledger open.
func OpenLedger(path string, options LedgerOptions) (*Ledger, error) {
	if options.Blobs != "" {
		if err := os.MkdirAll(options.Blobs, 0o777); err != nil {
			return nil, err
		}
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o666)
	if err != nil {
		return nil, err
	}
	ledger := &Ledger{file: file, options: options}
	if err = lock(file); err == nil {
		ledger.TornBytes, err = cutTornLine(file)
	}
	if err == nil {
		err = syncFolder(filepath.Dir(path))
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("stepd: ledger %s: %w", path, err)
	}
	return ledger, nil
}

// Close closes the file.
func (l *Ledger) Close() error { return l.file.Close() }

// Append writes the receipts of a step to disk. The request is that of the result: with LedgerOptions.Blobs, its tensors must not have
// changed since the step, so Into must not be Params.
func (l *Ledger) Append(request StepRequest, result *StepResult) error {
	if len(result.Receipts) == 0 {
		return errors.New("stepd: ledger: expected the result of a step with Receipt, found no receipt")
	}
	// The blobs of a line must exist before the line.
	if l.options.Blobs != "" {
		if err := l.store(request, result); err != nil {
			return fmt.Errorf("stepd: ledger: %w", err)
		}
	}
	var value any = result.Receipts
	if len(result.Receipts) == 1 {
		value = result.Receipts[0]
	}
	line, err := json.Marshal(value)
	if err != nil {
		return err
	}
	end, err := l.file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if _, err = l.file.Write(append(line, '\n')); err == nil {
		err = l.file.Sync()
	}
	if err != nil {
		// A later line must not continue a torn one.
		return errors.Join(err, l.file.Truncate(end))
	}
	l.appended++
	return nil
}

func (l *Ledger) store(request StepRequest, result *StepResult) error {
	if len(result.Receipts) > 1 {
		return errors.New("blobs: expected the result of a Client, found one of Sharded, whose calls have blobs of their own")
	}
	var receipt struct{ Inputs map[string]string }
	if err := json.Unmarshal(result.Receipts[0], &receipt); err != nil {
		return err
	}
	grads, err := fileParts(nil, request.Grads)
	if err == nil {
		err = l.storeBlob("grads", receipt.Inputs["grads"], grads)
	}
	if err == nil && (l.appended == 0 || (l.options.Every > 0 && l.appended%l.options.Every == 0)) {
		err = l.storeInputs(request, receipt.Inputs)
	}
	if err != nil {
		return err
	}
	return syncFolder(l.options.Blobs)
}

func (l *Ledger) storeInputs(request StepRequest, digests map[string]string) error {
	if request.Params != nil {
		params, err := fileParts(nil, request.Params)
		if err != nil {
			return err
		}
		if err := l.storeBlob("params", digests["params"], params); err != nil {
			return err
		}
	}
	if request.State == nil || request.State.Err() != nil {
		return nil
	}
	state, err := request.State.file()
	if err != nil {
		return err
	}
	return l.storeBlob("state", digests["state"], state)
}

func (l *Ledger) storeBlob(field, digest string, content blob) error {
	path := filepath.Join(l.options.Blobs, digest+".safetensors")
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	file, err := os.CreateTemp(l.options.Blobs, "."+digest+".*.partial")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	hash := sha256.New()
	if _, err := content.WriteTo(io.MultiWriter(file, hash)); err != nil {
		return err
	}
	if found := hex.EncodeToString(hash.Sum(nil)); found != digest {
		return fmt.Errorf("%s: expected the blob of the receipt (SHA-256 %s), found %s: it has changed since the step", field, digest, found)
	}
	if err := file.Sync(); err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}

// cutTornLine removes the bytes after the last newline, and returns how many there were.
func cutTornLine(file *os.File) (int64, error) {
	end, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	chunk := make([]byte, 1<<20)
	start := end
	for start > 0 {
		size := min(int64(len(chunk)), start)
		if _, err := file.ReadAt(chunk[:size], start-size); err != nil {
			return 0, err
		}
		start -= size
		if newline := bytes.LastIndexByte(chunk[:size], '\n'); newline >= 0 {
			start += int64(newline) + 1
			break
		}
	}
	if start == end {
		return 0, nil
	}
	if err := file.Truncate(start); err != nil {
		return 0, err
	}
	return end - start, file.Sync()
}
