package stepd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
)

// Clip is gradient clipping, after the loss scale. A zero value means that the field is absent.
type Clip struct {
	// MaxNorm multiplies all gradients by min(1, MaxNorm / (norm + 1e-6)). The norm is TotalNorm, or that over all gradients of
	// the call.
	MaxNorm float64
	// MaxValue keeps each value between -MaxValue and MaxValue. It cannot be combined with MaxNorm.
	MaxValue float64
	// TotalNorm is the norm over all gradients of a step, if other calls hold some of them; see Client.Norms. It may be infinite
	// or NaN. Sharded sets it.
	TotalNorm *float64
}

// NonFinite selects how the server treats a NaN or an infinity in a gradient.
type NonFinite string

// Fail, the default, refuses the call with ErrNonFiniteGradient. Skip returns everything unchanged. Propagate computes the step
// anyway.
const (
	Fail      NonFinite = "error"
	Skip      NonFinite = "skip"
	Propagate NonFinite = "propagate"
)

// StatsLevel selects the statistics in a reply.
type StatsLevel string

// NoStats is the default. GlobalStats covers all tensors together. TensorStats adds the statistics of each tensor.
const (
	NoStats     StatsLevel = "none"
	GlobalStats StatsLevel = "global"
	TensorStats StatsLevel = "tensor"
)

// StepRequest is one step. A zero value means that the server uses its default.
type StepRequest struct {
	Optimizer Optimizer
	Groups    []Group
	// Params are F32, F64, BF16 or F16 of any shape. A parameter without a gradient does not change. Nil if Cached names them.
	Params Tensors
	// Grads have the names and shapes of parameters. A gradient's dtype may differ from its parameter's.
	Grads Tensors
	// Reduce makes the gradients of updates, in place of Grads. Its Params and Unfinished stay unset: the updates started from the
	// Params of the step. The step has the bits of a step with the Grads of Reduce.
	Reduce *ReduceRequest
	// State is the State of the last result; nil at the first step.
	State *State
	// Slices names tensors of this call that are flat slices of larger tensors. Each value is the index of the slice's first element
	// in the whole tensor, a multiple of 65,536. Sharded slices large tensors itself.
	Slices map[string]int64
	// Schedule makes the learning rate a function of the step counts in the state.
	Schedule Schedule
	Clip     *Clip
	// LossScale divides the gradients, before everything else.
	LossScale float64
	NonFinite NonFinite
	// OthersNonFinite means that another call of this step has NaN or infinity in its gradients. NonFinite then refuses or skips
	// this call as well. Sharded sets it.
	OthersNonFinite bool
	Stats           StatsLevel
	// MasterWeights keeps a float32 copy of each BF16 or F16 parameter in the state. The step updates that copy.
	MasterWeights bool
	// RoundingSeed rounds BF16 parameters stochastically. The same seed gives the same bits. Nil rounds to nearest even.
	RoundingSeed *uint64
	// Into receives the new parameters, by name, once the reply is complete. After an error Into is unchanged. It must have the
	// shapes and dtypes of Params (BF16 with ReplyBF16), and may be Params itself. Nil allocates new tensors.
	Into Tensors
	// Reply selects the contents of the reply.
	Reply Reply
	// Cached refers to blobs that an earlier step left in the server's cache: that step's StepResult.Cached. The client does
	// not send these blobs. If Params and State are set, too, they must equal those of that StepResult: the client sends them if
	// the server has dropped its copy. Without them, Step returns
	// ErrBlobMissing.
	Cached *Cached
	// Receipt asks for the receipt of the step: its options, and the SHA-256 of each blob in and out.
	Receipt bool
	// part is the call's part of a sharded step.
	part receiptPart
}

// ReplyForm is the form in which a reply carries a result.
type ReplyForm string

// ReplySame is the default. ReplyBF16 rounds all parameters but F64 to BF16 (to nearest even). ReplyNone omits the result.
const (
	ReplySame ReplyForm = "same"
	ReplyBF16 ReplyForm = "bf16"
	ReplyNone ReplyForm = "none"
)

// Reply selects the contents of the reply to a step. A zero value means the default.
type Reply struct {
	// Params are ReplySame, ReplyBF16 or ReplyNone.
	Params ReplyForm
	// State is ReplySame or ReplyNone. ReplyNone leaves the new state on the server only, and requires Cache.
	State ReplyForm
	// Cache asks the server to cache the new parameters, unrounded, and the new state, if the server has a cache
	// (STEPD_CACHE_MIB).
	Cache bool
}

