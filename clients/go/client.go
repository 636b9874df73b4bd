// Package stepd is a client of the stepd optimizer service. A step sends parameters, gradients and state. It returns new
// parameters and a new state, with the same bits from any replica.
package stepd

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/tinylib/msgp/msgp"
)

const (
	msgpackType = "application/vnd.msgpack"
	jsonType    = "application/json"
	problemType = "urn:stepd:error:"

	defaultTimeout = 5 * time.Minute
	defaultRetries = 4
	// defaultRefused is how long a call retries refused connections.
	defaultRefused = 30 * time.Second
	firstBackoff   = 50 * time.Millisecond
	maxBackoff     = 5 * time.Second
	// maxRefusedBackoff is short, because a refused attempt costs nothing and the server may be back at any moment.
	maxRefusedBackoff = time.Second
	// maxWait is the longest Retry-After that a call obeys. If the server asks for a longer wait, the call returns the error.
	maxWait = time.Minute

	// expectBytes is the body size from which the client sends Expect: 100-continue.
	expectBytes     = 1 << 20
	expectTimeout   = time.Second
	connections     = 64
	copyBytes       = 256 << 10
	maxProblemBytes = 1 << 20
	// idleTimeout is less than the server's 75 s, so that no call starts on a connection that the server is closing.
	idleTimeout = time.Minute
)

// Client calls one server, or one address with many replicas behind it. It is safe for concurrent use.
type Client struct {
	// url is the address as the caller gave it, for errors and logs.
	url string
	// root is the prefix of all request URLs.
	root      string
	http      *http.Client
	tls       *tls.Config
	token     string
	timeout   time.Duration
	retries   int
	refused   time.Duration
	logger    *slog.Logger
	requestID func(context.Context) string
	// parts is the number of connections for a step in parts.
	parts int
	// partBytes is the size of a part that the last steps suggest; 0 before the first of them.
	partBytes atomic.Int64
	// roundTrip is in nanoseconds; 0 if unknown.
	roundTrip atomic.Int64
	sharedDir *string
	// shared is nil without WithSharedDir.
	shared *sharedFolder
}

// Option changes a client from its defaults.
type Option func(*Client)

// WithToken sends a bearer token with every call.
func WithToken(token string) Option { return func(c *Client) { c.token = token } }

// WithHTTPClient replaces the HTTP client. It cannot be combined with WithTLS or Unix sockets.
func WithHTTPClient(client *http.Client) Option { return func(c *Client) { c.http = client } }

// WithTLS sets the TLS configuration: root certificates and a client certificate.
func WithTLS(config *tls.Config) Option { return func(c *Client) { c.tls = config } }

// WithTimeout limits one attempt, from the connection to the last byte of the reply; 0 means no limit. The default is 5
// minutes. The context of a call limits all of its attempts.
func WithTimeout(timeout time.Duration) Option { return func(c *Client) { c.timeout = timeout } }

// WithRetries limits the retries of a call; the default is 4, and 0 turns retries off. The client retries after 408, 429, 502,
// 503, 504 and lost connections, with exponential backoff or after the server's Retry-After. Retries are always safe, because
// the same call gives the same bytes.
func WithRetries(retries int) Option { return func(c *Client) { c.retries = retries } }

// WithParts sets the number of connections that carry a large step in parts. The default is 2, but 1 to a server on this host,
// which has no link to wait for; with 1 each step is one call.
func WithParts(connections int) Option { return func(c *Client) { c.parts = connections } }

// WithRefused limits how long a call tries again while connections are refused, as during a restart; the default is 30 seconds.
// These attempts do not count as retries. WithRefused(0) and WithRetries(0) turn them off.
func WithRefused(limit time.Duration) Option { return func(c *Client) { c.refused = limit } }

// WithLogger sets the logger for warnings about refused connections; the default is slog.Default().
func WithLogger(logger *slog.Logger) Option { return func(c *Client) { c.logger = logger } }

// WithRequestID sets the function that returns the X-Request-Id of a call: at most 128 of the characters A-Z a-z 0-9 _ . : -.
// The server writes the id into its log and its errors.
func WithRequestID(id func(context.Context) string) Option {
	return func(c *Client) { c.requestID = id }
}

