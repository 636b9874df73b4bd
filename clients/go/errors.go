package stepd

import (
	"errors"
	"fmt"
	"time"
)

// ErrorName is the server's stable name of an error. It is also an error, so that errors.Is(err, ErrOverloaded) works.
type ErrorName string

type errorEntry struct {
	code   int
	status int
	title  string
}

func (n ErrorName) Error() string {
	if entry, ok := errorTable[n]; ok {
		return "stepd: " + entry.title
	}
	return "stepd: " + string(n)
}

// Error is an error that the server returned. The call changed nothing. errors.As extracts an Error.
//
// On the wire (application/problem+json, or the same members in MessagePack):
//
//	HTTP/1.1 400 Bad Request
//	{"type":"urn:stepd:error:INVALID_PARAMS","title":"The parameters are not valid","status":400,
//	 "detail":"/optimizer/lr: expected at least 0, found -1","code":-32602,"name":"INVALID_PARAMS",
//	 "field":"/optimizer/lr","expected":"at least 0","found":"-1","request_id":"2f1c..."}
type Error struct {
	// Code is the JSON-RPC code; 0 if a proxy answered instead of stepd.
	Code int `json:"code"`
	// Name is the stable name; empty if a proxy answered instead of stepd.
	Name ErrorName `json:"name"`
	// Message is one sentence.
	Message string `json:"detail"`
	// Field is a JSON pointer to the invalid field of the call's parameters.
	Field    string `json:"field"`
	Expected string `json:"expected"`
	Found    string `json:"found"`
	// Tensors are the names of the first few tensors concerned.
	Tensors   []string `json:"tensors"`
	RequestID string   `json:"request_id"`
	// Status is the HTTP status.
	Status int `json:"status"`
	// RetryAfter is the time to wait before a retry; 0 if the server gave none.
	RetryAfter time.Duration `json:"-"`
	// hasRetryAfter distinguishes a Retry-After of 0 from none.
	hasRetryAfter bool
}

func (e *Error) Error() string {
	if e.Name == "" {
		return fmt.Sprintf("stepd: HTTP %d: %s", e.Status, e.Message)
	}
	if e.RequestID == "" {
		return fmt.Sprintf("stepd: %s: %s", string(e.Name), e.Message)
	}
	return fmt.Sprintf("stepd: %s: %s (request %s)", string(e.Name), e.Message, e.RequestID)
}

// Is returns whether the error has the given name: errors.Is(err, ErrStateMismatch).
func (e *Error) Is(target error) bool {
	name, ok := target.(ErrorName)
	return ok && e.Name != "" && e.Name == name
}

func badReply(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrBadReply, fmt.Sprintf(format, args...))
}

// TransportError means that the server was unreachable, or that the connection was lost before the reply was complete.
type TransportError struct {
	URL string
	Err error
}

func (e *TransportError) Error() string {
	return fmt.Sprintf("stepd: no reply from %s: %v", e.URL, e.Err)
}

func (e *TransportError) Unwrap() error { return e.Err }

var (
	// ErrBadReply means that the reply did not come from stepd, or does not fit the call.
	ErrBadReply = errors.New("stepd: not a reply of stepd")
	// ErrBadFile means that the bytes are not a valid safetensors file, or not a state.
	ErrBadFile = errors.New("stepd: not a valid safetensors file")
	// ErrStateKept means that only the server has the state, because the step's Reply.State was ReplyNone.
	ErrStateKept = errors.New("stepd: the state stayed on the server (ReplyNone); it goes by Cached only")

	// ErrNoSlot means that no parameter in the state has the slot.
	ErrNoSlot = errors.New("stepd: no such slot in the state")
	// ErrBadTensor means that a caller's tensor is inconsistent, or does not match its parameter.
	ErrBadTensor = errors.New("stepd: not a valid tensor")
)
