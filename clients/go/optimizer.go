package stepd

import "maps"

// Optimizer holds an optimizer's name and hyperparameters, under torch's names: Optimizer{"name": "adamw", "lr": 1e-3}. The
// server uses its defaults for absent hyperparameters; Client.Describe lists them. A configuration file can hold an Optimizer
// as a JSON object.
type Optimizer map[string]any

// SGD returns the stochastic gradient descent optimizer. Its momentum and its weight decay are 0 by default.
func SGD(lr float64) Optimizer { return Optimizer{"name": "sgd", "lr": lr} }

// Adam returns the Adam optimizer. Its weight decay is coupled, and 0 by default.
func Adam(lr float64) Optimizer { return Optimizer{"name": "adam", "lr": lr} }

// AdamW returns the AdamW optimizer. Its weight decay is decoupled, and 0.01 by default.
func AdamW(lr float64) Optimizer { return Optimizer{"name": "adamw", "lr": lr} }

// QHAdam returns the quasi-hyperbolic Adam optimizer.
func QHAdam(lr float64) Optimizer { return Optimizer{"name": "qhadam", "lr": lr} }

// QHAdamW returns the quasi-hyperbolic Adam optimizer with decoupled weight decay.
func QHAdamW(lr float64) Optimizer { return Optimizer{"name": "qhadamw", "lr": lr} }

// LAMB returns the LAMB optimizer: Adam for large batches, with a trust ratio for each tensor.
func LAMB(lr float64) Optimizer { return Optimizer{"name": "lamb", "lr": lr} }

// With returns a copy with one more hyperparameter: AdamW(1e-3).With("betas", []float64{0.9, 0.95}).
func (o Optimizer) With(name string, value any) Optimizer {
	other := maps.Clone(o)
	if other == nil {
		other = Optimizer{}
	}
	other[name] = value
	return other
}

// Schedule holds a learning-rate schedule's name and arguments, under torch's names: Schedule{"name": "cosine", "T_max": 100}.
type Schedule map[string]any

// Group sets other hyperparameters for some parameters. A parameter belongs to the first group that matches it.
type Group struct {
	// Tensors are names of parameters, in which * matches any characters.
	Tensors []string
	// Optimizer holds the hyperparameters that differ from the call's hyperparameters. With a name, the group has an optimizer of
	// its own, which inherits nothing: absent hyperparameters take that optimizer's defaults.
	Optimizer Optimizer
}

func groupsOf(groups []Group) []any {
	out := make([]any, len(groups))
	for i, group := range groups {
		out[i] = map[string]any{"tensors": group.Tensors, "optimizer": map[string]any(group.Optimizer)}
	}
	return out
}
