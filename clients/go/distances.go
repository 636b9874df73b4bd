package stepd

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
)

// Distances returns the sum of squared differences between each two updates, in float64: a symmetric matrix in the order of the
// updates. Krum and similar rules select updates by it. Send deltas or gradients: between whole parameters, the rounding of large
// values hides small differences. Weights have no influence. `earlier` is nil, or the result of a call for other tensors of the
// same updates, to which this call adds.
func (c *Client) Distances(ctx context.Context, updates []Update, earlier [][]float64) ([][]float64, error) {
	return c.distances(ctx, updates, earlier, c.retries)
}

func (c *Client) distances(ctx context.Context, updates []Update, earlier [][]float64, retries int) ([][]float64, error) {
	encoded := make([]wireUpdate, len(updates))
	for i, update := range updates {
		file, err := fileParts(nil, update.Tensors)
		if err != nil {
			return nil, fmt.Errorf("updates[%d]: %w", i, err)
		}
		encoded[i] = wireUpdate{file, 1}
	}
	fields := []field{{"updates", encoded}}
	if earlier != nil {
		fields = append(fields, field{"distances", matrixOnWire(earlier)})
	}
	p, err := c.pack(ctx, fields, results{})
	if err != nil {
		return nil, err
	}
	defer p.release()
	reply, err := c.exchange(ctx, "/v1/distances", p, nil, retries)
	if err != nil {
		return nil, err
	}
	if !reply.members["distances"] || len(reply.distances) != len(updates) {
		return nil, badReply("distances of %d updates, not %d", len(reply.distances), len(updates))
	}
	return reply.distances, nil
}

// matrixOnWire names the values that are not finite, as the wire format requires.
func matrixOnWire(matrix [][]float64) []any {
	rows := make([]any, len(matrix))
	for i, row := range matrix {
		values := make([]any, len(row))
		for j, value := range row {
			switch {
			case math.IsNaN(value):
				values[j] = "NaN"
			case math.IsInf(value, 1):
				values[j] = "Infinity"
			case math.IsInf(value, -1):
				values[j] = "-Infinity"
			default:
				values[j] = value
			}
		}
		rows[i] = values
	}
	return rows
}

// Distances does the same as Client.Distances, with the tensors split over several calls. Each call adds to the result of the
// call before it, so the calls run one after the other.
func (s *Sharded) Distances(ctx context.Context, updates []Update, earlier [][]float64) ([][]float64, error) {
	if len(s.Clients) == 0 {
		return nil, errNoClients
	}
	for _, part := range s.splitByName(updates) {
		var total [][]float64
		err := s.replicas.tryReplicas(ctx, s.Clients, nil, func(client *Client) (err error) {
			total, err = client.distances(ctx, part, earlier, 0)
			return err
		})
		if err != nil {
			return nil, err
		}
		earlier = total
	}
	return earlier, nil
}

// splitByName splits updates by tensors into one or more calls, in the order of the names' UTF-8 bytes. In this order the calls
// have the bits of one call.
func (s *Sharded) splitByName(updates []Update) [][]Update {
	sizes := map[string]int64{}
	owners := make([]map[string]Tensor, len(updates))
	for i, update := range updates {
		owners[i] = byName(update.Tensors)
		for _, tensor := range update.Tensors {
			sizes[parameterOfUpdate(tensor.Name, owners[i])] += int64(len(tensor.Data))
		}
	}
	names := slices.Sorted(maps.Keys(sizes))
	callOf := map[string]int{}
	calls, room := 0, s.limit()
	for i, name := range names {
		if i > 0 && sizes[name] > room {
			calls, room = calls+1, s.limit()
		}
		callOf[name] = calls
		room -= sizes[name]
	}
	parts := make([][]Update, calls+1)
	for i := range parts {
		parts[i] = make([]Update, len(updates))
	}
	for at, update := range updates {
		for _, tensor := range update.Tensors {
			own := &parts[callOf[parameterOfUpdate(tensor.Name, owners[at])]][at]
			own.Tensors = append(own.Tensors, tensor)
		}
	}
	return parts
}
