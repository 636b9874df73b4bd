package stepd

import (
	"context"
	"encoding/json"
	"errors"
	"net/url"
)

// OptimizerInfo is an optimizer's entry in the server's list.
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

// Description describes one optimizer completely.
type Description struct {
	OptimizerInfo
	// Revision increases with every change to the bits of the results.
	Revision int `json:"revision"`
	// Family groups the optimizers that accept each other's state.
	Family     string   `json:"family"`
	References []string `json:"references"`
	// Hyperparameters is the JSON Schema of the Optimizer object.
	Hyperparameters json.RawMessage `json:"hyperparameters"`
	Slots           struct {
		// Default lists the slots that the default hyperparameters need.
		Default []string `json:"default"`
		All     []string `json:"all"`
	} `json:"slots"`
	// BytesPerParameter counts the bytes per element that an F32 step with the default hyperparameters transfers.
	BytesPerParameter struct {
		In    int `json:"in"`
		Out   int `json:"out"`
		State int `json:"state"`
	} `json:"bytes_per_parameter"`
}

// Describe returns the description of one optimizer.
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
