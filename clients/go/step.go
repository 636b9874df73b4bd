package stepd

import (
	"context"
	"fmt"
	"net/http"
)

// Clip is gradient clipping, after the loss scale. Zero values are absent.
type Clip struct {
	// MaxNorm multiplies all gradients by min(1, MaxNorm / (norm + 1e-6)), the norm over all gradients of the call or TotalNorm.
	MaxNorm float64
	// MaxValue keeps each value within -MaxValue and MaxValue. It excludes MaxNorm.
	MaxValue float64
	// TotalNorm is the norm over all gradients of a step of which the call has a part; see Client.Norms. Sharded sees to it.
	TotalNorm *float64
}

// NonFinite says what a NaN or an infinity in a gradient does.
type NonFinite string

// Fail refuses the call with ErrNonFiniteGradient and is the default; Skip returns everything as it was; Propagate goes on.
const (
	Fail      NonFinite = "error"
	Skip      NonFinite = "skip"
	Propagate NonFinite = "propagate"
)

// StatsLevel says which statistics a reply has.
type StatsLevel string

// NoStats is the default; GlobalStats are over all tensors; TensorStats are of each tensor as well.
const (
	NoStats     StatsLevel = "none"
	GlobalStats StatsLevel = "global"
	TensorStats StatsLevel = "tensor"
)

// StepRequest is one step. Zero values are absent and take the server's defaults.
type StepRequest struct {
	Optimizer Optimizer
	Groups    []Group
	// Params are F32, F64, BF16 or F16 of any shape. One without a gradient is left as it is.
	Params Tensors
	// Grads have the names and shapes of parameters; their dtype may be another of the four.
	Grads Tensors
	// State is that of the last result; nil at the first step.
	State *State
	// Schedule makes the learning rate a function of the steps in the state.
	Schedule Schedule
	Clip     *Clip
	// LossScale is what gradients are divided by, first of all.
	LossScale float64
	NonFinite NonFinite
	Stats     StatsLevel
	// MasterWeights keeps a float32 copy of each BF16 or F16 parameter in the state and steps that.
	MasterWeights bool
	// RoundingSeed rounds BF16 parameters at random; the same seed gives the same bits. Nil rounds to nearest even.
	RoundingSeed *uint64
	// Into takes the new parameters, by name, once the whole reply is there; after an error it is as it was. It must have the
	// dtypes and shapes of Params, and may be Params. Nil makes new tensors.
	Into Tensors
}

// Stats are Euclidean norms of the gradients (after the loss scale, before clipping), of the parameters before the step and of
// their change, and counts of gradient values.
type Stats struct {
	GradNorm   float64
	ParamNorm  float64
	UpdateNorm float64
	// Zeros and NonFinite count gradient values.
	Zeros     int64
	NonFinite int64
	// Clipped tells whether clipping by norm made the gradients smaller.
	Clipped bool
	// Tensors are by parameter, with TensorStats.
	Tensors map[string]TensorStat
}

// TensorStat is what Stats has of one parameter.
type TensorStat struct {
	GradNorm   float64
	ParamNorm  float64
	UpdateNorm float64
	Zeros      int64
	NonFinite  int64
	// TrustRatio is nil where the optimizer has none.
	TrustRatio *float64
}

// StepResult is what a step gives.
type StepResult struct {
	// Params are the new parameters in the order of the request, in its Into where that was given.
	Params Tensors
	State  *State
	// Step is the largest count of steps in the state.
	Step int64
	// LR is the learning rate that was used.
	LR float64
	// Skipped tells that nothing was done, because of Skip.
	Skipped bool
	// Stats is nil with NoStats.
	Stats *Stats
	// Warnings are sentences on this step.
	Warnings []string
}

// Step makes one update. On an error nothing was changed. Errors are *Error, *TransportError, the context's, ErrBadTensor for
// tensors that contradict themselves, and ErrBadReply.
func (c *Client) Step(ctx context.Context, request StepRequest) (*StepResult, error) {
	if err := checkInto(request); err != nil {
		return nil, err
	}
	result, scratch, err := c.step(ctx, request, c.retries)
	if err != nil {
		return nil, err
	}
	writeInto(request, result)
	scratch.release()
	return result, nil
}

