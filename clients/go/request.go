package stepd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
)

// This file encodes a request: the body, and the blobs that go to files of the shared folder.

// place is a range of a file in the shared folder. It holds bytes or is reserved for them.
type place struct {
	file   string
	offset int64
	length int64
}

func (p place) wire() map[string]any {
	return map[string]any{"file": p.file, "offset": p.offset, "length": p.length}
}

// handle is the server's name for a blob in its cache.
type handle string

// results describes what a step returns. params and state are the bytes to reserve in files. Either is 0 if its size is unknown
// or the reply carries the blob in its body.
type results struct {
	reply         map[string]any
	params, state int64
	// sendState puts the state into the body instead of a file.
	sendState bool
}

// encodedRequest is an encoded request with its files. The caller must release it.
type encodedRequest struct {
	body blob
	// sent is the size of the request in bytes, in the body and in files together.
	sent int64
	// inputs are the files of the request: written for the request, or the caller's own memory from Share.
	inputs []*region
	// params and state are the regions for the results. They are nil if the reply carries the results in its body.
	params, state *region
	// named are the leases of states that the request names.
	named []*lease
	// hasCallerMemory is true if inputs include memory that the caller may change after the call.
	hasCallerMemory bool
	// mayBeRunning is true after an abandoned attempt, on which the server may still be working.
	mayBeRunning bool
}

// pack encodes a request. A field's value may be a blob or a *State. Large values go through the shared folder if there is one.
func (c *Client) pack(ctx context.Context, fields []field, want results) (*encodedRequest, error) {
	if err := c.check(ctx); err != nil {
		return nil, err
	}
	p := &encodedRequest{}
	total := int64(0)
	files := make([]blob, len(fields))
	for i, f := range fields {
		switch value := f.value.(type) {
		case blob:
			files[i] = value
		case *State:
			if value.at.isIn(c.shared) && !want.sendState {
				files[i] = blob{size: value.at.length}
				break
			}
			file, err := value.file()
			if err != nil {
				return nil, err
			}
			fields[i].value = file
			if !want.sendState {
				files[i] = file
			}
		}
		total += files[i].size
	}
	var err error
	if c.shared != nil && total >= c.shared.minBytes && total > 0 {
		p.sent = total
		err = p.share(ctx, c.shared, fields, files, want)
	} else {
		for i := range fields {
			if s, ok := fields[i].value.(*State); ok && err == nil {
				fields[i].value, err = s.file()
			}
		}
	}
	if err == nil {
		if len(want.reply) > 0 {
			fields = append(fields, field{"reply", want.reply})
		}
		p.body, err = encode(fields)
	}
	if err != nil {
		p.release()
		return nil, err
	}
	p.sent += p.body.size
	return p, nil
}

// share writes each blob that is not in the folder yet to a file, and replaces the field's value by its place.
func (p *encodedRequest) share(ctx context.Context, folder *sharedFolder, fields []field, files []blob, want results) error {
	type copying struct {
		from blob
		to   *region
	}
	var copies []copying
	for i, file := range files {
		switch state, isState := fields[i].value.(*State); {
		case isState:
			p.named = append(p.named, state.at)
			fields[i].value = place{state.at.region.name, 0, state.at.length}
		case file.size > 0:
			r := folder.find(file)
			if r != nil {
				p.hasCallerMemory = true
			} else {
				var err error
				if r, err = folder.acquire(file.size); err != nil {
					return err
				}
				copies = append(copies, copying{file, r})
			}
			p.inputs = append(p.inputs, r)
			fields[i].value = place{r.name, 0, file.size}
		}
	}
	into := map[string]any{}
	room := func(key string, size int64) (r *region, err error) {
		if size > 0 {
			if r, err = folder.acquire(size); err == nil {
				into[key] = place{r.name, 0, r.size}.wire()
			}
		}
		return r, err
	}
	var err error
	if p.params, err = room("params", want.params); err != nil {
		return err
	}
	if p.state, err = room("state", want.state); err != nil {
		return err
	}
	if len(into) > 0 {
		want.reply["into"] = into
	}
	return runConcurrently(len(copies), func(i int) error {
		return transfer(ctx, copies[i].from.parts, 0, writeWorkers, copies[i].to.file.WriteAt)
	})
}

