package stepd

import (
	"context"
)

// Convention is how a safetensors file holds the state of an optimizer. Zero values are absent.
type Convention struct {
	// Format is "stepd", "torch", "qhoptim" or "optax".
	Format string
	// Optimizer is that of a given file in another format than stepd's.
	Optimizer string
	// Names are the parameters in the order of their indexes in a file of torch or qhoptim; nil where the file has names.
	Names []string
	// Betas are those of the whole run, for qhoptim.
	Betas []float64
	// Step is the steps taken, for parameters of which the given file does not tell.
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

// ConvertRequest brings a state from one convention to another, under another optimizer of its family, or with more slots.
type ConvertRequest struct {
	// File is a safetensors file; State.Bytes makes one of a state.
	File []byte
	// From and To are stepd's own convention where nil.
	From, To *Convention
	// Optimizer is that which the result is to be of; that of the file where empty.
	Optimizer string
	// Fill are slots to add where they are missing.
	Fill []string
}

// Converted is a converted state.
type Converted struct {
	// File is a safetensors file, for ReadState where it is in stepd's convention.
	File []byte
	// Lost are sentences of what the result does not hold; none where the way back gives the same numbers.
	Lost []string
}

// Convert brings a state to or from the formats of torch, qhoptim and optax.
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
	reply, err := c.once(ctx, "/v1/state/convert", fields)
	if err == nil && reply.state == nil {
		err = badReply("no state")
	}
	if err != nil {
		return nil, err
	}
	return &Converted{File: reply.state, Lost: reply.lost}, nil
}
