package stepd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"

	"github.com/tinylib/msgp/msgp"
)

const (
	// maxStringBytes limits a key or a warning in a reply. Tensor names are keys.
	maxStringBytes = 16 << 20
	maxReplyDepth  = 64
	// maxHandleChars is the wire format's limit.
	maxHandleChars = 64
	// Before its bytes arrive, a blob gets at most trustFactor times the request's size, or trustBytes. Valid replies need less:
	// the first Adam step returns three times the size of the parameters, and its request holds twice that size.
	trustFactor = 4
	trustBytes  = 1 << 20
	// The client refuses a reply larger than replyFactor times the request plus replyBytes. The largest valid reply has 8 times
	// the size of its request: the state of Init for F16 parameters with master weights.
	replyFactor = 16
	replyBytes  = 64 << 20
	// A map or list has at most replyMembers members, plus one member per tensorBytes of the request. Each tensor takes more than
	// tensorBytes.
	replyMembers = 1000
	tensorBytes  = 40
)

// maxReply returns the largest size of a reply that the client accepts after a request of `sent` bytes.
func maxReply(sent int64) int64 { return replyFactor*sent + replyBytes }

// stepReply is the decoded reply of a method. Absent blobs are nil.
type stepReply struct {
	params, state []byte
	// paramsAt and stateAt are the places of blobs that the server wrote into the shared folder.
	paramsAt, stateAt *place
	cached            Cached
	step              int64
	lr                float64
	skipped           bool
	stats             *Stats
	warnings          []string
	lost              []string
	// receipt is nil if the reply has none.
	receipt any
	// The result of a reduction.
	grads, accumulator []byte
	count              int64
	weight             float64
	dropped            []int
	distances          [][]float64
	// reduction is nil unless updates made the gradients of a step.
	reduction *Reduced
	// members are the keys that the reply contained.
	members map[string]bool
}

// decodeStep decodes the MessagePack reply of optimizer.step, and of methods with some of its fields. `length` is the reply's
// Content-Length or -1; `sent` is the request's size in bytes. Parameters go into `buffer` if it is not nil. The error wraps
// ErrBadReply.
func decodeStep(from io.Reader, length, sent int64, buffer *scratch) (stepReply, error) {
	limited := &io.LimitedReader{R: from, N: maxReply(sent)}
	d := &decoder{Reader: msgp.NewReaderSize(limited, 4096), rest: limited.N, trust: max(trustBytes, trustFactor*sent), most: replyMembers + sent/tensorBytes}
	if length >= 0 {
		d.rest = min(length, d.rest)
	}
	d.SetMaxStringLength(uint64(min(d.rest, maxStringBytes)))
	d.SetMaxRecursionDepth(maxReplyDepth)
	var reply stepReply
	var err error
	reply.members, err = d.object(func(key string) (err error) {
		switch key {
		case "params":
			reply.params, reply.paramsAt, err = d.blobOrPlace(buffer)
		case "state":
			reply.state, reply.stateAt, err = d.blobOrPlace(nil)
		case "cached":
			reply.cached, err = d.handles()
		case "step":
			reply.step, err = d.whole()
		case "lr":
			reply.lr, err = d.number()
		case "skipped":
			reply.skipped, err = d.ReadBool()
		case "stats":
			reply.stats, err = d.statistics()
		case "warnings":
			reply.warnings, err = d.sentences()
		case "receipt":
			reply.receipt, err = d.document()
		case "lost":
			reply.lost, err = d.sentences()
		case "grads":
			reply.grads, err = d.blob(nil)
		case "accumulator":
			reply.accumulator, err = d.blob(nil)
		case "count":
			reply.count, err = d.whole()
		case "weight":
			reply.weight, err = d.number()
		case "dropped":
			reply.dropped, err = d.indexes()
		case "reduce":
			reply.reduction, err = d.reduction()
		case "distances":
			reply.distances, err = d.matrix()
		default:
			err = d.Skip()
		}
		return err
	})
	if err == nil {
		if _, end := d.NextType(); end == nil {
			err = errors.New("bytes after the reply")
		} else if !errors.Is(end, io.EOF) {
			err = end
		}
	}
	if err != nil {
		if limited.N == 0 {
			err = fmt.Errorf("more than %d bytes: %w", maxReply(sent), err)
		}
		return stepReply{}, fmt.Errorf("%w: %w", ErrBadReply, err)
	}
	return reply, nil
}

