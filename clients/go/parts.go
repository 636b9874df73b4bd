package stepd

import (
	"context"
	"maps"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// This file cuts a step into parts: calls with some of the tensors, or with slices of large ones. While one part is received, the
// next is sent, so that a link carries both directions at once.

const (
	// shardElements divides the index of each slice's first element.
	shardElements = 65536
	// blockElements share a scale, in a moment of 8 bits.
	blockElements = 64

	// firstPartBytes is the size of a part, before a connection has shown that it needs larger ones.
	firstPartBytes   = 2 << 20
	largestPartBytes = 64 << 20
	// smallestSplitBytes is the least size of a step in parts. The parts of a smaller step would cost more than they save.
	smallestSplitBytes = 4 << 20
	// partConnections carry the parts of a Client's step.
	partConnections = 2
	// A part takes roundTripsPerPart to send, so that waiting costs little, and at least timePerPart, because each call costs
	// processor time.
	roundTripsPerPart = 4
	timePerPart       = 12 * time.Millisecond
)

// span is a range of elements of a tensor.
type span struct{ begin, end int }

// of returns a slice of a tensor.
func (c span) of(t Tensor) Tensor {
	if elements := elementsOf(t.Shape); t.Data != nil && elements > 0 {
		size := len(t.Data) / elements
		t.Data = t.Data[c.begin*size : c.end*size]
	}
	t.Shape = []int{c.end - c.begin}
	return t
}

// ofEntry returns a slice of a state's entry. A scalar stays whole.
func (c span) ofEntry(entry Tensor) Tensor {
	if len(entry.Shape) == 0 {
		return entry
	}
	return c.in(entry).of(entry)
}

// in returns the range in an entry of a state. Scales have a range of their own.
func (c span) in(entry Tensor) span {
	if isScales(entry) {
		return span{c.begin / blockElements, blocks(c.end)}
	}
	return c
}

// isScales returns whether an entry of a state has the scales of a slot.
func isScales(entry Tensor) bool {
	slot, _, _ := strings.Cut(entry.Name, "/")
	return strings.HasSuffix(slot, ".scale")
}

func blocks(elements int) int { return (elements + blockElements - 1) / blockElements }

func elementsOf(shape []int) int {
	count := 1
	for _, size := range shape {
		count *= size
	}
	return count
}

// piece is a range of a tensor with its size, or the whole tensor if span is nil.
type piece struct {
	span  *span
	bytes int64
}

// piecesOf returns the shards of a large tensor, or the whole tensor.
func piecesOf(param Tensor, bytes, limit int64, canSlice bool) []piece {
	count := elementsOf(param.Shape)
	if !canSlice || bytes <= limit || count <= shardElements {
		return []piece{{bytes: bytes}}
	}
	var pieces []piece
	for begin := 0; begin < count; begin += shardElements {
		end := min(begin+shardElements, count)
		pieces = append(pieces, piece{&span{begin, end}, bytes * int64(end-begin) / int64(count)})
	}
	return pieces
}

// canSlice returns whether all that belongs to a parameter has its shape.
func canSlice(param, grad Tensor, entries []Tensor) bool {
	if !slices.Equal(grad.Shape, param.Shape) {
		return false
	}
	count := elementsOf(param.Shape)
	return !slices.ContainsFunc(entries, func(entry Tensor) bool {
		if isScales(entry) {
			return !slices.Equal(entry.Shape, []int{blocks(count)})
		}
		return len(entry.Shape) > 0 && !slices.Equal(entry.Shape, param.Shape)
	})
}

// optimizersOf returns the names of a step's optimizers, and all hyperparameters that it has.
func optimizersOf(request StepRequest) (names []string, all []Optimizer) {
	all = []Optimizer{request.Optimizer}
	for _, group := range request.Groups {
		all = append(all, group.Optimizer)
	}
	for i, optimizer := range all {
		name, ok := optimizer["name"].(string)
		if ok || i == 0 {
			names = append(names, name)
		}
	}
	return names, all
}

// slicing returns whether calls of a step may have slices of tensors.
func slicing(request StepRequest) bool {
	if len(request.Slices) > 0 || (request.Stats != "" && request.Stats != NoStats) {
		return false
	}
	names, all := optimizersOf(request)
	for _, name := range names {
		whole, ok := wholeTensors[name]
		isSet := func(optimizer Optimizer) bool { return optimizer[whole] != nil && optimizer[whole] != false }
		if !ok || whole == "*" || (whole != "" && slices.ContainsFunc(all, isSet)) {
			return false
		}
	}
	return true
}

// splits returns whether to send a step in parts.
func (c *Client) splits(request StepRequest) bool {
	if request.Reduce != nil {
		return false
	}
	if request.Cached != nil && request.Cached.shards != nil {
		return !slices.ContainsFunc(request.Cached.shards, func(one cachedShard) bool { return one.client != c })
	}
	// With a receipt, a step is one call, so that its receipt has the digests of whole blobs.
	if c.parts <= 1 || c.shared != nil || request.Receipt || request.Cached != nil || len(request.Slices) > 0 || (request.Stats != "" && request.Stats != NoStats) {
		return false
	}
	names, _ := optimizersOf(request)
	for _, name := range names {
		if _, ok := wholeTensors[name]; !ok || allTensors[name] {
			return false
		}
	}
	return stepBytes(request) >= smallestSplitBytes
}

// stepBytes returns the bytes of a step's parameters, gradients and state.
func stepBytes(request StepRequest) int64 {
	bytes := int64(0)
	for _, tensors := range []Tensors{request.Params, request.Grads} {
		for _, tensor := range tensors {
			bytes += int64(len(tensor.Data))
		}
	}
	if request.State != nil && request.State.Err() == nil {
		if own, err := request.State.reserveBytes(); err == nil {
			bytes += own
		}
	}
	return bytes
}

// partLimit returns the size of a part of a step with `total` bytes.
func (s *Sharded) partLimit(total int64) int64 {
	if s.RequestBytes > 0 || s.Clients[0].shared != nil {
		return s.limit()
	}
	// Each connection needs a few parts, for the two directions to overlap.
	most := max(firstPartBytes, total/int64(2*s.parallel()))
	return min(max(firstPartBytes, s.partBytes.Load()), most)
}

// observe chooses the size of the next step's parts, after a step has sent bytes.
func (s *Sharded) observe(sent int64, took time.Duration) {
	roundTrip := time.Duration(0)
	for _, client := range s.Clients {
		roundTrip = max(roundTrip, time.Duration(client.roundTrip.Load()))
	}
	if took > 0 {
		s.partBytes.Store(partBytesFor(sent, took, roundTrip))
	}
}

func partBytesFor(sent int64, took, roundTrip time.Duration) int64 {
	wanted := float64(sent) / took.Seconds() * (roundTripsPerPart*roundTrip + timePerPart).Seconds()
	return max(firstPartBytes, int64(min(wanted, largestPartBytes)))
}

// traceConnections records the shortest time in which the server has accepted a connection: a round trip.
func (c *Client) traceConnections(ctx context.Context) context.Context {
	var starts sync.Map
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		ConnectStart: func(_, address string) { starts.Store(address, time.Now()) },
		ConnectDone: func(_, address string, err error) {
			start, ok := starts.Load(address)
			if !ok || err != nil {
				return
			}
			took := int64(time.Since(start.(time.Time)))
			for {
				known := c.roundTrip.Load()
				if (known > 0 && known <= took) || c.roundTrip.CompareAndSwap(known, took) {
					return
				}
			}
		},
	})
}

