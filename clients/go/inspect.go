package stepd

import (
	"context"
	"errors"
)

// StateInfo is the server's description of a state.
type StateInfo struct {
	Format    string `json:"format"`
	Optimizer string `json:"optimizer"`
	Revision  int    `json:"revision"`
	// Revisions are those of the other optimizers in the state, by name.
	Revisions map[string]int `json:"revisions,omitempty"`
	Bytes     int64          `json:"bytes"`
	// Elements counts the elements of all slots.
	Elements int64 `json:"elements"`
	// Tensors maps each parameter's name to its step count and slots.
	Tensors map[string]struct {
		// Optimizer is the parameter's optimizer if it differs from the state's, and empty otherwise.
		Optimizer string `json:"optimizer,omitempty"`
		Step      int64  `json:"step"`
		Slots     map[string]struct {
			DType DType `json:"dtype"`
			Shape []int `json:"shape"`
		} `json:"slots"`
	} `json:"tensors"`
}

// Inspect returns the contents of a state, as the server reads it.
func (c *Client) Inspect(ctx context.Context, state *State) (*StateInfo, error) {
	if state == nil {
		return nil, errors.New("stepd: state: expected a State, found nil")
	}
	if err := state.check(); err != nil {
		return nil, err
	}
	info := &StateInfo{}
	if err := c.json(ctx, "/v1/state/inspect", []field{{"state", state}}, info, c.retries); err != nil {
		return nil, err
	}
	if info.Format != stateFormat {
		return nil, badReply("format %.60q", info.Format)
	}
	return info, nil
}
