package stepd

import (
	"context"
	"encoding/json"
	"math"
)

// NormsRequest requests the sums of squares of gradients.
type NormsRequest struct {
	Grads Tensors
	// Params are optional. Pass a parameter if it is F64 and its gradient is not, or the reverse, because then its dtype changes
	// the arithmetic.
	Params    Tensors
	LossScale float64
	// Slices are those of StepRequest.
	Slices map[string]int64
	// Keep asks the server to keep the gradients for the step that follows, if the server has a cache.
	Keep bool
}

// Norms holds sums over gradients. The gradients are divided by the loss scale first.
type Norms struct {
	Tensors map[string]TensorNorms
	// GradNorm is the Euclidean norm of all gradients, summed in byte order of the names.
	GradNorm float64
	// Warnings are sentences about this call.
	Warnings []string
	// Cached has the handle of the gradients, for StepRequest.Cached. The step that uses them frees them. It is nil if the server has
	// not kept them.
	Cached *Cached
}

// TensorNorms holds sums over one tensor, in float64.
type TensorNorms struct {
	GradSquares float64
	// ParamSquares is nil if the call had no parameters.
	ParamSquares *float64
	// Zeros and NonFinite count gradient values.
	Zeros     int64
	NonFinite int64
	// GradShardSquares and ParamShardSquares are the sums of squares of each 65,536 elements of a slice; nil for a whole tensor.
	GradShardSquares  []float64
	ParamShardSquares []float64
}

// Norms returns the sums of squares for exact clipping over several calls. Add up GradSquares over the tensors of all calls, in
// byte order of the names, and pass the square root as Clip.TotalNorm. Sharded does this itself.
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
	fields = append(fields, slicesFields(request.Slices)...)
	if request.Keep {
		fields = append(fields, field{"reply", map[string]any{"cache": true}})
	}
	var wire struct {
		Tensors map[string]struct {
			GradSquares  *wireFloat  `json:"grad_squares"`
			ParamSquares *wireFloat  `json:"param_squares"`
			Zeros        int64       `json:"zeros"`
			NonFinite    int64       `json:"non_finite"`
			GradShards   []wireFloat `json:"grad_shard_squares"`
			ParamShards  []wireFloat `json:"param_shard_squares"`
		} `json:"tensors"`
		GradNorm *wireFloat `json:"grad_norm"`
		Warnings []string   `json:"warnings"`
		Cached   struct {
			Grads struct {
				Handle string `json:"handle"`
			} `json:"grads"`
		} `json:"cached"`
	}
	if err := c.json(ctx, "/v1/norms", fields, &wire, retries); err != nil {
		return nil, err
	}
	if wire.GradNorm == nil {
		return nil, badReply("no grad_norm")
	}
	if len(wire.Cached.Grads.Handle) > maxHandleChars {
		return nil, badReply("a handle of %d characters", len(wire.Cached.Grads.Handle))
	}
	norms := &Norms{Tensors: make(map[string]TensorNorms, len(wire.Tensors)), GradNorm: float64(*wire.GradNorm), Warnings: wire.Warnings}
	if handle := wire.Cached.Grads.Handle; handle != "" {
		norms.Cached = &Cached{Grads: handle, sent: grads.size}
	}
	for _, grad := range request.Grads {
		sums := wire.Tensors[grad.Name]
		if sums.GradSquares == nil {
			return nil, badReply("no grad_squares of %q", grad.Name)
		}
		norms.Tensors[grad.Name] = TensorNorms{
			GradSquares: float64(*sums.GradSquares), ParamSquares: (*float64)(sums.ParamSquares), Zeros: sums.Zeros, NonFinite: sums.NonFinite,
			GradShardSquares: floats(sums.GradShards), ParamShardSquares: floats(sums.ParamShards),
		}
	}
	return norms, nil
}

func floats(values []wireFloat) []float64 {
	var out []float64
	for _, value := range values {
		out = append(out, float64(value))
	}
	return out
}

// wireFloat decodes a number, or a string for NaN or an infinity.
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

// onWire encodes a number. NaN and infinities become strings, because JSON has no such numbers.
func onWire(value float64) any {
	switch {
	case math.IsNaN(value):
		return "NaN"
	case math.IsInf(value, 0):
		return map[bool]string{true: "Infinity", false: "-Infinity"}[value > 0]
	}
	return value
}