// recordOutcome records how an attempt ended. Only an error from stepd itself proves that the server has finished with the
// call.
func (p *encodedRequest) recordOutcome(err error) {
	if refusal := (*Error)(nil); p != nil && err != nil && !(errors.As(err, &refusal) && refusal.Name != "") {
		p.mayBeRunning = true
	}
}

// release returns the files to the folder. If the server may still be working on the call, release retires the files: a server
// must not read changed inputs, nor overwrite another call's file.
func (p *encodedRequest) release() {
	for _, r := range append(p.inputs, p.params, p.state) {
		if r != nil {
			r.release(p.mayBeRunning)
		}
	}
	p.inputs, p.params, p.state = nil, nil, nil
	for _, l := range p.named {
		if p.mayBeRunning {
			l.retire()
		}
		runtime.KeepAlive(l)
	}
	p.named = nil
}

// check returns an error for places that the request did not offer.
func (p *encodedRequest) check(reply stepReply) error {
	isOther := func(at *place, room *region) bool {
		return at != nil && (room == nil || at.file != room.name || at.offset != 0 || at.length > room.size)
	}
	if isOther(reply.paramsAt, p.params) {
		return badReply("params in another place")
	}
	if isOther(reply.stateAt, p.state) {
		return badReply("state in another place")
	}
	return nil
}

// mayChange returns whether the results in files may still change. An abandoned attempt may read memory that the caller has
// changed since, and then overwrite the results.
func (p *encodedRequest) mayChange() bool { return p.mayBeRunning && p.hasCallerMemory }

// takeState returns the new state. The state stays in its file unless that file may change.
func (p *encodedRequest) takeState(length int64) (*State, error) {
	l := p.state.hold(length, p.mayBeRunning)
	p.state = nil
	state, err := readSharedState(l)
	if err == nil && p.mayChange() {
		state, err = state.inMemory()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: state: %w", ErrBadReply, err)
	}
	return state, nil
}

// readParams reads `length` bytes of new parameters from their file, into the buffer if there is one.
func (p *encodedRequest) readParams(ctx context.Context, length int64, buffer *scratch) ([]byte, error) {
	var data []byte
	if buffer != nil && int64(cap(buffer.bytes)) >= length {
		data = buffer.bytes[:length]
	} else {
		data = alignedBytes(int(length))
	}
	if buffer != nil {
		buffer.bytes = data
	}
	return data, transfer(ctx, [][]byte{data}, 0, readWorkers, p.params.file.ReadAt)
}

// paramsMatch returns whether the file of new parameters, `length` bytes long, has the same header as `file`.
func (p *encodedRequest) paramsMatch(length int64, file blob) bool {
	header := make([]byte, len(file.parts[0]))
	if length != file.size {
		return false
	}
	_, err := p.params.file.ReadAt(header, 0)
	return err == nil && bytes.Equal(header, file.parts[0])
}

// exchange makes a call with a MessagePack reply. The caller must release the request, after an error too.
func (c *Client) exchange(ctx context.Context, path string, p *encodedRequest, buffer *scratch, retries int) (stepReply, error) {
	var reply stepReply
	err := c.do(ctx, call{path: path, request: p, accept: msgpackType, read: func(response *http.Response) (err error) {
		if reply, err = decodeStep(response.Body, response.ContentLength, p.sent, buffer); err != nil {
			return err
		}
		return p.check(reply)
	}}, retries)
	return reply, err
}

// callWithoutFiles makes a call that returns nothing in files.
func (c *Client) callWithoutFiles(ctx context.Context, path string, fields []field) (stepReply, error) {
	p, err := c.pack(ctx, fields, results{})
	if err != nil {
		return stepReply{}, err
	}
	defer p.release()
	return c.exchange(ctx, path, p, nil, c.retries)
}
