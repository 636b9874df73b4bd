package stepd

import (
	"context"
	"errors"
	"fmt"
)

// Clip is gradient clipping, after the loss scale. Zero values are absent.
type Clip struct {
	// MaxNorm multiplies all gradients by min(1, MaxNorm / (norm + 1e-6)), the norm over all gradients of the call or TotalNorm.
	MaxNorm float64
	// MaxValue keeps each value within -MaxValue and MaxValue. It excludes MaxNorm.
	MaxValue float64
	// TotalNorm is the norm over all gradients of a step of which the call has a part; see Client.Norms. It may be infinite or NaN.
	// Sharded sees to it.
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
	// Params are F32, F64, BF16 or F16 of any shape. One without a gradient is left as it is. Nil where Cached names them.
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
	// OthersNonFinite says that a gradient of the step that another call has holds NaN or infinity: NonFinite then refuses or skips
	// this call as well. Sharded sees to it.
	OthersNonFinite bool
	Stats           StatsLevel
	// MasterWeights keeps a float32 copy of each BF16 or F16 parameter in the state and steps that.
	MasterWeights bool
	// RoundingSeed rounds BF16 parameters at random; the same seed gives the same bits. Nil rounds to nearest even.
	RoundingSeed *uint64
	// Into takes the new parameters, by name, once the whole reply is there; after an error it is as it was. It must have the
	// dtypes (BF16 with ReplyBF16) and shapes of Params, and may be Params. Nil makes new tensors.
	Into Tensors
	// Reply says what comes back.
	Reply Reply
	// Cached is that of the last result: what it names is not sent. It says that Params and State, where they are given too, are
	// those of that result; they are sent once the server has lost its own. Where they are not given that is ErrBlobMissing.
	Cached *Cached
}

// ReplyForm says in which form something comes back.
type ReplyForm string

// ReplySame is the default; ReplyBF16 rounds parameters to BF16, to nearest even (not those in F64); ReplyNone leaves it out.
const (
	ReplySame ReplyForm = "same"
	ReplyBF16 ReplyForm = "bf16"
	ReplyNone ReplyForm = "none"
)

// Reply says what comes back of a step. Zero values are absent.
type Reply struct {
	// Params are ReplySame, ReplyBF16 or ReplyNone.
	Params ReplyForm
	// State is ReplySame or ReplyNone. The new state is then on the server only, which takes Cache.
	State ReplyForm
	// Cache asks the server to keep the new parameters, not rounded, and the new state, if it has a cache (STEPD_CACHE_MIB).
	Cache bool
}

