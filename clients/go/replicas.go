package stepd

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// This file selects a replica for each call of Sharded. It avoids a failed replica for a cool-down.

const (
	firstCoolDown = time.Second
	maxCoolDown   = time.Minute
)

type replicas struct {
	mu     sync.Mutex
	next   int
	health []health
}

// health records the failures of one replica. The zero value means a healthy replica.
type health struct {
	// failures counts failures in a row.
	failures      int
	failedAt      time.Time
	coolDownUntil time.Time
}

// coolDown returns the length of the cool-down that follows the last failure.
func (h health) coolDown() time.Duration {
	return min(firstCoolDown<<min(h.failures-1, 10), maxCoolDown)
}

// tryReplicas tries replicas until one answers. Each round tries `home` first, if not nil, and every other replica once; a wait
// separates rounds. A faulty call returns at once. After ErrBlobMissing the next replica is tried, because it may have the
// blob.
func (r *replicas) tryReplicas(ctx context.Context, clients []*Client, home *Client, call func(client *Client) error) error {
	first := slices.Index(clients, home)
	var retrier *retrier
	for {
		var missing, failed error
		tried := make([]bool, len(clients))
		for left := len(clients) - 1; ; left-- {
			if ctx.Err() != nil {
				return contextErrorOr(ctx, nil)
			}
			i := r.pick(tried, first)
			tried[i] = true
			start := time.Now()
			err := call(clients[i])
			isMissing := errors.Is(err, ErrBlobMissing)
			if err == nil || (errors.As(err, new(*Error)) && !isReplicaFault(err)) {
				// A replica that refuses a call is working.
				r.recordSuccess(i)
				if !isMissing {
					return err
				}
				missing = err
			} else {
				if ctx.Err() != nil || !isReplicaFault(err) {
					return err
				}
				r.recordFailure(i, start)
				// The error of a round is a refused connection only if every replica refused its connection.
				if failed == nil || isRefused(failed) || !isRefused(err) {
					failed = err
				}
			}
			if left > 0 {
				continue
			}
			if retrier == nil {
				retrier = clients[i].newRetrier(clients[i].retries, "every stepd replica")
			}
			if failed == nil || !retrier.wait(ctx, failed) {
				return contextErrorOr(ctx, cmp.Or(missing, failed))
			}
			break
		}
	}
}

// isReplicaFault returns whether the replica, or a proxy in its place, caused the failure, and not the call.
func isReplicaFault(err error) bool {
	if refusal := (*Error)(nil); errors.As(err, &refusal) && (refusal.Name == "" || refusal.Name == ErrInternal) {
		return true
	}
	return isRetryable(err) || errors.Is(err, ErrBadReply)
}

// pick returns replica `first`, or the next replica, that is neither tried nor cooling down. If all are cooling down, pick
// returns the replica that is ready first.
func (r *replicas) pick(tried []bool, first int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.health) < len(tried) {
		r.health = append(r.health, make([]health, len(tried)-len(r.health))...)
	}
	now := time.Now()
	left := func(i int) time.Duration { return max(0, r.health[i].coolDownUntil.Sub(now)) }
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
		// This call probes the replica. A new cool-down keeps other calls away from the replica, which may hang.
		h.coolDownUntil = now.Add(h.coolDown())
	}
	return best
}

func (r *replicas) recordSuccess(i int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.health[i] = health{}
}

// recordFailure records a failed call. Calls that ran at the same time and failed together count as one failure.
func (r *replicas) recordFailure(i int, start time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := &r.health[i]
	if start.Before(h.failedAt) {
		return
	}
	h.failedAt = time.Now()
	h.failures++
	h.coolDownUntil = h.failedAt.Add(h.coolDown())
}
