package stepd

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// Which replica takes a call of Sharded, where the call goes when that fails, and how long the replica is left alone then.

const (
	firstRest = time.Second
	maxRest   = time.Minute
)

type replicas struct {
	mu     sync.Mutex
	next   int
	health []health
}

// health is what is known of a replica. The zero value is a good one.
type health struct {
	// failures are those in a row.
	failures   int
	failed     time.Time
	restsUntil time.Time
}

// rest is how long a replica is left alone after its last failure.
func (h health) rest() time.Duration { return min(firstRest<<min(h.failures-1, 10), maxRest) }

// anywhere tries replicas until one answers, each once in a round, with a pause after each round; that of the client `home`, if
// any, is the first. What is wrong with the call itself is returned at once. What one replica does not have, and was not given,
// another may have.
func (r *replicas) anywhere(ctx context.Context, clients []*Client, home *Client, call func(client *Client) error) error {
	first := slices.Index(clients, home)
	var pauses *pauses
	for {
		var missing, failed error
		tried := make([]bool, len(clients))
		for left := len(clients) - 1; ; left-- {
			if ctx.Err() != nil {
				return ended(ctx, nil)
			}
			i := r.pick(tried, first)
			tried[i] = true
			start := time.Now()
			err := call(clients[i])
			isMissing := errors.Is(err, ErrBlobMissing)
			if err == nil || (errors.As(err, new(*Error)) && !isOfReplica(err)) {
				// One that refuses a call is well.
				r.succeeded(i)
				if !isMissing {
					return err
				}
				missing = err
			} else {
				if ctx.Err() != nil || !isOfReplica(err) {
					return err
				}
				r.hasFailed(i, start)
				// Of a round in which only some refuse the connection the others' failures count.
				if failed == nil || isRefused(failed) || !isRefused(err) {
					failed = err
				}
			}
			if left > 0 {
				continue
			}
			if pauses == nil {
				pauses = clients[i].pauses(clients[i].retries, "every stepd replica")
			}
			if failed == nil || !pauses.pause(ctx, failed) {
				return ended(ctx, cmp.Or(missing, failed))
			}
			break
		}
	}
}

// isOfReplica tells whether a failure is that of the replica, or of what stands in its place, and not of the call.
func isOfReplica(err error) bool {
	if refusal := (*Error)(nil); errors.As(err, &refusal) && (refusal.Name == "" || refusal.Name == ErrInternal) {
		return true
	}
	return isPassing(err) || errors.Is(err, ErrBadReply)
}

// pick takes the replica `first` if it was not tried yet and does not rest, or the next one of that kind; the one that rests the
// shortest if all do.
func (r *replicas) pick(tried []bool, first int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.health) < len(tried) {
		r.health = append(r.health, make([]health, len(tried)-len(r.health))...)
	}
	now := time.Now()
	left := func(i int) time.Duration { return max(0, r.health[i].restsUntil.Sub(now)) }
	best := -1
	for k := range tried {
		i := (r.next + k) % len(tried)
		if !tried[i] && (best < 0 || left(i) < left(best)) {
			best = i
		}
	}
	if first >= 0 && !tried[first] && left(first) == 0 {
		best = first
	}
	r.next = best + 1
	if h := &r.health[best]; h.failures > 0 && left(best) == 0 {
		// One call finds out whether it is back. If it hangs, the others do not.
		h.restsUntil = now.Add(h.rest())
	}
	return best
}

func (r *replicas) succeeded(i int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.health[i] = health{}
}

// hasFailed notes the failure of a call. Calls that were under way together fail together, which counts once.
func (r *replicas) hasFailed(i int, start time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := &r.health[i]
	if start.Before(h.failed) {
		return
	}
	h.failed = time.Now()
	h.failures++
	h.restsUntil = h.failed.Add(h.rest())
}