// Cached names the blobs of a result in the server's cache, by handles that are valid for that server and caller only. A handle
// is empty if the blob is not cached. The server may drop a blob at any time. It keeps the last two results of
// a run: a result goes when a cached step uses the result after it, or repeats the step that gave it. The Cached of a Sharded
// result has no readable names, and works with Sharded only.
type Cached struct {
	Params, State string
	// Grads is the handle of gradients that Client.Norms has kept. The step sends StepRequest.Grads if the server has dropped them.
	Grads string
	// otherParams and otherState are true if the result held the blob in another form, or not at all. The caller's values then
	// cannot replace the cached blob.
	otherParams, otherState bool
	// sent is the total size of the requests that led to this result. It limits the size of the next reply.
	sent int64
	// shards are the cached blobs of a Sharded result, which has empty Params and State.
	shards []cachedShard
}

// Stats holds Euclidean norms of the gradients (after the loss scale, before clipping), of the parameters before the step and
// of their change, and counts of gradient values.
type Stats struct {
	GradNorm   float64
	ParamNorm  float64
	UpdateNorm float64
	// Zeros and NonFinite count gradient values.
	Zeros     int64
	NonFinite int64
	// Clipped is true if clipping by norm scaled the gradients.
	Clipped bool
	// Tensors maps each parameter's name to its statistics. Only TensorStats sets it.
	Tensors map[string]TensorStat
}

// TensorStat holds the statistics of one parameter.
type TensorStat struct {
	GradNorm   float64
	ParamNorm  float64
	UpdateNorm float64
	Zeros      int64
	NonFinite  int64
	// TrustRatio is nil if the optimizer has no trust ratio.
	TrustRatio *float64
}

// StepResult is the result of a step.
type StepResult struct {
	// Params are the new parameters in the order of the request. They are the request's Into if that was set, and nil with
	// ReplyNone.
	Params Tensors
	// State is the new state. With ReplyNone, State.Err returns an error and the state has no values; use Cached instead.
	State *State
	// Cached goes into the next request. It is nil if the server has cached nothing.
	Cached *Cached
	// Step is the largest step count in the state.
	Step int64
	// LR is the learning rate of this step.
	LR float64
	// Skipped is true if the step did nothing, because of Skip.
	Skipped bool
	// Stats is nil with NoStats.
	Stats *Stats
	// Warnings are sentences about this step.
	Warnings []string
	// Reduced says what StepRequest.Reduce combined, without Grads. It is nil without Reduce.
	Reduced *Reduced
	// Receipts are the receipts of the step's calls, in JSON, for a Ledger. It is nil without StepRequest.Receipt.
	Receipts []json.RawMessage
}