// result checks a step's reply, without its blobs, and returns its numbers.
func (r stepReply) result(form Reply) (*StepResult, error) {
	members := []string{"step", "lr", "skipped"}
	if form.Params != ReplyNone {
		members = append(members, "params")
	}
	if form.State != ReplyNone {
		members = append(members, "state")
	}
	for _, member := range members {
		if !r.members[member] {
			return nil, badReply("no %s", member)
		}
	}
	result := &StepResult{Step: r.step, LR: r.lr, Skipped: r.skipped, Stats: r.stats, Warnings: r.warnings, Reduced: r.reduction}
	if r.receipt != nil {
		text, err := json.Marshal(r.receipt)
		if err != nil {
			return nil, badReply("receipt: %v", err)
		}
		result.Receipts = []json.RawMessage{text}
	}
	if r.cached.Params != "" || r.cached.State != "" {
		result.Cached = &r.cached
		result.Cached.otherParams, result.Cached.otherState = form.Params != "" && form.Params != ReplySame, form.State == ReplyNone
	}
	return result, nil
}

// readParams reads the new parameters. It compares their names and shapes with `sent`; nil accepts any.
func (r stepReply) readParams(sent Tensors) (Tensors, error) {
	_, tensors, err := readTensors(r.params)
	if err != nil {
		return nil, fmt.Errorf("%w: params: %w", ErrBadReply, err)
	}
	if sent == nil {
		return tensors, nil
	}
	found := byName(tensors)
	params := make(Tensors, len(sent))
	for i, param := range sent {
		stepped, ok := found[param.Name]
		if !ok || !stepped.sameType(param) {
			return nil, badReply("no %q of %s %v in params", param.Name, param.DType, param.Shape)
		}
		params[i] = stepped
	}
	if len(tensors) != len(sent) {
		return nil, badReply("%d params of %d", len(tensors), len(sent))
	}
	return params, nil
}

func (r stepReply) readState() (*State, error) {
	state, err := ReadState(r.state)
	if err != nil {
		return nil, fmt.Errorf("%w: state: %w", ErrBadReply, err)
	}
	return state, nil
}

// decoder decodes values from a stream. It never allocates memory only because the reply announces a length.
type decoder struct {
	*msgp.Reader
	// rest is the number of bytes left for all further blobs.
	rest  int64
	trust int64
	most  int64
}

// object reads a map and returns its keys. After each key, object calls member, which reads the value.
func (d *decoder) object(member func(key string) error) (map[string]bool, error) {
	count, err := d.count(d.ReadMapHeader())
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for range count {
		key, err := d.ReadString()
		if err != nil {
			return nil, err
		}
		if seen[key] {
			return nil, fmt.Errorf("the key %.60q twice", key)
		}
		seen[key] = true
		if err := member(key); err != nil {
			return nil, err
		}
	}
	return seen, nil
}

// count returns an error for more members than a valid reply has. A decoded member takes more memory than its bytes in the
// reply.
func (d *decoder) count(count uint32, err error) (uint32, error) {
	if err == nil && int64(count) > d.most {
		err = fmt.Errorf("%d members where %d are the most", count, d.most)
	}
	return count, err
}

// blob reads a bin into the buffer or into new memory. The memory for a blob larger than `trust` grows as bytes arrive.
func (d *decoder) blob(buffer *scratch) ([]byte, error) {
	size, err := d.ReadBytesHeader()
	if err != nil {
		return nil, err
	}
	if int64(size) > d.rest {
		return nil, fmt.Errorf("a blob of %d bytes in a reply of fewer", size)
	}
	d.rest -= int64(size)
	if int64(size) > math.MaxInt {
		return nil, fmt.Errorf("a blob of %d bytes, more than this machine can address", size)
	}
	total := int(size)
	have := int(min(int64(total), d.trust))
	var data []byte
	if buffer != nil && cap(buffer.bytes) >= total {
		data, have = buffer.bytes[:total], total
	} else {
		data = alignedBytes(have)
	}
	for at := 0; ; {
		if _, err := d.ReadFull(data[at:have]); err != nil {
			return nil, err
		}
		if have == total {
			break
		}
		at, have = have, int(min(int64(total), 2*int64(have)))
		grown := alignedBytes(have)
		copy(grown, data)
		data = grown
	}
	if buffer != nil {
		buffer.bytes = data
	}
	return data, nil
}

// blobOrPlace reads a bin, or a place in the shared folder.
func (d *decoder) blobOrPlace(buffer *scratch) (data []byte, at *place, err error) {
	if kind, err := d.NextType(); err != nil || kind != msgp.MapType {
		data, err := d.blob(buffer)
		return data, nil, err
	}
	at = &place{}
	_, err = d.object(func(key string) (err error) {
		switch key {
		case "file":
			at.file, err = d.ReadString()
		case "offset":
			at.offset, err = d.whole()
		case "length":
			at.length, err = d.whole()
		default:
			err = d.Skip()
		}
		return err
	})
	return nil, at, err
}

