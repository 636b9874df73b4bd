package stepd

import (
	"context"
)

// Convention describes how a safetensors file holds an optimizer's state. A zero value means that the field is absent.
type Convention struct {
	// Format is "stepd", "torch", "qhoptim" or "optax".
	Format string
	// Optimizer is the optimizer of a file in a format other than stepd's.
	Optimizer string
	// Names lists the parameters by their index in a torch or qhoptim file. Nil means that the file holds names.
	Names []string
	// Betas are the betas of the whole run. Only qhoptim files need them.
	Betas []float64
	// Step is the step count of parameters for which the file has no step count.
	Step int64
}

func (c Convention) wire() map[string]any {
	wire := map[string]any{"format": c.Format}
	if c.Optimizer != "" {
		wire["optimizer"] = c.Optimizer
	}
	if c.Names != nil {
		wire["names"] = c.Names
	}
	if c.Betas != nil {
		wire["betas"] = c.Betas
	}
	if c.Step != 0 {
		wire["step"] = c.Step
	}
	return wire
}

// ConvertRequest converts a state to another convention or to another optimizer of its family, or adds slots.
type ConvertRequest struct {
	// File is a safetensors file; State.Bytes returns one.
	File []byte
	// From and To are conventions; nil means stepd's own.
	From, To *Convention
	// Optimizer is the optimizer of the result. Empty keeps the file's optimizer.
	Optimizer string
	// Fill lists slots to add if they are missing.
	Fill []string
	// StateDType is the format of the result's moments: F32, BF16 or Q8. Empty keeps the format that they have.
	StateDType string
}

// Converted is a converted state.
type Converted struct {
	// File is a safetensors file; ReadState reads it if it is in stepd's convention.
	File []byte
	// Lost has one sentence for each part of the state that File cannot hold. If Lost is empty, converting back gives the same
	// numbers.
	Lost []string
}

// Convert converts a state to or from the formats of torch, qhoptim and optax.
func (c *Client) Convert(ctx context.Context, request ConvertRequest) (*Converted, error) {
	fields := []field{{"state", blob{parts: [][]byte{request.File}, size: int64(len(request.File))}}}
	if request.From != nil {
		fields = append(fields, field{"from", request.From.wire()})
	}
	if request.To != nil {
		fields = append(fields, field{"to", request.To.wire()})
	}
	if request.Optimizer != "" {
		fields = append(fields, field{"optimizer", request.Optimizer})
	}
	if request.Fill != nil {
		fields = append(fields, field{"fill", request.Fill})
	}
	if request.StateDType != "" {
		fields = append(fields, field{"state_dtype", request.StateDType})
	}
	reply, err := c.callWithoutFiles(ctx, "/v1/state/convert", fields)
	if err == nil && reply.state == nil {
		err = badReply("no state")
	}
	if err != nil {
		return nil, err
	}
	return &Converted{File: reply.state, Lost: reply.lost}, nil
}
