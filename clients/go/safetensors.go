package stepd

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// A safetensors file holds the length of the header in 8 bytes (little-endian), the header in JSON, and the tensors' bytes. The
// reader is strict: every byte belongs to exactly one tensor. The writer is canonical: for equal tensors it writes the same
// bytes as the server.

const (
	lengthBytes = 8
	// maxHeaderBytes is the limit in the safetensors library.
	maxHeaderBytes = 100_000_000
	// headerAlignment keeps the tensors of a file aligned.
	headerAlignment = 8
	maxDimensions   = 32
	metadataKey     = "__metadata__"
)

// Save writes the tensors to a safetensors file. Save replaces an existing file atomically.
func (ts Tensors) Save(path string) error {
	file, err := fileParts(nil, ts)
	if err != nil {
		return err
	}
	return file.save(path)
}

// LoadTensors reads a safetensors file. The error wraps ErrBadFile if the file is invalid.
func LoadTensors(path string) (Tensors, error) {
	file, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	_, tensors, err := readTensors(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return tensors, nil
}

// readTensors parses a file. It returns the tensors in file order, as views of the file. The error wraps ErrBadFile.
func readTensors(file []byte) (metadata map[string]string, tensors []Tensor, err error) {
	start, err := dataStart(file, int64(len(file)))
	if err != nil {
		return nil, nil, err
	}
	metadata, entries, err := readHeader(file[lengthBytes:start], int64(len(file))-start)
	if err != nil {
		return nil, nil, err
	}
	tensors = make([]Tensor, len(entries))
	for i, entry := range entries {
		tensors[i] = entry.Tensor
		tensors[i].Data = file[start+entry.start : start+entry.end : start+entry.end]
	}
	return metadata, tensors, nil
}

// dataStart returns the offset of the data in a file of fileBytes bytes. `first` holds at least the 8 bytes of the header
// length.
func dataStart(first []byte, fileBytes int64) (int64, error) {
	if fileBytes < lengthBytes {
		return 0, badFile("%d bytes, and the shortest has 8", fileBytes)
	}
	headerBytes := binary.LittleEndian.Uint64(first)
	if headerBytes > maxHeaderBytes || headerBytes > uint64(fileBytes-lengthBytes) {
		return 0, badFile("a header of %d bytes in %d bytes", headerBytes, fileBytes)
	}
	return lengthBytes + int64(headerBytes), nil
}

// readHeader returns the tensors, without data, in file order. Together they must cover dataBytes exactly.
func readHeader(header []byte, dataBytes int64) (metadata map[string]string, entries []headerEntry, err error) {
	if metadata, entries, err = parseHeader(header); err != nil {
		return nil, nil, err
	}
	// An empty tensor starts at the same offset as the next tensor, and must come first.
	slices.SortStableFunc(entries, func(a, b headerEntry) int {
		return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.end, b.end))
	})
	end := int64(0)
	for _, entry := range entries {
		size, _ := dtypeOf(entry.DType)
		elements, ok := product(entry.Shape)
		switch {
		case size == 0:
			return nil, nil, badFile("tensor %.60q has dtype %.60q", entry.Name, entry.DType)
		case !ok || elements > maxExact/size || entry.end-entry.start != elements*size:
			return nil, nil, badFile("tensor %.60q of shape %v in %s has offsets %d to %d", entry.Name, entry.Shape, entry.DType, entry.start, entry.end)
		case entry.start != end:
			return nil, nil, badFile("tensor %.60q starts at %d, and the one before it ends at %d", entry.Name, entry.start, end)
		case entry.end > dataBytes:
			return nil, nil, badFile("tensor %.60q ends at %d of %d bytes", entry.Name, entry.end, dataBytes)
		}
		end = entry.end
	}
	if end != dataBytes {
		return nil, nil, badFile("%d bytes after the tensors", dataBytes-end)
	}
	return metadata, entries, nil
}

// checkName returns an error for a name that no tensor may have, or that another tensor already has.
func checkName(name string, isThere bool) error {
	switch {
	case isThere:
		return fmt.Errorf("%w: the name %.200q stands twice", ErrBadTensor, name)
	case name == metadataKey || name == "__proto__":
		// safetensors reserves the first name. The server refuses the second, because it is special in JavaScript.
		return fmt.Errorf("%w: the name %q is reserved", ErrBadTensor, name)
	case !utf8.ValidString(name):
		return fmt.Errorf("%w: the name %.200q is not UTF-8", ErrBadTensor, name)
	}
	return nil
}

func badFile(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrBadFile, fmt.Sprintf(format, args...))
}

type headerEntry struct {
	Tensor
	start, end int64
}

