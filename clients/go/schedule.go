package stepd

import (
	"context"
	"errors"
)

// ScheduleRequest requests the learning rates of a range of steps.
type ScheduleRequest struct {
	Schedule Schedule
	// LR is the base learning rate, which a step takes from its optimizer's lr. Nil means the server's default.
	LR *float64
	// From is the number of steps before the range.
	From int64
	// Count is the number of steps in the range; 0 means 1.
	Count int
}

// Rates holds a schedule's values for each step of a range.
type Rates struct {
	LRs []float64 `json:"lrs"`
	// Momentums is nil if the schedule does not cycle the momentum. An element is nil if that step's momentum does not change.
	Momentums []*float64 `json:"momentums"`
}

// EvaluateSchedule returns the learning rates that Step would use in a range of steps.
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
