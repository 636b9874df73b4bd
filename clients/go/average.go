package stepd

import (
	"context"
	"fmt"
)

// AverageRequest requests the averaged parameters after a step.
type AverageRequest struct {
	// Optimizer is one that averages parameters, such as schedule_free_adamw. Its hyperparameters are those of the step.
	Optimizer Optimizer
	Groups    []Group
	// Params and State are those of the last StepResult.
	Params Tensors
	State  *State
}

// Average returns the averaged parameters, with which a model is evaluated. Training goes on with the parameters of the step. The
// errors are those of Step.
func (c *Client) Average(ctx context.Context, request AverageRequest) (Tensors, error) {
	if err := checkOptimizer(request.Optimizer); err != nil {
		return nil, err
	}
	if request.State == nil {
		return nil, fmt.Errorf("%w: Average: expected the State of a StepResult, found nil", ErrBadTensor)
	}
	if err := request.State.check(); err != nil {
		return nil, err
	}
	params, err := fileParts(nil, request.Params)
	if err != nil {
		return nil, err
	}
	fields := append(optimizerFields(request.Optimizer, request.Groups, false), field{"params", params}, field{"state", request.State})
	reply, err := c.callWithoutFiles(ctx, "/v1/average", fields)
	if err != nil {
		return nil, err
	}
	return reply.readParams(request.Params)
}