// parseHeader parses a header. encoding/json would accept duplicate keys and lone surrogates, which safetensors refuses.
func parseHeader(header []byte) (map[string]string, []headerEntry, error) {
	if !utf8.Valid(header) {
		return nil, nil, badFile("a header that is not UTF-8")
	}
	if len(header) == 0 || header[0] != '{' {
		return nil, nil, badFile("a header that does not start with {")
	}
	p := &headerParser{text: header}
	metadata := map[string]string{}
	var entries []headerEntry
	seen := map[string]bool{}
	p.object(func(key string) {
		if seen[key] {
			p.fail("the key %.60q twice", key)
		}
		seen[key] = true
		if key == metadataKey {
			p.object(func(key string) {
				if _, twice := metadata[key]; twice {
					p.fail("the key %.60q twice", key)
				}
				metadata[key] = p.str()
			})
			return
		}
		entries = append(entries, p.entry(key))
	})
	p.space()
	if p.err == nil && p.at != len(header) {
		p.fail("text after the header's object")
	}
	if p.err != nil {
		return nil, nil, p.err
	}
	return metadata, entries, nil
}

// headerParser parses the JSON forms that a header may contain. After an error every method does nothing.
type headerParser struct {
	text []byte
	at   int
	err  error
}

func (p *headerParser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = badFile("the header has %s near byte %d", fmt.Sprintf(format, args...), p.at)
	}
	p.at = len(p.text)
}

func (p *headerParser) space() {
	for p.at < len(p.text) && strings.IndexByte(" \t\n\r", p.text[p.at]) >= 0 {
		p.at++
	}
}

// next consumes c if it is the next character.
func (p *headerParser) next(c byte) bool {
	p.space()
	if p.at < len(p.text) && p.text[p.at] == c {
		p.at++
		return true
	}
	return false
}

func (p *headerParser) expect(c byte) {
	if !p.next(c) {
		p.fail("no %q", c)
	}
}

// object reads an object. After each key, object calls member, which reads the value.
func (p *headerParser) object(member func(key string)) {
	p.list('{', '}', func() {
		key := p.str()
		p.expect(':')
		if p.err == nil {
			member(key)
		}
	})
}

func (p *headerParser) list(open, end byte, item func()) {
	p.expect(open)
	if p.err != nil || p.next(end) {
		return
	}
	for p.err == nil {
		item()
		if p.err != nil || p.next(end) {
			return
		}
		p.expect(',')
	}
}

func (p *headerParser) entry(name string) headerEntry {
	entry := headerEntry{Tensor: Tensor{Name: name, Shape: []int{}}, start: -1, end: -1}
	seen := map[string]bool{}
	p.object(func(key string) {
		if seen[key] {
			p.fail("the key %.60q twice", key)
		}
		seen[key] = true
		switch key {
		case "dtype":
			entry.DType = DType(p.str())
		case "shape":
			for _, size := range p.numbers(maxDimensions) {
				if int64(int(size)) != size {
					p.fail("a size that this machine cannot address")
				}
				entry.Shape = append(entry.Shape, int(size))
			}
		case "data_offsets":
			offsets := p.numbers(2)
			if len(offsets) != 2 {
				p.fail("%d data_offsets", len(offsets))
				return
			}
			entry.start, entry.end = offsets[0], offsets[1]
		default:
			p.fail("the unknown key %.60q", key)
		}
	})
	if p.err == nil && len(seen) != 3 {
		p.fail("the tensor %.60q without dtype, shape and data_offsets", name)
	}
	return entry
}

func (p *headerParser) numbers(most int) (values []int64) {
	p.list('[', ']', func() {
		if len(values) == most {
			p.fail("more than %d numbers", most)
			return
		}
		values = append(values, p.number())
	})
	return values
}

// number reads an integer from 0 to maxExact, written as digits only.
func (p *headerParser) number() int64 {
	p.space()
	start := p.at
	for p.at < len(p.text) && p.text[p.at] >= '0' && p.text[p.at] <= '9' {
		p.at++
	}
	digits := string(p.text[start:p.at])
	value, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || value > maxExact || (digits[0] == '0' && len(digits) > 1) {
		p.fail("no whole number from 0 to 2^53-1")
	}
	return value
}

func (p *headerParser) str() string {
	p.expect('"')
	start := p.at
	for ; p.at < len(p.text); p.at++ {
		switch c := p.text[p.at]; {
		case c == '"':
			p.at++
			return string(p.text[start : p.at-1])
		case c == '\\':
			return p.escaped(start)
		case c < 0x20:
			p.fail("a control character in a string")
		}
	}
	p.fail("a string without end")
	return ""
}

var escapes = map[byte]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

