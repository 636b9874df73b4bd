package stepd

import (
	"context"
)

// InitRequest asks for the state before the first step.
type InitRequest struct {
	Optimizer Optimizer
	Groups    []Group
	// Params matter by name, shape and dtype; with MasterWeights by value as well.
	Params        Tensors
	MasterWeights bool
}

// Init returns the state before the first step: starting values, step 0. A first Step without a state gives the same as one
// with it. Errors are those of Step.
func (c *Client) Init(ctx context.Context, request InitRequest) (*State, error) {
	if err := checkOptimizer(request.Optimizer); err != nil {
		return nil, err
	}
	params, err := fileParts(nil, request.Params)
	if err != nil {
		return nil, err
	}
	fields := append(optimizerFields(request.Optimizer, request.Groups, request.MasterWeights), field{"params", params})
	reply, err := c.once(ctx, "/v1/init", fields)
	if err != nil {
		return nil, err
	}
	return reply.readState()
}
