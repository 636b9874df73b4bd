package stepd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
)

const stateFormat = "stepd.state/1"

// State is an optimizer's state. For each parameter it holds the step count (I64) and the slots, such as exp_avg. A slot has
// the parameter's shape, and is F64 for an F64 parameter and F32 otherwise. As a file, a State is safetensors, readable from
// any language. A State is immutable.
type State struct {
	optimizers
	// entries are in canonical order. If the state is in a file, only the step entries have data; tensors reads the other data.
	entries []Tensor
	steps   map[string]int64
	// at is the state's place in the shared folder. It is nil if the state is in memory.
	at   *lease
	load func() ([]Tensor, error)
	// onServer is true if only the server has the state.
	onServer bool
}

// optimizers are the optimizers of a state's parameters.
type optimizers struct {
	optimizer string
	revision  string
	// others are the optimizers of the parameters that are under another one.
	others map[string]string
	// revisions are the revisions of these optimizers.
	revisions map[string]string
}

// The keys of the metadata end with a parameter's or an optimizer's name, for optimizers other than the state's own.
const (
	optimizerKey = "optimizer/"
	revisionKey  = "revision/"
)

func (o optimizers) metadata() map[string]string {
	metadata := map[string]string{"format": stateFormat, "optimizer": o.optimizer, "revision": o.revision}
	for parameter, name := range o.others {
		metadata[optimizerKey+parameter] = name
		metadata[revisionKey+name] = o.revisions[name]
	}
	return metadata
}

// ReadState parses a state file in memory. The state keeps views of file, which must not change. Duplicate keys, gaps,
// overlaps, wrong step counts and unknown entries are errors, which wrap ErrBadFile.
func ReadState(file []byte) (*State, error) {
	metadata, tensors, err := readTensors(file)
	if err != nil {
		return nil, err
	}
	return stateOf(metadata, tensors)
}

// readSharedState reads a state's header and steps from the shared folder. The slots are read on demand.
func readSharedState(l *lease) (*State, error) {
	first := make([]byte, min(lengthBytes, l.length))
	if err := l.read(first, 0); err != nil {
		return nil, err
	}
	start, err := dataStart(first, l.length)
	if err != nil {
		return nil, err
	}
	header := make([]byte, start-lengthBytes)
	if err := l.read(header, lengthBytes); err != nil {
		return nil, err
	}
	metadata, entries, err := readHeader(header, l.length-start)
	if err != nil {
		return nil, err
	}
	// The server writes the step counts first, so one read gets all of them.
	end := int64(0)
	for _, entry := range entries {
		if entry.isStep() {
			end = entry.end
		}
	}
	steps := make([]byte, end)
	if err := l.read(steps, start); err != nil {
		return nil, err
	}
	tensors := make([]Tensor, len(entries))
	for i, entry := range entries {
		tensors[i] = entry.Tensor
		if entry.isStep() {
			tensors[i].Data = steps[entry.start:entry.end:entry.end]
		}
	}
	state, err := stateOf(metadata, tensors)
	if err != nil {
		return nil, err
	}
	state.at = l
	state.load = sync.OnceValues(func() ([]Tensor, error) {
		file := alignedBytes(int(l.length))
		if err := l.read(file, 0); err != nil {
			return nil, err
		}
		_, tensors, err := readTensors(file)
		return canonical(tensors), err
	})
	return state, nil
}

// check returns an error for a zero State, which no result or file produced. A nil State is valid, and means no state.
func (s *State) check() error {
	if s != nil && !s.onServer && s.optimizer == "" {
		return errors.New("stepd: State: expected that of a result, or nil, found a zero value")
	}
	return nil
}

// inMemory returns a copy of the state that does not depend on its file.
func (s *State) inMemory() (*State, error) {
	entries, err := s.tensors()
	if err != nil {
		return nil, err
	}
	return newState(s.optimizers, entries)
}

func (t Tensor) isStep() bool { return strings.HasPrefix(t.Name, "step/") }