// handles reads the handles of the blobs that the server has cached.
func (d *decoder) handles() (cached Cached, err error) {
	_, err = d.object(func(key string) error {
		target := map[string]*string{"params": &cached.Params, "state": &cached.State}[key]
		if target == nil {
			return d.Skip()
		}
		_, err := d.object(func(key string) (err error) {
			if key != "handle" {
				return d.Skip()
			}
			if *target, err = d.ReadString(); err == nil && (*target == "" || len(*target) > maxHandleChars) {
				err = fmt.Errorf("a handle of %d characters", len(*target))
			}
			return err
		})
		return err
	})
	return cached, err
}

// number reads a float or an integer, because JavaScript encodes 1.0 as 1.
func (d *decoder) number() (float64, error) {
	kind, err := d.NextType()
	if err != nil {
		return 0, err
	}
	switch kind {
	case msgp.IntType, msgp.UintType:
		value, err := d.ReadInt64()
		return float64(value), err
	case msgp.Float32Type:
		value, err := d.ReadFloat32()
		return float64(value), err
	default:
		return d.ReadFloat64()
	}
}

func (d *decoder) whole() (int64, error) {
	value, err := d.number()
	if err == nil && (value < 0 || value > maxExact || value != math.Trunc(value)) {
		err = fmt.Errorf("%v where a count stands", value)
	}
	return int64(value), err
}

func (d *decoder) sentences() ([]string, error) {
	count, err := d.count(d.ReadArrayHeader())
	if err != nil {
		return nil, err
	}
	var sentences []string
	for range count {
		sentence, err := d.ReadString()
		if err != nil {
			return nil, err
		}
		sentences = append(sentences, sentence)
	}
	return sentences, nil
}

func (d *decoder) indexes() ([]int, error) {
	count, err := d.count(d.ReadArrayHeader())
	if err != nil {
		return nil, err
	}
	var indexes []int
	for range count {
		index, err := d.whole()
		if err != nil {
			return nil, err
		}
		indexes = append(indexes, int(index))
	}
	return indexes, nil
}

// reduction reads the report of a step's reduction.
func (d *decoder) reduction() (*Reduced, error) {
	reduced := &Reduced{}
	_, err := d.object(func(key string) (err error) {
		switch key {
		case "count":
			reduced.Count, err = d.whole()
		case "weight":
			reduced.Weight, err = d.number()
		case "dropped":
			reduced.Dropped, err = d.indexes()
		case "skipped":
			reduced.Skipped, err = d.ReadBool()
		default:
			err = d.Skip()
		}
		return err
	})
	return reduced, err
}

func (d *decoder) matrix() ([][]float64, error) {
	rows, err := d.count(d.ReadArrayHeader())
	if err != nil {
		return nil, err
	}
	var matrix [][]float64
	for range rows {
		columns, err := d.ReadArrayHeader()
		if err != nil {
			return nil, err
		}
		if columns != rows {
			return nil, fmt.Errorf("a row of %d in a matrix of %d rows", columns, rows)
		}
		row := make([]float64, columns)
		for i := range row {
			if row[i], err = d.number(); err != nil {
				return nil, err
			}
		}
		matrix = append(matrix, row)
	}
	return matrix, nil
}

func (d *decoder) statistics() (*Stats, error) {
	stats := &Stats{}
	_, err := d.object(func(key string) (err error) {
		switch key {
		case "grad_norm":
			stats.GradNorm, err = d.number()
		case "param_norm":
			stats.ParamNorm, err = d.number()
		case "update_norm":
			stats.UpdateNorm, err = d.number()
		case "zeros":
			stats.Zeros, err = d.whole()
		case "non_finite":
			stats.NonFinite, err = d.whole()
		case "clipped":
			stats.Clipped, err = d.ReadBool()
		case "tensors":
			stats.Tensors = map[string]TensorStat{}
			_, err = d.object(func(name string) (err error) {
				stats.Tensors[name], err = d.tensorStat()
				return err
			})
		default:
			err = d.Skip()
		}
		return err
	})
	return stats, err
}

func (d *decoder) tensorStat() (stat TensorStat, err error) {
	_, err = d.object(func(key string) (err error) {
		switch key {
		case "grad_norm":
			stat.GradNorm, err = d.number()
		case "param_norm":
			stat.ParamNorm, err = d.number()
		case "update_norm":
			stat.UpdateNorm, err = d.number()
		case "zeros":
			stat.Zeros, err = d.whole()
		case "non_finite":
			stat.NonFinite, err = d.whole()
		case "trust_ratio":
			var ratio float64
			ratio, err = d.number()
			stat.TrustRatio = &ratio
		default:
			err = d.Skip()
		}
		return err
	})
	return stat, err
}

// scratch is a reusable buffer for parameters before they are copied to the caller's memory.
type scratch struct{ bytes []byte }

var scratches = sync.Pool{New: func() any { return new(scratch) }}

func newScratch() *scratch { return scratches.Get().(*scratch) }

func (s *scratch) release() {
	if s != nil {
		scratches.Put(s)
	}
}
