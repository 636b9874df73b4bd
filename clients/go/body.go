package stepd

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"sync"

	"github.com/tinylib/msgp/msgp"
)

// blob is a MessagePack bin value. Its bytes lie in several slices, which are never joined.
type blob struct {
	parts [][]byte
	size  int64
}

func (b blob) WriteTo(w io.Writer) (written int64, err error) {
	for _, part := range b.parts {
		n, err := w.Write(part)
		written += int64(n)
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// save writes a file atomically: it renames a finished temporary file, so no other process sees a partial file.
func (b blob) save(path string) (err error) {
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.part")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = file.Close()
			_ = os.Remove(file.Name())
		}
	}()
	// A buffer saves system calls for small parts, such as step counts.
	buffered := bufio.NewWriterSize(file, copyBytes)
	if _, err = b.WriteTo(buffered); err != nil {
		return err
	}
	if err = buffered.Flush(); err != nil {
		return err
	}
	if err = file.Chmod(0o644); err != nil {
		return err
	}
	if err = file.Sync(); err != nil {
		return err
	}
	if err = file.Close(); err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}

type field struct {
	key   string
	value any
}

// encode encodes fields as a MessagePack map. It does not copy blobs.
func encode(fields []field) (blob, error) {
	var body blob
	add := func(part []byte) {
		body.parts = append(body.parts, part)
		body.size += int64(len(part))
	}
	small := msgp.AppendMapHeader(nil, uint32(len(fields)))
	addBlob := func(key string, data blob) error {
		if data.size > math.MaxUint32 {
			return fmt.Errorf("%w: %s has %d bytes, and a call takes less than 4 GiB; see Sharded", ErrBadTensor, key, data.size)
		}
		add(msgp.AppendBytesHeader(small, uint32(data.size)))
		small = nil
		for _, part := range data.parts {
			add(part)
		}
		return nil
	}
	var addFields func(fields []field) error
	addFields = func(fields []field) error {
		for _, member := range fields {
			small = msgp.AppendString(small, member.key)
			var err error
			switch value := member.value.(type) {
			case blob:
				err = addBlob(member.key, value)
			case []field:
				small = msgp.AppendMapHeader(small, uint32(len(value)))
				err = addFields(value)
			case []wireUpdate:
				small = msgp.AppendArrayHeader(small, uint32(len(value)))
				for i, update := range value {
					small = msgp.AppendMapHeader(small, 2)
					small = msgp.AppendFloat64(msgp.AppendString(small, "weight"), update.weight)
					small = msgp.AppendString(small, "tensors")
					if err = addBlob(fmt.Sprintf("Updates[%d]", i), update.tensors); err != nil {
						break
					}
				}
			case place:
				small, err = msgp.AppendIntf(small, value.wire())
			case handle:
				small, err = msgp.AppendIntf(small, map[string]any{"handle": string(value)})
			default:
				if small, err = msgp.AppendIntf(small, value); err != nil {
					err = fmt.Errorf("stepd: %s: %w", member.key, err)
				}
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	if err := addFields(fields); err != nil {
		return blob{}, err
	}
	if len(small) > 0 {
		add(small)
	}
	return body, nil
}

// upload lends the parts of a request body to net/http, which may still read them after a call has returned. close waits for a
// read in progress, and makes all later reads fail. The caller may change its tensors after close.
type upload struct {
	mu     sync.Mutex
	closed bool
	body   blob
}

func (u *upload) close() {
	u.mu.Lock()
	u.closed = true
	u.mu.Unlock()
}

func (u *upload) reader() (io.ReadCloser, error) {
	return &uploadReader{upload: u, rest: u.body.parts}, nil
}

type uploadReader struct {
	upload *upload
	rest   [][]byte
	at     int
}

func (r *uploadReader) Read(p []byte) (int, error) {
	r.upload.mu.Lock()
	defer r.upload.mu.Unlock()
	if r.upload.closed {
		return 0, io.ErrClosedPipe
	}
	filled := 0
	for filled < len(p) && len(r.rest) > 0 {
		n := copy(p[filled:], r.rest[0][r.at:])
		filled += n
		if r.at += n; r.at == len(r.rest[0]) {
			r.rest, r.at = r.rest[1:], 0
		}
	}
	if filled == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return filled, nil
}

func (r *uploadReader) Close() error { return nil }