// stateOf builds a state from a file's metadata and tensors.
func stateOf(metadata map[string]string, tensors []Tensor) (*State, error) {
	if metadata["format"] != stateFormat {
		return nil, badFile("format %.60q, and a state has %s", metadata["format"], stateFormat)
	}
	o := optimizers{optimizer: metadata["optimizer"], revision: metadata["revision"], others: map[string]string{}, revisions: map[string]string{}}
	if err := checkRevision(o.revision); err != nil {
		return nil, err
	}
	if o.optimizer == "" {
		return nil, badFile("no optimizer")
	}
	for key, name := range metadata {
		if parameter, ok := strings.CutPrefix(key, optimizerKey); ok {
			o.others[parameter] = name
			o.revisions[name] = metadata[revisionKey+name]
			if err := checkRevision(o.revisions[name]); err != nil {
				return nil, err
			}
		}
	}
	return newState(o, tensors)
}

func checkRevision(text string) error {
	revision, err := strconv.ParseUint(text, 10, 30)
	if err != nil || revision == 0 || strconv.FormatUint(revision, 10) != text {
		return badFile("revision %.60q, and a state has a whole number from 1", text)
	}
	return nil
}

// newState builds a state. It leaves out the optimizers of parameters without entries.
func newState(o optimizers, entries []Tensor) (*State, error) {
	s := &State{optimizers: o, entries: canonical(entries), steps: map[string]int64{}}
	s.others, s.revisions = map[string]string{}, map[string]string{}
	for _, entry := range s.entries {
		slot, parameter, ok := strings.Cut(entry.Name, "/")
		if !ok || slot == "" {
			return nil, badFile("the key %.60q, and those of a state are <slot>/<parameter>", entry.Name)
		}
		if slot != "step" {
			continue
		}
		if entry.DType != I64 || len(entry.Shape) > 0 {
			return nil, badFile("%.60q of %s %v, and a step is an I64 scalar", entry.Name, entry.DType, entry.Shape)
		}
		step := binary.LittleEndian.Uint64(entry.Data)
		if step > maxExact {
			return nil, badFile("%.60q beyond 2^53-1", entry.Name)
		}
		s.steps[parameter] = int64(step)
		if name, ok := o.others[parameter]; ok && name != o.optimizer {
			s.others[parameter] = name
			s.revisions[name] = o.revisions[name]
		}
	}
	for _, entry := range s.entries {
		if _, ok := s.steps[parameterOf(entry)]; !ok {
			return nil, badFile("%.60q without its step", entry.Name)
		}
	}
	return s, nil
}

func parameterOf(entry Tensor) string {
	_, parameter, _ := strings.Cut(entry.Name, "/")
	return parameter
}