// New creates a client for an http:// or https:// address, or for unix:// and a socket's path. New does not connect.
func New(address string, options ...Option) (*Client, error) {
	c := &Client{timeout: defaultTimeout, retries: defaultRetries, refused: defaultRefused}
	for _, option := range options {
		if option == nil {
			return nil, errors.New("stepd: New: expected options, found nil")
		}
		option(c)
	}
	parsed, err := url.Parse(address)
	isUnix := err == nil && parsed.Scheme == "unix"
	// The address and the error of url.Parse may contain a password or a token, so the errors below quote neither.
	switch {
	case !strings.HasPrefix(address, "unix:///") && strings.Contains(address, "@"):
		return nil, errors.New("stepd: address: expected none with user info (user:password@host), found an @; a token goes to WithToken")
	case err != nil:
		return nil, errors.New("stepd: address: expected http://, https:// or unix:///path, found no URL")
	case isUnix && (parsed.Host != "" || parsed.Path == ""):
		return nil, errors.New("stepd: address: expected unix:///path, found unix: without the three slashes or without the path")
	case !isUnix && parsed.Scheme != "http" && parsed.Scheme != "https":
		return nil, errors.New("stepd: address: expected http://, https:// or unix:///path, found another scheme or none")
	case !isUnix && parsed.Host == "":
		return nil, fmt.Errorf("stepd: address: expected %s://host, found no host", parsed.Scheme)
	case parsed.RawQuery != "" || parsed.ForceQuery || parsed.Fragment != "":
		return nil, errors.New("stepd: address: expected no query and no fragment, found one")
	case strings.ContainsFunc(c.token, func(r rune) bool { return r <= ' ' || r > '~' }):
		return nil, errors.New("stepd: WithToken: expected visible ASCII characters, found another one")
	case c.timeout < 0:
		return nil, fmt.Errorf("stepd: WithTimeout: expected 0 or more, found %s", c.timeout)
	case c.retries < 0:
		return nil, fmt.Errorf("stepd: WithRetries: expected 0 or more, found %d", c.retries)
	case c.parts < 0:
		return nil, fmt.Errorf("stepd: WithParts: expected 1 or more, found %d", c.parts)
	case c.refused < 0:
		return nil, fmt.Errorf("stepd: WithRefused: expected 0 or more, found %s", c.refused)
	case c.http != nil && (c.tls != nil || isUnix):
		return nil, errors.New("stepd: WithHTTPClient excludes WithTLS and Unix sockets")
	}
	if c.parts == 0 {
		c.parts = partsFor(parsed)
	}
	c.url = strings.TrimSuffix(address, "/")
	c.root = c.url
	if c.sharedDir != nil {
		if c.shared, err = openSharedFolder(*c.sharedDir); err != nil {
			return nil, err
		}
		runtime.AddCleanup(c, (*sharedFolder).close, c.shared)
	}
	if c.http != nil {
		return c, nil
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	// net/http changes the configuration, and the caller may pass one configuration to several clients, so each client gets a
	// copy.
	transport.TLSClientConfig = c.tls.Clone()
	transport.MaxIdleConnsPerHost = connections
	transport.IdleConnTimeout = idleTimeout
	transport.ExpectContinueTimeout = expectTimeout
	transport.WriteBufferSize = copyBytes
	transport.ReadBufferSize = copyBytes
	// Compression would hide the reply's length, which limits the memory that the client allocates.
	transport.DisableCompression = true
	if isUnix {
		path := parsed.Path
		c.root = "http://localhost"
		transport.Proxy = nil
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
	}
	c.http = &http.Client{
		Transport: transport,
		// The client follows no redirects: a redirect means a wrong address, and an upload may have gigabytes.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// Close closes idle connections and removes the client's files from the WithSharedDir folder; calls in progress may fail.
// States stay valid, and the client can be used again.
func (c *Client) Close() {
	if c.http != nil { // c.http is nil in a zero Client
		c.http.CloseIdleConnections()
	}
	if c.shared != nil {
		c.shared.close()
	}
}

// call is one method call with all of its attempts.
type call struct {
	path string
	// request is nil for GET.
	request *encodedRequest
	accept  string
	// read decodes a reply of status 200. The function do calls read once for each attempt that gets such a reply.
	read func(*http.Response) error
}

// do sends a call until the call succeeds, fails with a final error, or has used up its retries.
func (c *Client) do(ctx context.Context, call call, retries int) error {
	if err := c.check(ctx); err != nil {
		return err
	}
	retrier := c.newRetrier(retries, "stepd at "+c.url)
	for {
		err := c.attempt(ctx, call)
		call.request.recordOutcome(err)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || !isRetryable(err) || !retrier.wait(ctx, err) {
			return contextErrorOr(ctx, err)
		}
	}
}

// retrier decides on the retries of one call.
type retrier struct {
	retries int
	// refused limits the retries of refused connections.
	refused time.Duration
	logger  *slog.Logger
	server  string

	attempt int
	// refusals counts refused connections in a row; since is the time of the first of them.
	refusals int
	since    time.Time
}

func (c *Client) newRetrier(retries int, server string) *retrier {
	p := &retrier{retries: retries, refused: c.refused, logger: c.logger, server: server}
	if retries <= 0 {
		p.refused = 0
	}
	if p.logger == nil {
		p.logger = slog.Default()
	}
	return p
}

// wait waits after a failure. It returns false if the call should give up, or if the context ends first.
func (p *retrier) wait(ctx context.Context, err error) bool {
	if isRefused(err) {
		return p.waitRefused(ctx)
	}
	p.refusals = 0
	attempt := p.attempt
	p.attempt++
	return attempt < p.retries && sleep(ctx, retryDelay(err, attempt))
}

func (p *retrier) waitRefused(ctx context.Context) bool {
	if p.refused <= 0 {
		return false
	}
	if p.refusals == 0 {
		p.since = time.Now()
		p.logger.WarnContext(ctx, fmt.Sprintf("%s refuses connections; trying again for %s", p.server, p.refused))
	}
	left := p.refused - time.Since(p.since)
	if left <= 0 {
		return false
	}
	wait := backoff(p.refusals, maxRefusedBackoff)
	p.refusals++
	return sleep(ctx, min(wait, left))
}

// isRefused returns whether the connection was refused, as during a restart, or the file of a Unix socket is missing.
func isRefused(err error) bool {
	dial := (*net.OpError)(nil)
	return errors.As(err, &dial) && dial.Op == "dial" && (errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT))
}

// check returns an error for a Client that New did not create, and for a nil context.
func (c *Client) check(ctx context.Context) error {
	if c == nil || c.http == nil {
		return errors.New("stepd: expected a Client of New, found none")
	}
	if ctx == nil {
		return errors.New("stepd: expected a context, found nil")
	}
	return nil
}

// contextErrorOr returns the context's error if the context has ended, and err otherwise.
func contextErrorOr(ctx context.Context, err error) error {
	switch cause := context.Cause(ctx); {
	case cause == nil:
		return err
	case errors.Is(cause, ctx.Err()):
		return fmt.Errorf("stepd: %w", cause)
	default:
		return fmt.Errorf("stepd: %w: %w", ctx.Err(), cause)
	}
}

// isRetryable returns whether the same call may succeed later or on another replica.
func isRetryable(err error) bool {
	if refusal := (*Error)(nil); errors.As(err, &refusal) {
		switch refusal.Status {
		case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return true
		}
		return false
	}
	return errors.As(err, new(*TransportError))
}

// retryDelay returns the wait before the next attempt: the server's Retry-After, or exponential backoff.
func retryDelay(err error, attempt int) time.Duration {
	if refusal := (*Error)(nil); errors.As(err, &refusal) && refusal.hasRetryAfter {
		return refusal.RetryAfter
	}
	return backoff(attempt, maxBackoff)
}

// backoff returns an exponential wait with jitter, so that callers that failed together do not retry together.
func backoff(attempt int, most time.Duration) time.Duration {
	pause := min(firstBackoff<<min(attempt, 16), most)
	return pause/2 + rand.N(pause/2)
}

// sleep sleeps for `wait`. It returns false at once if `wait` exceeds maxWait or the time that the context has left.
func sleep(ctx context.Context, wait time.Duration) bool {
	if deadline, ok := ctx.Deadline(); wait > maxWait || (ok && time.Until(deadline) < wait) {
		return false
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (c *Client) attempt(ctx context.Context, call call) error {
	if c.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.timeout)
		defer cancel()
	}
	request, err := http.NewRequestWithContext(c.traceConnections(ctx), http.MethodGet, c.root+call.path, nil)
	if err != nil {
		return fmt.Errorf("stepd: %w", err)
	}
	if call.request != nil {
		up := &upload{body: call.request.body}
		defer up.close()
		request.Method = http.MethodPost
		request.ContentLength = up.body.size
		request.GetBody = up.reader
		request.Body, _ = up.reader()
		request.Header.Set("Content-Type", msgpackType)
		if up.body.size >= expectBytes {
			request.Header.Set("Expect", "100-continue")
		}
	}
	request.Header.Set("Accept", call.accept)
	if c.token != "" {
		request.Header.Set("Authorization", "Bearer "+c.token)
	}
	if c.requestID != nil {
		id := c.requestID(ctx)
		if !isRequestID(id) {
			return fmt.Errorf("stepd: WithRequestID: expected at most 128 of A-Z a-z 0-9 _ . : -, found %.200q", id)
		}
		request.Header.Set("X-Request-Id", id)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return &TransportError{URL: c.url, Err: err}
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return readProblem(response)
	}
	watched := &lossReader{from: response.Body}
	response.Body = watched
	err = call.read(response)
	if watched.lost != nil {
		return &TransportError{URL: c.url, Err: watched.lost}
	}
	return err
}

func isRequestID(id string) bool {
	return len(id) <= 128 && !strings.ContainsFunc(id, func(r rune) bool {
		return (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && (r < '0' || r > '9') && !strings.ContainsRune("_.:-", r)
	})
}

// lossReader records a lost connection, because the decoder that reads from it may return another error instead.
type lossReader struct {
	from io.ReadCloser
	lost error
}

func (r *lossReader) Read(p []byte) (int, error) {
	n, err := r.from.Read(p)
	if err != nil && err != io.EOF {
		r.lost = err
	}
	return n, err
}

func (r *lossReader) Close() error { return r.from.Close() }

// readProblem returns the error in a reply whose status is not 200.
func readProblem(response *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(response.Body, maxProblemBytes))
	if strings.HasPrefix(response.Header.Get("Content-Type"), msgpackType) {
		var plain bytes.Buffer
		if _, err := msgp.UnmarshalAsJSON(&plain, text); err == nil {
			text = plain.Bytes()
		}
	}
	problem := &Error{}
	wire := struct {
		Type string `json:"type"`
		*Error
	}{Error: problem}
	// Other services send JSON errors too, but without stepd's name and type.
	if json.Unmarshal(text, &wire) != nil || problem.Name == "" || wire.Type != problemType+string(problem.Name) {
		problem = &Error{Message: fmt.Sprintf("%.200q", text)}
	}
	problem.Status = response.StatusCode
	if problem.RequestID == "" {
		problem.RequestID = response.Header.Get("X-Request-Id")
	}
	problem.RetryAfter, problem.hasRetryAfter = retryAfter(response.Header.Get("Retry-After"))
	return problem
}

// retryAfter parses a Retry-After header: seconds or a date. It returns false for anything else.
func retryAfter(text string) (time.Duration, bool) {
	if text != "" && strings.Trim(text, "0123456789.") == "" {
		if seconds, err := strconv.ParseFloat(text, 64); err == nil {
			// A year fits a Duration and is longer than any wait, so it is the upper limit.
			return time.Duration(min(seconds, 365*24*3600) * float64(time.Second)), true
		}
		return 0, false
	}
	date, err := http.ParseTime(text)
	if err != nil {
		return 0, false
	}
	return max(0, time.Until(date)), true
}

// json calls a method with a small JSON reply, and decodes the reply into result.
func (c *Client) json(ctx context.Context, path string, fields []field, result any, retries int) error {
	sent := int64(0)
	call := call{path: path, accept: jsonType, read: func(response *http.Response) error {
		text, err := readUpTo(response.Body, maxReply(sent))
		if err != nil {
			return err
		}
		if err := json.Unmarshal(text, result); err != nil {
			return fmt.Errorf("%w: %w", ErrBadReply, err)
		}
		return nil
	}}
	if fields != nil {
		p, err := c.pack(ctx, fields, results{})
		if err != nil {
			return err
		}
		defer p.release()
		sent, call.request = p.sent, p
	}
	return c.do(ctx, call, retries)
}

// readUpTo reads everything. It allocates memory for the bytes that arrive, not for the length that the server announces.
func readUpTo(from io.Reader, most int64) ([]byte, error) {
	var text bytes.Buffer
	n, err := io.Copy(&text, io.LimitReader(from, most+1))
	if err == nil && n > most {
		err = badReply("more than %d bytes", most)
	}
	return text.Bytes(), err
}
