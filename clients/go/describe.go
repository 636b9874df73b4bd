package stepd

import (
	"context"
	"encoding/json"
	"errors"
	"net/url"
)

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