// LoadState reads a state file.
func LoadState(path string) (*State, error) {
	file, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	state, err := ReadState(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return state, nil
}

// Save writes the state to a file atomically: no other process sees a partial file.
func (s *State) Save(path string) error {
	file, err := s.file()
	if err != nil {
		return err
	}
	return file.save(path)
}

// WriteTo writes the state as a file. Equal states give equal bytes, and the server writes the same bytes.
func (s *State) WriteTo(w io.Writer) (int64, error) {
	file, err := s.file()
	if err != nil {
		return 0, err
	}
	return file.WriteTo(w)
}

// Bytes returns the state's file as one new slice. It panics if only the server has the state (see Err), or if the state's file
// in the shared folder is damaged. WriteTo returns an error instead.
func (s *State) Bytes() []byte {
	file, err := s.file()
	if err != nil {
		panic(err)
	}
	return slices.Concat(file.parts...)
}

// Err returns ErrStateKept if only the server has the state, and nil otherwise. Save and WriteTo then return the same error.
// Methods without an error result panic.
func (s *State) Err() error {
	if s.onServer {
		return ErrStateKept
	}
	return nil
}

// mustHaveValues panics if only the server has the state.
func (s *State) mustHaveValues() {
	if err := s.Err(); err != nil {
		panic(err)
	}
}

// tensors returns the entries with all their data.
func (s *State) tensors() ([]Tensor, error) {
	if s.load == nil {
		return s.entries, s.Err()
	}
	return s.load()
}

func (s *State) file() (blob, error) {
	if err := s.check(); err != nil {
		return blob{}, err
	}
	entries, err := s.tensors()
	if err != nil {
		return blob{}, err
	}
	return fileParts(s.metadata(), entries)
}

// reserveBytes returns the number of bytes to reserve for the next state; 0 if unknown.
func (s *State) reserveBytes() (int64, error) {
	if s.at != nil {
		return s.at.length + blockBytes, nil
	}
	if s.onServer {
		return 0, nil
	}
	file, err := s.file()
	return file.size + blockBytes, err
}

// Optimizer returns the name of the optimizer that wrote the state.
func (s *State) Optimizer() string {
	s.mustHaveValues()
	return s.optimizer
}

// Optimizers returns the optimizer of each parameter that is under another one than Optimizer.
func (s *State) Optimizers() map[string]string {
	s.mustHaveValues()
	return maps.Clone(s.others)
}

// Revision returns the revision of the optimizer's arithmetic.
func (s *State) Revision() int {
	s.mustHaveValues()
	revision, _ := strconv.Atoi(s.revision)
	return revision
}

// Steps returns the number of steps taken, by parameter.
func (s *State) Steps() map[string]int64 {
	s.mustHaveValues()
	steps := make(map[string]int64, len(s.steps))
	for name, step := range s.steps {
		steps[name] = step
	}
	return steps
}

// Step returns the largest number of steps that a parameter has taken, as StepResult.Step does. It is 0 for a nil State.
func (s *State) Step() int64 {
	if s == nil {
		return 0
	}
	s.mustHaveValues()
	most := int64(0)
	for _, step := range s.steps {
		most = max(most, step)
	}
	return most
}

// SlotNames returns the names of the slots, sorted.
func (s *State) SlotNames() []string {
	s.mustHaveValues()
	var names []string
	for _, entry := range s.entries {
		if slot, _, _ := strings.Cut(entry.Name, "/"); slot != "step" {
			names = append(names, slot)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Slot returns a slot, such as exp_avg, of all parameters that have it, under the parameters' names. The data belong to the
// state and must not be changed. Errors are ErrNoSlot for a slot that no parameter has, and those of WriteTo.
func (s *State) Slot(name string) (Tensors, error) {
	entries, err := s.tensors()
	if err != nil {
		return nil, err
	}
	var tensors Tensors
	for _, entry := range entries {
		if slot, parameter, _ := strings.Cut(entry.Name, "/"); slot == name && slot != "step" {
			entry.Name = parameter
			tensors = append(tensors, entry)
		}
	}
	if tensors == nil {
		return nil, fmt.Errorf("%w: expected one of %q, found %q", ErrNoSlot, s.SlotNames(), name)
	}
	return tensors, nil
}

// joinStates merges the states of different parameters.
func joinStates(states []*State) (*State, error) {
	first := states[0]
	var entries []Tensor
	all := optimizers{first.optimizer, first.revision, map[string]string{}, map[string]string{}}
	for _, s := range states {
		if s.optimizer != first.optimizer || s.revision != first.revision {
			return nil, badReply("states of %s revision %s and %s revision %s; the replicas differ in version",
				first.optimizer, first.revision, s.optimizer, s.revision)
		}
		for name, revision := range s.revisions {
			if known, ok := all.revisions[name]; ok && known != revision {
				return nil, badReply("states of %s revision %s and revision %s; the replicas differ in version", name, known, revision)
			}
			all.revisions[name] = revision
		}
		maps.Copy(all.others, s.others)
		own, err := s.tensors()
		if err != nil {
			return nil, err
		}
		entries = append(entries, own...)
	}
	return newState(all, entries)
}

// stepEntry returns the entry of a parameter's step count.
func stepEntry(parameter string, step int64) Tensor {
	return Tensor{Name: "step/" + parameter, DType: I64, Shape: []int{}, Data: binary.LittleEndian.AppendUint64(nil, uint64(step))}
}