// Cached names what the server keeps of a result, by SHA-256 in hexadecimal; empty where it does not keep it. It may forget at
// any time. That of a result of Sharded has no names to be read, and is for Sharded only.
type Cached struct {
	Params, State string
	// otherParams and otherState tell that the result had these in another form or not at all. Then what a caller gives as
	// values cannot stand for them.
	otherParams, otherState bool
	// sent is what the calls that led here had, in bytes: it bounds the reply of the next.
	sent int64
	// shards are what replicas keep of a result of Sharded. Then Params and State are empty.
	shards []cachedShard
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
	// Params are the new parameters in the order of the request, in its Into where that was given. Nil with ReplyNone.
	Params Tensors
	// State is the new state. With ReplyNone it has an error (State.Err) and no values, and is of use beside Cached only.
	State *State
	// Cached is for the next request; nil where the server keeps nothing.
	Cached *Cached
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

// Step makes one update. On an error nothing was changed. Errors are *Error (ErrBlobMissing for what Cached names and the server
// has lost), *TransportError, the context's, ErrBadTensor for tensors that contradict themselves, ErrStateKept, ErrBadReply, and
// those of files with WithSharedDir.
func (c *Client) Step(ctx context.Context, request StepRequest) (*StepResult, error) {
	if err := checkInto(request); err != nil {
		return nil, err
	}
	result, scratch, err := c.step(ctx, request, c.retries, true)
	if err != nil {
		return nil, err
	}
	writeInto(request, result)
	scratch.release()
	return result, nil
}

// step makes the call, and again where the server lacks what it was to have or cannot put the new state where it was to. With
// Into the result's parameters are in the scratch buffer, for writeInto, or there already where that is allowed (`direct`).
func (c *Client) step(ctx context.Context, request StepRequest, retries int, direct bool) (*StepResult, *scratch, error) {
	sendState := false
	for {
		result, buffer, err := c.stepOnce(ctx, request, retries, sendState, direct)
		refusal := (*Error)(nil)
		if !errors.As(err, &refusal) {
			return result, buffer, err
		}
		switch rest, ok := request.Cached.without(request, refusal); {
		case ok:
			request.Cached = rest
		case refusal.Name == ErrInvalidParams && refusal.Field == "/reply/into/state/length" && !sendState:
			sendState = true
		default:
			return nil, nil, err
		}
	}
}

// without returns what is still to be named after a refusal, where the caller has given what the server lacks.
func (c *Cached) without(request StepRequest, refusal *Error) (*Cached, bool) {
	if c == nil || refusal.Name != ErrBlobMissing {
		return nil, false
	}
	rest := *c
	if request.Params != nil && !c.otherParams {
		rest.Params = ""
	}
	if request.State != nil && request.State.Err() == nil && !c.otherState {
		rest.State = ""
	}
	given := map[string]bool{"/params": rest.Params != c.Params, "/state": rest.State != c.State}
	return &rest, given[refusal.Field]
}

func (c *Client) stepOnce(ctx context.Context, request StepRequest, retries int, sendState, direct bool) (*StepResult, *scratch, error) {
	fields, err := request.fields()
	if err != nil {
		return nil, nil, err
	}
	want := results{reply: request.Reply.wire(), sendState: sendState}
	if c.shared != nil {
		if want.params, want.state, err = request.rooms(); err != nil {
			return nil, nil, err
		}
		if sendState {
			want.state = 0
		}
	}
	p, err := c.pack(ctx, fields, want)
	if err != nil {
		return nil, nil, err
	}
	defer p.release()
	if request.Cached != nil {
		p.sent = max(p.sent, request.Cached.sent)
	}
	var buffer *scratch
	if request.Into != nil {
		buffer = newScratch()
	}
	reply, err := c.exchange(ctx, "/v1/step", p, buffer, retries)
	var result *StepResult
	if err == nil {
		result, err = p.result(ctx, request, reply, buffer, direct)
	}
	if err != nil {
		buffer.release()
		return nil, nil, err
	}
	return result, buffer, nil
}

// result checks a reply and reads its blobs.
func (p *parcel) result(ctx context.Context, request StepRequest, reply stepReply, buffer *scratch, direct bool) (*StepResult, error) {
	result, err := reply.result(request.Reply)
	if err != nil {
		return nil, err
	}
	switch {
	case request.Reply.State == ReplyNone:
		result.State = &State{kept: true}
	case reply.stateAt != nil:
		result.State, err = p.takeState(reply.stateAt.length)
	default:
		result.State, err = reply.readState()
	}
	if result.Cached != nil {
		result.Cached.sent = p.sent
	}
	if err != nil || request.Reply.Params == ReplyNone {
		return result, err
	}
	expected := request.expected()
	if at := reply.paramsAt; at != nil {
		if direct && request.Into != nil && !p.mayChange() {
			result.Params = request.targets(expected)
			file, err := fileParts(nil, result.Params)
			if err != nil {
				return nil, err
			}
			if p.paramsAre(at.length, file) {
				// Nothing can go wrong any more, and Into is not left between old and new.
				return result, transfer(context.WithoutCancel(ctx), file.parts[1:], int64(len(file.parts[0])), readWorkers, p.params.file.ReadAt)
			}
		}
		if reply.params, err = p.readParams(ctx, at.length, buffer); err != nil {
			return nil, err
		}
	}
	result.Params, err = reply.readParams(expected)
	return result, err
}

// expected are names, dtypes and shapes of the new parameters, without data; nil where they are not known.
func (r StepRequest) expected() Tensors {
	sent := r.Params
	if r.Cached != nil && r.Cached.Params != "" {
		if sent == nil || r.Cached.otherParams {
			return r.Into
		}
	}
	expected := make(Tensors, len(sent))
	for i, param := range sent {
		expected[i] = Tensor{Name: param.Name, DType: param.DType, Shape: param.Shape}
		if r.Reply.Params == ReplyBF16 {
			expected[i].DType = BF16
		}
	}
	return expected
}

// targets are the tensors of Into of which the new values are expected, in that order.
func (r StepRequest) targets(expected Tensors) Tensors {
	into := byName(r.Into)
	targets := make(Tensors, len(expected))
	for i, param := range expected {
		targets[i] = into[param.Name]
	}
	return targets
}

// rooms are the bytes that the new parameters and the new state may take; 0 where they do not come back or nobody knows.
func (r StepRequest) rooms() (params, state int64, err error) {
	room := func(tensors Tensors) (int64, error) {
		file, err := fileParts(nil, tensors)
		return file.size + blockBytes, err
	}
	if r.Reply.Params != ReplyNone {
		switch {
		case r.Into != nil:
			params, err = room(r.targets(r.expected()))
		case r.expected() != nil:
			// In BF16 they take no more, but for a letter in the header.
			params, err = room(r.Params)
		}
	}
	if r.Reply.State != ReplyNone && r.State != nil && err == nil {
		state, err = r.State.room()
	}
	return params, state, err
}

func (r Reply) wire() map[string]any {
	wire := map[string]any{}
	if r.Params != "" {
		wire["params"] = string(r.Params)
	}
	if r.State != "" {
		wire["state"] = string(r.State)
	}
	if r.Cache {
		wire["cache"] = true
	}
	return wire
}
func (r StepRequest) fields() ([]field, error) {
	if err := checkOptimizer(r.Optimizer); err != nil {
		return nil, err
	}
	if err := r.State.check(); err != nil {
		return nil, err
	}
	grads, err := fileParts(nil, r.Grads)
	if err != nil {
		return nil, err
	}
	named := Cached{}
	if r.Cached != nil {
		if r.Cached.shards != nil {
			return nil, errors.New("stepd: Cached: expected that of a Client's result, found one of Sharded, which names parts of the tensors")
		}
		named = *r.Cached
	}
	fields := optimizerFields(r.Optimizer, r.Groups, r.MasterWeights)
	if named.Params != "" {
		fields = append(fields, field{"params", digest(named.Params)})
	} else {
		if r.Params == nil && r.Cached != nil {
			return nil, fmt.Errorf("%w: Params are nil, and Cached does not name them", ErrBadTensor)
		}
		params, err := fileParts(nil, r.Params)
		if err != nil {
			return nil, err
		}
		fields = append(fields, field{"params", params})
	}
	fields = append(fields, field{"grads", grads})
	switch {
	case named.State != "":
		fields = append(fields, field{"state", digest(named.State)})
	case r.State != nil:
		fields = append(fields, field{"state", r.State})
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
	if r.OthersNonFinite {
		fields = append(fields, field{"others_non_finite", true})
	}
	if r.Stats != "" {
		fields = append(fields, field{"stats", string(r.Stats)})
	}
	if r.RoundingSeed != nil {
		fields = append(fields, field{"stochastic_rounding", map[string]any{"seed": *r.RoundingSeed}})
	}
	return fields, nil
}

// checkOptimizer tells that an optimizer was forgotten, which as an empty one would be a name of nothing.
func checkOptimizer(optimizer Optimizer) error {
	if optimizer == nil {
		return errors.New("stepd: optimizer: expected an optimizer, found none")
	}
	return nil
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
		wire["total_norm"] = onWire(*c.TotalNorm)
	}
	return wire
}

// checkInto finds out before the call whether the result will fit.
func checkInto(request StepRequest) error {
	if request.Into == nil || request.Reply.Params == ReplyNone {
		return nil
	}
	into := byName(request.Into)
	for _, param := range request.expected() {
		target, ok := into[param.Name]
		if !ok || !target.like(param) || target.check() != nil {
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
