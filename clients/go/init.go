package stepd

import (
	"context"
)

// InitRequest requests the state before the first step.
type InitRequest struct {
	Optimizer Optimizer
	Groups    []Group
	// Params contribute their names, shapes and dtypes. With MasterWeights they contribute their values too.
	Params        Tensors
	MasterWeights bool
	// Slices are those of StepRequest.
	Slices map[string]int64
}

// Init returns the state before the first step: initial values, step 0. A first Step without a state has the same result as a
// first Step with this state. The errors are those of Step.
func (c *Client) Init(ctx context.Context, request InitRequest) (*State, error) {
	if err := checkOptimizer(request.Optimizer); err != nil {
		return nil, err
	}
	params, err := fileParts(nil, request.Params)
	if err != nil {
		return nil, err
	}
	fields := append(optimizerFields(request.Optimizer, request.Groups, request.MasterWeights), field{"params", params})
	fields = append(fields, slicesFields(request.Slices)...)
	reply, err := c.callWithoutFiles(ctx, "/v1/init", fields)
	if err != nil {
		return nil, err
	}
	return reply.readState()
}