// escaped reads the rest of a string that has an escape. `start` is the offset of the string's first character.
func (p *headerParser) escaped(start int) string {
	out := append([]byte(nil), p.text[start:p.at]...)
	for p.at < len(p.text) {
		c := p.text[p.at]
		p.at++
		switch {
		case c == '"':
			return string(out)
		case c < 0x20:
			p.fail("a control character in a string")
		case c != '\\':
			out = append(out, c)
		case p.at == len(p.text):
		case p.text[p.at] == 'u':
			r := p.unit()
			if utf16.IsSurrogate(r) {
				second := rune(-1)
				if p.at < len(p.text) && p.text[p.at] == '\\' {
					p.at++
					second = p.unit()
				}
				if r = utf16.DecodeRune(r, second); r == utf8.RuneError {
					p.fail("half of a surrogate pair")
				}
			}
			out = utf8.AppendRune(out, r)
		default:
			plain, ok := escapes[p.text[p.at]]
			if !ok {
				p.fail("an unknown escape")
			}
			p.at = min(p.at+1, len(p.text))
			out = append(out, plain)
		}
	}
	p.fail("a string without end")
	return ""
}

// unit reads the letter u and four hexadecimal digits.
func (p *headerParser) unit() rune {
	if p.at+5 > len(p.text) || p.text[p.at] != 'u' {
		p.fail("half of a surrogate pair or an escape that ends early")
		return 0
	}
	value, err := strconv.ParseUint(string(p.text[p.at+1:p.at+5]), 16, 16)
	p.at += 5
	if err != nil {
		p.fail("an escape that is not hexadecimal")
	}
	return rune(value)
}

// canonical returns a copy of the tensors in file order: wide dtypes first, then by the bytes of the name.
func canonical(tensors []Tensor) []Tensor {
	ordered := slices.Clone(tensors)
	slices.SortStableFunc(ordered, func(a, b Tensor) int {
		_, left := dtypeOf(a.DType)
		_, right := dtypeOf(b.DType)
		return cmp.Or(cmp.Compare(right, left), strings.Compare(a.Name, b.Name))
	})
	return ordered
}

// fileParts returns the canonical file in parts: the header, then each tensor's own memory. The error wraps ErrBadTensor.
func fileParts(metadata map[string]string, tensors []Tensor) (blob, error) {
	ordered := canonical(tensors)
	header := make([]byte, lengthBytes, lengthBytes+128*(len(ordered)+1))
	header = append(header, '{')
	if metadata != nil {
		header = append(header, `"`+metadataKey+`":{`...)
		for i, key := range slices.Sorted(maps.Keys(metadata)) {
			if i > 0 {
				header = append(header, ',')
			}
			header = append(appendQuoted(header, key), ':')
			header = appendQuoted(header, metadata[key])
		}
		header = append(header, '}')
	}
	names := make(map[string]bool, len(ordered))
	offset := int64(0)
	for i, t := range ordered {
		if err := t.check(); err != nil {
			return blob{}, err
		}
		if err := checkName(t.Name, names[t.Name]); err != nil {
			return blob{}, err
		}
		names[t.Name] = true
		if i > 0 || metadata != nil {
			header = append(header, ',')
		}
		header = appendQuoted(header, t.Name)
		header = append(appendQuoted(append(header, `:{"dtype":`...), string(t.DType)), `,"shape":[`...)
		for j, size := range t.Shape {
			if j > 0 {
				header = append(header, ',')
			}
			header = strconv.AppendInt(header, int64(size), 10)
		}
		header = strconv.AppendInt(append(header, `],"data_offsets":[`...), offset, 10)
		offset += int64(len(t.Data))
		header = append(strconv.AppendInt(append(header, ','), offset, 10), "]}"...)
	}
	header = append(header, '}')
	for len(header)%headerAlignment != 0 {
		header = append(header, ' ')
	}
	binary.LittleEndian.PutUint64(header, uint64(len(header)-lengthBytes))
	parts := make([][]byte, 0, len(ordered)+1)
	parts = append(parts, header)
	for _, t := range ordered {
		if len(t.Data) > 0 {
			parts = append(parts, t.Data)
		}
	}
	return blob{parts: parts, size: int64(len(header)) + offset}, nil
}

// appendQuoted appends a JSON string with JavaScript's escapes, so that the file has the same bytes as the server's.
func appendQuoted(out []byte, text string) []byte {
	const hex = "0123456789abcdef"
	out = append(out, '"')
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '"' || c == '\\':
			out = append(out, '\\', c)
		case c >= 0x20:
			out = append(out, c)
		default:
			if at := strings.IndexByte("\b\f\n\r\t", c); at >= 0 {
				out = append(out, '\\', "bfnrt"[at])
			} else {
				out = append(out, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			}
		}
	}
	return append(out, '"')
}
