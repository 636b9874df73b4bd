package stepd

import (
	"context"
	"errors"
	"maps"
	"slices"
)

const (
	defaultFetchEvery = 20
	// residentAttempts limits how often a step is sent while the server keeps losing the results before it.
	residentAttempts = 3
)

// Stepper is a Client or a Sharded.
type Stepper interface {
	Step(ctx context.Context, request StepRequest) (*StepResult, error)
}

// ResidentRun is a run whose parameters and state stay on the server between its steps: gradients go up, parameters come down. The
// server needs a cache (STEPD_CACHE_MIB). The run holds the parameters and the state of the last fetch, and the gradients of each
// later step. A server that restarts, or that needs the memory, gets all of them again, so the run continues with the same bits. A
// ResidentRun is not safe for concurrent use.
type ResidentRun struct {
	// FetchEvery is the number of steps after which Step fetches parameters and state; 0 means 20.
	FetchEvery int

	client Stepper
	params Tensors
	state  *State
	// steps are the steps since the last fetch, without those that were skipped. The server has the result of the first `done` of them,
	// under `cached`.
	steps  []StepRequest
	done   int
	cached *Cached
	// isLossy is true if the server has lost results since the last fetch. The next loss is then likely, and a fetch saves repeating the
	// same steps.
	isLossy bool
}

// NewResidentRun starts a run from parameters, and from a state that is nil at the first step. The run copies the parameters.
func NewResidentRun(client Stepper, params Tensors, state *State) *ResidentRun {
	return &ResidentRun{client: client, params: copyTensors(params), state: state}
}

// Step takes a step. The run itself sets Params, State, Cached and all of Reply but Params, which may ask for BF16 or for nothing. After
// an error the run is unchanged.
func (r *ResidentRun) Step(ctx context.Context, request StepRequest) (*StepResult, error) {
	if r == nil || r.client == nil {
		return nil, errors.New("stepd: expected a ResidentRun of NewResidentRun, found none")
	}
	switch {
	case request.Params != nil || request.State != nil || request.Cached != nil:
		return nil, errors.New("stepd: ResidentRun: expected a request without Params, State and Cached, which the run sets")
	case request.Reduce != nil:
		// The run would have to keep the updates as well.
		return nil, errors.New("stepd: ResidentRun: expected a request with Grads, found one with Reduce")
	case request.Reply.Cache || request.Reply.State != "":
		return nil, errors.New("stepd: ResidentRun: expected a request whose Reply has Params alone")
	}
	every := r.FetchEvery
	if every <= 0 {
		every = defaultFetchEvery
	}
	if len(r.steps) >= every || r.isLossy {
		if _, _, err := r.Fetch(ctx); err != nil {
			return nil, err
		}
	}
	kept := request
	kept.Optimizer, kept.Schedule = maps.Clone(request.Optimizer), maps.Clone(request.Schedule)
	kept.Groups = slices.Clone(request.Groups)
	for i, group := range kept.Groups {
		kept.Groups[i].Optimizer = maps.Clone(group.Optimizer)
	}
	kept.Grads = copyTensors(request.Grads)
	request.Grads = kept.Grads
	result, err := r.send(ctx, request, Reply{Params: request.Reply.Params, State: ReplyNone, Cache: true})
	if err != nil {
		return nil, err
	}
	r.cached = result.Cached
	if !result.Skipped {
		kept.Into, kept.Receipt = nil, false
		r.steps = append(r.steps, kept)
		r.done++
	}
	return result, nil
}

// Fetch returns the current parameters and state, which the caller must not change. The state is nil before the first step of a run
// that began without one.
func (r *ResidentRun) Fetch(ctx context.Context) (Tensors, *State, error) {
	if len(r.steps) == 0 {
		return r.params, r.state, nil
	}
	last := r.steps[len(r.steps)-1]
	// A step without gradients returns what the server has, unchanged.
	result, err := r.send(ctx, StepRequest{Optimizer: last.Optimizer, Groups: last.Groups, MasterWeights: last.MasterWeights, Grads: Tensors{}}, Reply{})
	if err != nil {
		return nil, nil, err
	}
	r.params, r.state = result.Params, result.State
	r.steps, r.done, r.isLossy = nil, 0, false
	return r.params, r.state, nil
}

// send sends a step, after the steps before it whose results the server lacks.
func (r *ResidentRun) send(ctx context.Context, request StepRequest, reply Reply) (*StepResult, error) {
	for attempt := 1; ; attempt++ {
		result, err := r.sendOnce(ctx, request, reply)
		if !errors.Is(err, ErrBlobMissing) || attempt == residentAttempts {
			return result, err
		}
		r.cached, r.done, r.isLossy = nil, 0, true
	}
}

func (r *ResidentRun) sendOnce(ctx context.Context, request StepRequest, reply Reply) (*StepResult, error) {
	for r.done < len(r.steps) {
		result, err := r.call(ctx, r.steps[r.done], Reply{Params: ReplyNone, State: ReplyNone, Cache: true})
		if err != nil {
			return nil, err
		}
		r.cached = result.Cached
		r.done++
	}
	return r.call(ctx, request, reply)
}

func (r *ResidentRun) call(ctx context.Context, request StepRequest, reply Reply) (*StepResult, error) {
	request.Cached, request.Reply = r.cached, reply
	if r.cached == nil {
		request.Params, request.State = r.params, r.state
	}
	result, err := r.client.Step(ctx, request)
	if err != nil {
		return nil, err
	}
	if reply.Cache && !result.Cached.isWhole() {
		return nil, errors.New("stepd: ResidentRun: expected a server that keeps parameters and state (STEPD_CACHE_MIB), found one without the room")
	}
	if request.Into == nil && len(result.Params) > 0 {
		// The server's file has another order.
		stepped := byName(result.Params)
		ordered := make(Tensors, len(r.params))
		for i, param := range r.params {
			ordered[i] = stepped[param.Name]
		}
		result.Params = ordered
	}
	return result, nil
}

// isWhole returns whether the server has cached parameters and state.
func (c *Cached) isWhole() bool {
	if c == nil {
		return false
	}
	for _, one := range c.shards {
		if !one.cached.isWhole() {
			return false
		}
	}
	return c.shards != nil || (c.Params != "" && c.State != "")
}

func copyTensors(tensors Tensors) Tensors {
	copied := slices.Clone(tensors)
	for i := range copied {
		copied[i].Data = slices.Clone(copied[i].Data)
		if copied[i].Data == nil && tensors[i].Data != nil {
			copied[i].Data = []byte{}
		}
	}
	return copied
}
