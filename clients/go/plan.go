package stepd

import (
	"context"

	"github.com/tinylib/msgp/msgp"
)

// PlanRequest requests the cost of a step.
type PlanRequest struct {
	Optimizer Optimizer
	Groups    []Group
	// Params contribute their names, shapes and dtypes; their Data may be nil.
	Params        Tensors
	GradDType     DType
	MasterWeights bool
}

// Plan is the cost of a step that sends a state and takes one call.
type Plan struct {
	// Parameters counts the elements of all parameters.
	Parameters int64 `json:"parameters"`
	BytesIn    int64 `json:"bytes_in"`
	BytesOut   int64 `json:"bytes_out"`
	StateBytes int64 `json:"state_bytes"`
	// ArenaBytes is an upper bound of the memory that the call holds on the server.
	ArenaBytes int64 `json:"arena_bytes"`
	// MatrixFlops counts the multiplications and additions in matrix products, such as those of muon.
	MatrixFlops float64 `json:"matrix_flops"`
	// Fits is true if the server accepts the step as one call.
	Fits bool `json:"fits"`
	// Requests is the number of calls to split the step into, so that the server holds several at once. It is 0 if one tensor
	// alone is too large.
	Requests int `json:"requests"`
	// TooLarge lists the tensors that are too large on their own.
	TooLarge []string `json:"too_large"`
}

// Plan returns the cost of a step, from shapes and dtypes alone.
func (c *Client) Plan(ctx context.Context, request PlanRequest) (*Plan, error) {
	if err := checkOptimizer(request.Optimizer); err != nil {
		return nil, err
	}
	names := map[string]bool{}
	// The map keeps the order of Params, because the length of a safetensors header depends on that order. A Go map has no order.
	tensors := msgp.Raw(msgp.AppendMapHeader(nil, uint32(len(request.Params))))
	for _, t := range request.Params {
		if err := checkName(t.Name, names[t.Name]); err != nil {
			return nil, err
		}
		names[t.Name] = true
		tensors = msgp.AppendMapHeader(msgp.AppendString(tensors, t.Name), 2)
		tensors = msgp.AppendArrayHeader(msgp.AppendString(tensors, "shape"), uint32(len(t.Shape)))
		for _, size := range t.Shape {
			tensors = msgp.AppendInt(tensors, size)
		}
		tensors = msgp.AppendString(msgp.AppendString(tensors, "dtype"), string(t.DType))
	}
	fields := append(optimizerFields(request.Optimizer, request.Groups, request.MasterWeights), field{"tensors", tensors})
	if request.GradDType != "" {
		fields = append(fields, field{"grad_dtype", string(request.GradDType)})
	}
	plan := &Plan{Parameters: -1}
	if err := c.json(ctx, "/v1/plan", fields, plan, c.retries); err != nil {
		return nil, err
	}
	if plan.Parameters < 0 {
		return nil, badReply("no parameters")
	}
	return plan, nil
}