// Step runs one optimizer step. After an error nothing has changed. Errors are *Error (ErrBlobMissing if the server has dropped
// a blob that Cached names), *TransportError, the context's error, ErrBadTensor for inconsistent tensors, ErrStateKept,
// ErrBadReply, and file errors with WithSharedDir.
func (c *Client) Step(ctx context.Context, request StepRequest) (*StepResult, error) {
	if c != nil && c.splits(request) {
		return c.stepInParts(ctx, request)
	}
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

// step makes the call. It repeats the call if the server lacks a cached blob or has no room for the new state. With Into, the
// new parameters are in the scratch buffer, for writeInto, or already in the caller's tensors if `direct` is true.
func (c *Client) step(ctx context.Context, request StepRequest, retries int, direct bool) (*StepResult, *scratch, error) {
	sendState := false
	for {
		result, buffer, err := c.stepOnce(ctx, request, retries, sendState, direct)
		refusal := (*Error)(nil)
		if !errors.As(err, &refusal) {
			return result, buffer, err
		}
		switch rest, ok := request.Cached.withoutMissing(request, refusal); {
		case ok:
			request.Cached = rest
		case refusal.Name == ErrInvalidParams && refusal.Field == "/reply/into/state/length" && !sendState:
			sendState = true
		default:
			return nil, nil, err
		}
	}
}

// withoutMissing returns the names that remain after ErrBlobMissing. It returns false if the caller has no value for the
// missing blob.
func (c *Cached) withoutMissing(request StepRequest, refusal *Error) (*Cached, bool) {
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
	if request.Grads != nil {
		rest.Grads = ""
	}
	given := map[string]bool{"/params": rest.Params != c.Params, "/state": rest.State != c.State, "/grads": rest.Grads != c.Grads}
	return &rest, given[refusal.Field]
}

func (c *Client) stepOnce(ctx context.Context, request StepRequest, retries int, sendState, direct bool) (*StepResult, *scratch, error) {
	fields, err := request.fields()
	if err != nil {
		return nil, nil, err
	}
	want := results{reply: request.Reply.wire(), sendState: sendState}
	if c.shared != nil {
		if want.params, want.state, err = request.reserveBytes(); err != nil {
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

// result checks a reply, reads its blobs, and returns the result of the step.
func (p *encodedRequest) result(ctx context.Context, request StepRequest, reply stepReply, buffer *scratch, direct bool) (*StepResult, error) {
	result, err := reply.result(request.Reply)
	if err != nil {
		return nil, err
	}
	switch {
	case request.Reply.State == ReplyNone:
		result.State = &State{onServer: true}
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
			if p.paramsMatch(at.length, file) {
				// From here on, nothing may fail or be cancelled: Into must not hold a mix of old and new values.
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

// expected returns names, dtypes and shapes of the new parameters, without data. It returns nil if they are unknown.
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

// targets returns the tensors of Into in the order of the expected parameters.
func (r StepRequest) targets(expected Tensors) Tensors {
	into := byName(r.Into)
	targets := make(Tensors, len(expected))
	for i, param := range expected {
		targets[i] = into[param.Name]
	}
	return targets
}

// reserveBytes returns the bytes to reserve for new parameters and state. A size is 0 if unknown or if the reply omits the
// blob.
func (r StepRequest) reserveBytes() (params, state int64, err error) {
	room := func(tensors Tensors) (int64, error) {
		file, err := fileParts(nil, tensors)
		return file.size + blockBytes, err
	}
	if r.Reply.Params != ReplyNone {
		switch {
		case r.Into != nil:
			params, err = room(r.targets(r.expected()))
		case r.expected() != nil:
			// BF16 values take at most the room of Params, except one letter in the header.
			params, err = room(r.Params)
		}
	}
	if r.Reply.State != ReplyNone && r.State != nil && err == nil {
		state, err = r.State.reserveBytes()
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
		fields = append(fields, field{"params", handle(named.Params)})
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
	switch {
	case r.Reduce != nil:
		reduction, err := r.stepReduction()
		if err != nil {
			return nil, err
		}
		fields = append(fields, field{"reduce", reduction})
	case named.Grads != "":
		fields = append(fields, field{"grads", handle(named.Grads)})
	default:
		fields = append(fields, field{"grads", grads})
	}
	switch {
	case named.State != "":
		fields = append(fields, field{"state", handle(named.State)})
	case r.State != nil:
		fields = append(fields, field{"state", r.State})
	}
	fields = append(fields, slicesFields(r.Slices)...)
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
	if r.Receipt {
		fields = append(fields, field{"receipt", r.receipt()})
	}
	if r.Stats != "" {
		fields = append(fields, field{"stats", string(r.Stats)})
	}
	if r.RoundingSeed != nil {
		fields = append(fields, field{"stochastic_rounding", map[string]any{"seed": *r.RoundingSeed}})
	}
	return fields, nil
}

// checkOptimizer returns an error for a nil optimizer. The server would only report an empty name.
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

// slicesFields returns the field for slices, if there are any.
func slicesFields(slices map[string]int64) []field {
	if len(slices) == 0 {
		return nil
	}
	wire := make(map[string]any, len(slices))
	for name, offset := range slices {
		wire[name] = map[string]any{"offset": offset}
	}
	return []field{{"slices", wire}}
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

// checkInto checks before the call that the result will fit into Into.
func checkInto(request StepRequest) error {
	if request.Into == nil || request.Reply.Params == ReplyNone {
		return nil
	}
	into := byName(request.Into)
	for _, param := range request.expected() {
		target, ok := into[param.Name]
		if !ok || !target.sameType(param) || target.check() != nil {
			return fmt.Errorf("%w: Into has no %q of %s %v", ErrBadTensor, param.Name, param.DType, param.Shape)
		}
	}
	return nil
}

// writeInto copies the new parameters into the caller's tensors.
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
