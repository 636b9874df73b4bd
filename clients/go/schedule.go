package stepd

import (
	"context"
	"errors"
)

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
