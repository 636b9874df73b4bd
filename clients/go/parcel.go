package stepd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
)

// A call on its way out: its body, and what of it lies in the shared folder instead.

// pageBytes is what places in a file are aligned to.
const pageBytes = 4096

// place is where in the shared folder bytes are, or room for them.
type place struct {
	file   string
	offset int64
	length int64
}

func (p place) wire() map[string]any {
	return map[string]any{"file": p.file, "offset": p.offset, "length": p.length}
}

// digest is the SHA-256 of a blob that the server keeps.
type digest string

// results says what comes back of a step and where to. Of what has a room of 0 bytes the size is not known, or it is not
// wanted in a file.
type results struct {
	reply         map[string]any
	params, state int64
	// sendState sends the state in the body.
	sendState bool
}

// parcel is a call's body and what belongs to it. It must be released.
type parcel struct {
	body blob
	// sent is what the call has in all, in the body and in files.
	sent int64
	// scratch has what was copied for this call, and room for new parameters.
	scratch *region
	params  place
	// state is room for the new state.
	state *region
	// named are those of states that the call names.
	named []*lease
	// isOpen tells that an attempt was given up, so that the server may still be at it.
	isOpen bool
}

// pack encodes a call. The values of fields may be a blob or a *State, which go through the shared folder if there is one and
// they are not small.
func (c *Client) pack(ctx context.Context, fields []field, want results) (*parcel, error) {
	p := &parcel{}
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
	if c.shared != nil && total >= c.shared.least && total > 0 {
		err = p.share(ctx, c.shared, fields, files, &want)
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
	p.sent = p.body.size
	if p.scratch != nil || p.named != nil {
		p.sent += total
	}
	return p, nil
}

// share puts what is not there yet into the folder, and names it in the fields.
func (p *parcel) share(ctx context.Context, folder *sharedFolder, fields []field, files []blob, want *results) error {
	size := int64(0)
	take := func(bytes int64) (at int64) {
		at = size
		size = (size + bytes + pageBytes - 1) / pageBytes * pageBytes
		return at
	}
	starts := make([]int64, len(fields))
	for i, file := range files {
		if len(file.parts) > 0 {
			starts[i] = take(file.size)
		}
	}
	p.params.offset, p.params.length = take(want.params), want.params
	var err error
	if size > 0 {
		if p.scratch, err = folder.acquire(size); err != nil {
			return err
		}
		p.params.file = p.scratch.name
	}
	for i, file := range files {
		switch state, isState := fields[i].value.(*State); {
		case isState:
			p.named = append(p.named, state.at)
			fields[i].value = place{state.at.region.name, 0, state.at.length}
		case file.size > 0:
			if err := transfer(ctx, file.parts, starts[i], p.scratch.file.WriteAt); err != nil {
				return err
			}
			fields[i].value = place{p.scratch.name, starts[i], file.size}
		}
	}
	into := map[string]any{}
	if want.params > 0 {
		into["params"] = p.params.wire()
	}
	if want.state > 0 {
		if p.state, err = folder.acquire(want.state); err != nil {
			return err
		}
		into["state"] = place{p.state.name, 0, p.state.size}.wire()
	}
	if len(into) > 0 {
		want.reply["into"] = into
	}
	return nil
}

// note takes down how an attempt ended. Only an answer of the server itself tells that it is through with the call.
func (p *parcel) note(err error) {
	if refusal := (*Error)(nil); p != nil && err != nil && !(errors.As(err, &refusal) && refusal.Name != "") {
		p.isOpen = true
	}
}

// release gives the files back. Those of a call that may still go on somewhere are not used again: what that call reads does
// not change, and where it writes nothing else will be.
func (p *parcel) release() {
	for _, r := range []*region{p.scratch, p.state} {
		if r != nil {
			r.release(p.isOpen)
		}
	}
	p.scratch, p.state = nil, nil
	for _, l := range p.named {
		if p.isOpen {
			l.spend()
		}
		runtime.KeepAlive(l)
	}
	p.named = nil
}

// check refuses places that were not offered.
func (p *parcel) check(reply stepReply) error {
	if at := reply.paramsAt; at != nil && (p.params.length == 0 || at.file != p.params.file || at.offset != p.params.offset || at.length > p.params.length) {
		return badReply("params in another place")
	}
	if at := reply.stateAt; at != nil && (p.state == nil || at.file != p.state.name || at.offset != 0 || at.length > p.state.size) {
		return badReply("state in another place")
	}
	return nil
}

// takeState makes a state of the room for it. It stays in its file.
func (p *parcel) takeState(length int64) (*State, error) {
	l := p.state.hold(length, p.isOpen)
	p.state = nil
	state, err := readSharedState(l)
	if err != nil {
		return nil, fmt.Errorf("%w: state: %w", ErrBadReply, err)
	}
	return state, nil
}

// readParams copies the new parameters' file, into the buffer if there is one.
func (p *parcel) readParams(ctx context.Context, at place, buffer *scratch) ([]byte, error) {
	var data []byte
	if buffer != nil && int64(cap(buffer.bytes)) >= at.length {
		data = buffer.bytes[:at.length]
	} else {
		data = alignedBytes(int(at.length))
	}
	if buffer != nil {
		buffer.bytes = data
	}
	return data, transfer(ctx, [][]byte{data}, at.offset, p.scratch.file.ReadAt)
}

// paramsAre tells whether the new parameters' file is laid out as another one is.
func (p *parcel) paramsAre(at place, file blob) bool {
	header := make([]byte, len(file.parts[0]))
	if at.length != file.size {
		return false
	}
	_, err := p.scratch.file.ReadAt(header, at.offset)
	return err == nil && bytes.Equal(header, file.parts[0])
}

// exchange makes a call whose reply is MessagePack. The parcel is still to be released, after an error too.
func (c *Client) exchange(ctx context.Context, path string, p *parcel, buffer *scratch, retries int) (stepReply, error) {
	var reply stepReply
	err := c.do(ctx, call{path: path, parcel: p, accept: msgpackType, read: func(response *http.Response) (err error) {
		if reply, err = decodeStep(response.Body, response.ContentLength, p.sent, buffer); err != nil {
			return err
		}
		return p.check(reply)
	}}, retries)
	return reply, err
}

// once makes a call of which nothing comes back in files.
func (c *Client) once(ctx context.Context, path string, fields []field) (stepReply, error) {
	p, err := c.pack(ctx, fields, results{})
	if err != nil {
		return stepReply{}, err
	}
	defer p.release()
	return c.exchange(ctx, path, p, nil, c.retries)
}
