package stepd

import (
	"context"
	"fmt"
	"io"
	"net/http"
)

// Info describes a server.
type Info struct {
	Name    string   `json:"name"`
	Version string   `json:"version"`
	Node    string   `json:"node"`
	Kernels []string `json:"kernels"`
	Workers int      `json:"workers"`
	// Limits maps the name of each limit to its value in bytes.
	Limits map[string]int64 `json:"limits"`
}

// Info returns the server's version, kernels and limits.
func (c *Client) Info(ctx context.Context) (*Info, error) {
	info := &Info{}
	if err := c.json(ctx, "/v1", nil, info, c.retries); err != nil {
		return nil, err
	}
	if info.Name != "stepd" {
		return nil, badReply("a server by the name of %.60q", info.Name)
	}
	return info, nil
}

// Ready asks the server once, without retries, whether it accepts calls. The error means that the server is unreachable.
func (c *Client) Ready(ctx context.Context) (bool, error) {
	err := c.do(ctx, call{path: "/health/ready", accept: jsonType, read: func(response *http.Response) error {
		_, err := io.Copy(io.Discard, io.LimitReader(response.Body, maxProblemBytes))
		return err
	}}, 0)
	if refusal, ok := err.(*Error); ok && refusal.Status == http.StatusServiceUnavailable {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("stepd: not ready: %w", err)
	}
	return true, nil
}