// stepInParts runs a step over several connections to the server.
func (c *Client) stepInParts(ctx context.Context, request StepRequest) (*StepResult, error) {
	split := &Sharded{Clients: []*Client{c}, Parallel: max(c.parts, partConnections)}
	split.partBytes.Store(c.partBytes.Load())
	result, err := split.Step(ctx, request)
	if err == nil {
		c.partBytes.Store(split.partBytes.Load())
	}
	return result, err
}

// partsFor returns the number of connections for the parts of a step: 2, but 1 to a server on this host.
func partsFor(address *url.URL) int {
	host := address.Hostname()
	ip, err := netip.ParseAddr(host)
	if address.Scheme == "unix" || host == "localhost" || (err == nil && ip.IsLoopback()) {
		return 1
	}
	return partConnections
}

// joiner puts slices of new tensors into whole ones.
type joiner map[string]Tensor

// add copies a slice into a tensor of the given shape.
func (j joiner) add(part Tensor, shape []int, own span) error {
	size, _ := dtypeOf(part.DType)
	target, ok := j[part.Name]
	if !ok {
		target = Tensor{Name: part.Name, DType: part.DType, Shape: shape, Data: alignedBytes(elementsOf(shape) * int(size))}
		j[part.Name] = target
	}
	if part.DType != target.DType || len(part.Data) != (own.end-own.begin)*int(size) {
		return badReply("%q of %s %v, and the slice has %d elements", part.Name, part.DType, part.Shape, own.end-own.begin)
	}
	copy(target.Data[own.begin*int(size):], part.Data)
	return nil
}

// take moves the slices of a call's result into whole tensors: those of the parameters into params, those of the state into entries.
func (s shard) take(result *StepResult, params, entries joiner) error {
	if len(s.cuts) == 0 {
		return nil
	}
	whole := byName(s.params)
	var rest Tensors
	for _, param := range result.Params {
		own, ok := s.cuts[param.Name]
		if !ok {
			rest = append(rest, param)
		} else if err := params.add(param, whole[param.Name].Shape, own); err != nil {
			return err
		}
	}
	result.Params = rest
	if result.State.Err() != nil {
		return nil
	}
	all, err := result.State.tensors()
	if err != nil {
		return err
	}
	var kept []Tensor
	for _, entry := range all {
		name := parameterOf(entry)
		own, ok := s.cuts[name]
		shape := whole[name].Shape
		switch {
		case !ok:
			kept = append(kept, entry)
			continue
		case len(entry.Shape) == 0:
			// Every slice has the same step count and scalars.
			if own.begin == 0 {
				kept = append(kept, entry)
			}
			continue
		case isScales(entry):
			shape = []int{blocks(elementsOf(shape))}
		}
		if err := entries.add(entry, shape, own.in(entry)); err != nil {
			return err
		}
	}
	result.State = &State{optimizers: result.State.optimizers, entries: kept}
	return nil
}

// joinNorms returns the sums of whole tensors.
func joinNorms(shards []shard, found []*Norms) map[string]TensorNorms {
	all := map[string]TensorNorms{}
	parts := map[string]map[int]TensorNorms{}
	for i, norms := range found {
		for name, sums := range norms.Tensors {
			own, ok := shards[i].cuts[name]
			if !ok {
				all[name] = sums
				continue
			}
			if parts[name] == nil {
				parts[name] = map[int]TensorNorms{}
			}
			parts[name][own.begin] = sums
		}
	}
	for name, slicesOf := range parts {
		whole := TensorNorms{}
		// The server adds the sums of all shards one after the other.
		for _, begin := range slices.Sorted(maps.Keys(slicesOf)) {
			sums := slicesOf[begin]
			for _, squares := range sums.GradShardSquares {
				whole.GradSquares += squares
			}
			whole.Zeros += sums.Zeros
			whole.NonFinite += sums.NonFinite
		}
		all[name] = whole
	}
	return all
}
