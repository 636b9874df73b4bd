package stepd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"

	"github.com/tinylib/msgp/msgp"
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
	}
	if err := c.json(ctx, "/v1/norms", fields, &wire, retries); err != nil {
		return nil, err
	}
	if wire.GradNorm == nil {
		return nil, badReply("no grad_norm")
	}
	norms := &Norms{Tensors: make(map[string]TensorNorms, len(wire.Tensors)), GradNorm: float64(*wire.GradNorm)}
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

// PlanRequest asks what a step would cost.
type PlanRequest struct {
	Optimizer Optimizer
	Groups    []Group
	// Params matter by name, shape and dtype; Data may be nil.
	Params        Tensors
	GradDType     DType
	MasterWeights bool
}

// Plan is the cost of a step as one call with a state.
type Plan struct {
	// Parameters counts elements.
	Parameters int64 `json:"parameters"`
	BytesIn    int64 `json:"bytes_in"`
	BytesOut   int64 `json:"bytes_out"`
	StateBytes int64 `json:"state_bytes"`
	// ArenaBytes is the memory that the call holds on the server, an upper bound.
	ArenaBytes int64 `json:"arena_bytes"`
	// Fits tells whether the server takes it as one call.
	Fits bool `json:"fits"`
	// Requests is how many calls to split it into, so that several fit beside each other; 0 where a tensor alone is too large.
	Requests int `json:"requests"`
	// TooLarge are the tensors that alone do not fit.
	TooLarge []string `json:"too_large"`
}

// Plan returns what a step would cost, from shapes and dtypes alone.
func (c *Client) Plan(ctx context.Context, request PlanRequest) (*Plan, error) {
	if err := checkOptimizer(request.Optimizer); err != nil {
		return nil, err
	}
	names := map[string]bool{}
	// In their order, which a Go map would not keep: the length of a header depends on it.
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

// StateInfo is what the server reads in a state.
type StateInfo struct {
	Format    string `json:"format"`
	Optimizer string `json:"optimizer"`
	Revision  int    `json:"revision"`
	Bytes     int64  `json:"bytes"`
	// Elements counts those of all slots.
	Elements int64 `json:"elements"`
	// Tensors are by parameter.
	Tensors map[string]struct {
		Step  int64 `json:"step"`
		Slots map[string]struct {
			DType DType `json:"dtype"`
			Shape []int `json:"shape"`
		} `json:"slots"`
	} `json:"tensors"`
}

// Inspect returns what a state holds, by the server's reading.
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

// ScheduleRequest asks for a range of steps of a schedule.
type ScheduleRequest struct {
	Schedule Schedule
	// LR is the base learning rate, which is the optimizer's in a step; nil is the server's default.
	LR *float64
	// From is the steps taken before the first of the range.
	From int64
	// Count is the steps in the range; 0 is one.
	Count int
}

// Rates are what a schedule gives for each step of a range.
type Rates struct {
	LRs []float64 `json:"lrs"`
	// Momentums are nil where the schedule does not cycle them, as a whole or in a part.
	Momentums []*float64 `json:"momentums"`
}

// EvaluateSchedule returns the learning rates of a range of steps, as Step would use them.
func (c *Client) EvaluateSchedule(ctx context.Context, request ScheduleRequest) (*Rates, error) {
	if request.Schedule == nil {
		return nil, errors.New("stepd: schedule: expected a schedule, found none")
	}
	fields := []field{{"schedule", map[string]any(request.Schedule)}}
	if request.LR != nil {
		fields = append(fields, field{"lr", *request.LR})
	}
	if request.From != 0 {
		fields = append(fields, field{"from", request.From})
	}
	if request.Count != 0 {
		fields = append(fields, field{"count", request.Count})
	}
	rates := &Rates{}
	if err := c.json(ctx, "/v1/schedule", fields, rates, c.retries); err != nil {
		return nil, err
	}
	if count := max(1, request.Count); len(rates.LRs) != count || (rates.Momentums != nil && len(rates.Momentums) != count) {
		return nil, badReply("%d lrs and %d momentums of %d steps", len(rates.LRs), len(rates.Momentums), count)
	}
	return rates, nil
}

// OptimizerInfo names an optimizer.
type OptimizerInfo struct {
	Name    string `json:"name"`
	Title   string `json:"title"`
	Formula string `json:"formula"`
}

// Optimizers lists the optimizers of the server.
func (c *Client) Optimizers(ctx context.Context) ([]OptimizerInfo, error) {
	var list struct {
		Optimizers []OptimizerInfo `json:"optimizers"`
	}
	if err := c.json(ctx, "/v1/optimizers", nil, &list, c.retries); err != nil {
		return nil, err
	}
	if len(list.Optimizers) == 0 {
		return nil, badReply("no optimizers")
	}
	return list.Optimizers, nil
}

// Description is everything about one optimizer.
type Description struct {
	OptimizerInfo
	// Revision is raised when any bit of the results changes.
	Revision int `json:"revision"`
	// Family is that of the optimizers that take each other's state.
	Family     string   `json:"family"`
	References []string `json:"references"`
	// Hyperparameters is the JSON Schema of the Optimizer.
	Hyperparameters json.RawMessage `json:"hyperparameters"`
	Slots           struct {
		// Default are the slots with the default hyperparameters.
		Default []string `json:"default"`
		All     []string `json:"all"`
	} `json:"slots"`
	// BytesPerParameter are moved by a step in F32 with the default hyperparameters.
	BytesPerParameter struct {
		In    int `json:"in"`
		Out   int `json:"out"`
		State int `json:"state"`
	} `json:"bytes_per_parameter"`
}

// Describe returns everything about one optimizer.
func (c *Client) Describe(ctx context.Context, name string) (*Description, error) {
	if name == "" {
		return nil, errors.New("stepd: Describe: expected a name, found none")
	}
	description := &Description{}
	if err := c.json(ctx, "/v1/optimizers/"+url.PathEscape(name), nil, description, c.retries); err != nil {
		return nil, err
	}
	if description.Name != name {
		return nil, badReply("a description of %.60q, expected one of %q", description.Name, name)
	}
	return description, nil
}

// Info is what the server says of itself.
type Info struct {
	Name    string   `json:"name"`
	Version string   `json:"version"`
	Node    string   `json:"node"`
	Kernels []string `json:"kernels"`
	Workers int      `json:"workers"`
	// Limits are in bytes.
	Limits map[string]int64 `json:"limits"`
}

// Info returns the server's version, kernels and limits.
func (c *Client) Info(ctx context.Context) (*Info, error) {
	info := &Info{}
	if err := c.json(ctx, "/v1", nil, info, c.retries); err != nil {
		return nil, err
	}
	if info.Name != "stepd" {
		return nil, badReply("a server by the name of %.60q", info.Name)
	}
	return info, nil
}

// Ready tells whether the server takes calls. It asks once; the error is why the server was not reached.
func (c *Client) Ready(ctx context.Context) (bool, error) {
	err := c.do(ctx, call{path: "/health/ready", accept: jsonType, read: func(response *http.Response) error {
		_, err := io.Copy(io.Discard, io.LimitReader(response.Body, maxProblemBytes))
		return err
	}}, 0)
	if refusal, ok := err.(*Error); ok && refusal.Status == http.StatusServiceUnavailable {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("stepd: not ready: %w", err)
	}
	return true, nil
}