// step makes the call. With Into the result's parameters are in the scratch buffer, for writeInto.
func (c *Client) step(ctx context.Context, request StepRequest, retries int) (*StepResult, *scratch, error) {
	fields, err := request.fields()
	if err != nil {
		return nil, nil, err
	}
	body, err := encode(fields)
	if err != nil {
		return nil, nil, err
	}
	var buffer *scratch
	if request.Into != nil {
		buffer = newScratch()
	}
	var result *StepResult
	err = c.do(ctx, call{path: "/v1/step", body: &body, accept: msgpackType, read: func(response *http.Response) error {
		reply, err := decodeStep(response.Body, response.ContentLength, body.size, buffer)
		if err != nil {
			return err
		}
		result, err = reply.result(request.Params)
		return err
	}}, retries)
	if err != nil {
		buffer.release()
		return nil, nil, err
	}
	return result, buffer, nil
}

func (r StepRequest) fields() ([]field, error) {
	params, err := fileParts(nil, r.Params)
	if err != nil {
		return nil, err
	}
	grads, err := fileParts(nil, r.Grads)
	if err != nil {
		return nil, err
	}
	fields := optimizerFields(r.Optimizer, r.Groups, r.MasterWeights)
	fields = append(fields, field{"params", params}, field{"grads", grads})
	if r.State != nil {
		state, err := r.State.file()
		if err != nil {
			return nil, err
		}
		fields = append(fields, field{"state", state})
	}
	if r.Schedule != nil {
		fields = append(fields, field{"schedule", map[string]any(r.Schedule)})
	}
	if r.Clip != nil {
		fields = append(fields, field{"clip", r.Clip.wire()})
	}
	if r.LossScale != 0 {
		fields = append(fields, field{"loss_scale", r.LossScale})
	}
	if r.NonFinite != "" {
		fields = append(fields, field{"non_finite", string(r.NonFinite)})
	}
	if r.Stats != "" {
		fields = append(fields, field{"stats", string(r.Stats)})
	}
	if r.RoundingSeed != nil {
		fields = append(fields, field{"stochastic_rounding", map[string]any{"seed": *r.RoundingSeed}})
	}
	return fields, nil
}

func optimizerFields(optimizer Optimizer, groups []Group, masterWeights bool) []field {
	fields := []field{{"optimizer", map[string]any(optimizer)}}
	if len(groups) > 0 {
		fields = append(fields, field{"groups", groupsOf(groups)})
	}
	if masterWeights {
		fields = append(fields, field{"master_weights", true})
	}
	return fields
}

func (c *Clip) wire() map[string]any {
	wire := map[string]any{}
	if c.MaxNorm != 0 {
		wire["max_norm"] = c.MaxNorm
	}
	if c.MaxValue != 0 {
		wire["max_value"] = c.MaxValue
	}
	if c.TotalNorm != nil {
		wire["total_norm"] = *c.TotalNorm
	}
	return wire
}

// checkInto finds out before the call whether the result will fit.
func checkInto(request StepRequest) error {
	if request.Into == nil {
		return nil
	}
	into := byName(request.Into)
	for _, param := range request.Params {
		target, ok := into[param.Name]
		if !ok || !target.like(param) || len(target.Data) != len(param.Data) {
			return fmt.Errorf("%w: Into has no %q of %s %v", ErrBadTensor, param.Name, param.DType, param.Shape)
		}
	}
	return nil
}

// writeInto moves the new parameters to where the caller wants them.
func writeInto(request StepRequest, result *StepResult) {
	if request.Into == nil {
		return
	}
	into := byName(request.Into)
	for i, param := range result.Params {
		target := into[param.Name]
		copy(target.Data, param.Data)
		result.Params[i] = target
	}
}

func byName(tensors Tensors) map[string]Tensor {
	named := make(map[string]Tensor, len(tensors))
	for _, t := range tensors {
		named[t.Name] = t
	}
	return named
}

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
	params, err := fileParts(nil, request.Params)
	if err != nil {
		return nil, err
	}
	body, err := encode(append(optimizerFields(request.Optimizer, request.Groups, request.MasterWeights), field{"params", params}))
	if err != nil {
		return nil, err
	}
	var state *State
	err = c.do(ctx, call{path: "/v1/init", body: &body, accept: msgpackType, read: func(response *http.Response) error {
		reply, err := decodeStep(response.Body, response.ContentLength, body.size, nil)
		if err != nil {
			return err
		}
		state, err = reply.readState()
		return err
	}}, c.retries)
	return state, err
}
