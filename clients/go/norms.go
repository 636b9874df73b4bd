package stepd

import (
	"context"
	"encoding/json"
	"math"
)

// NormsRequest asks for sums of squares.
type NormsRequest struct {
	Grads Tensors
	// Params are optional. Where one is F64 and its gradient is not, or the other way round, they decide the arithmetic, as in
	// a step.
	Params    Tensors
	LossScale float64
}

// Norms are sums over the gradients, after the loss scale.
type Norms struct {
	Tensors map[string]TensorNorms
	// GradNorm is the root of the squares of all gradients, added in the order of the names' bytes.
	GradNorm float64
	// Warnings are sentences on this call.
	Warnings []string
}

// TensorNorms are sums over one tensor, in float64.
type TensorNorms struct {
	GradSquares float64
	// ParamSquares is nil where the call had no parameters.
	ParamSquares *float64
	// Zeros and NonFinite count gradient values.
	Zeros     int64
	NonFinite int64
}

// Norms returns the sums of squares that exact clipping over several calls needs first: those of all tensors of all calls,
// added in the order of the names' bytes, have the root that is Clip.TotalNorm. Sharded does this by itself.
func (c *Client) Norms(ctx context.Context, request NormsRequest) (*Norms, error) {
	return c.norms(ctx, request, c.retries)
}

func (c *Client) norms(ctx context.Context, request NormsRequest, retries int) (*Norms, error) {
	grads, err := fileParts(nil, request.Grads)
	if err != nil {
		return nil, err
	}
	fields := []field{{"grads", grads}}
	if request.Params != nil {
		params, err := fileParts(nil, request.Params)
		if err != nil {
			return nil, err
		}
		fields = append(fields, field{"params", params})
	}
	if request.LossScale != 0 {
		fields = append(fields, field{"loss_scale", request.LossScale})
	}
	var wire struct {
		Tensors map[string]struct {
			GradSquares  *wireFloat `json:"grad_squares"`
			ParamSquares *wireFloat `json:"param_squares"`
			Zeros        int64      `json:"zeros"`
			NonFinite    int64      `json:"non_finite"`
		} `json:"tensors"`
		GradNorm *wireFloat `json:"grad_norm"`
		Warnings []string   `json:"warnings"`
	}
	if err := c.json(ctx, "/v1/norms", fields, &wire, retries); err != nil {
		return nil, err
	}
	if wire.GradNorm == nil {
		return nil, badReply("no grad_norm")
	}
	norms := &Norms{Tensors: make(map[string]TensorNorms, len(wire.Tensors)), GradNorm: float64(*wire.GradNorm), Warnings: wire.Warnings}
	for _, grad := range request.Grads {
		sums := wire.Tensors[grad.Name]
		if sums.GradSquares == nil {
			return nil, badReply("no grad_squares of %q", grad.Name)
		}
		norms.Tensors[grad.Name] = TensorNorms{float64(*sums.GradSquares), (*float64)(sums.ParamSquares), sums.Zeros, sums.NonFinite}
	}
	return norms, nil
}

// wireFloat reads the strings that stand for what JSON has no numbers for.
type wireFloat float64

func (f *wireFloat) UnmarshalJSON(text []byte) error {
	switch string(text) {
	case `"NaN"`:
		*f = wireFloat(math.NaN())
	case `"Infinity"`:
		*f = wireFloat(math.Inf(1))
	case `"-Infinity"`:
		*f = wireFloat(math.Inf(-1))
	default:
		return json.Unmarshal(text, (*float64)(f))
	}
	return nil
}

// onWire is a number as the wire has it: texts stand for what JSON has no numbers for.
func onWire(value float64) any {
	switch {
	case math.IsNaN(value):
		return "NaN"
	case math.IsInf(value, 0):
		return map[bool]string{true: "Infinity", false: "-Infinity"}[value > 0]
	}
	return value
}
