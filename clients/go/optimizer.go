package stepd

import "maps"

// Optimizer is an optimizer by its name with hyperparameters, in the names of the wire, which are torch's:
// Optimizer{"name": "adamw", "lr": 1e-3}. Those that are absent take the server's defaults; Client.Describe lists them. It is
// what encoding/json makes of such an object, so it can stand in a configuration file.
type Optimizer map[string]any

// SGD is stochastic gradient descent.
func SGD(lr float64) Optimizer { return Optimizer{"name": "sgd", "lr": lr} }

// Adam is Adam with coupled weight decay (none by default).
func Adam(lr float64) Optimizer { return Optimizer{"name": "adam", "lr": lr} }

// AdamW is Adam with decoupled weight decay (0.01 by default).
func AdamW(lr float64) Optimizer { return Optimizer{"name": "adamw", "lr": lr} }

// QHAdam is quasi-hyperbolic Adam.
func QHAdam(lr float64) Optimizer { return Optimizer{"name": "qhadam", "lr": lr} }

// QHAdamW is quasi-hyperbolic Adam with decoupled weight decay.
func QHAdamW(lr float64) Optimizer { return Optimizer{"name": "qhadamw", "lr": lr} }

// LAMB is layer-wise adaptive Adam for large batches.
func LAMB(lr float64) Optimizer { return Optimizer{"name": "lamb", "lr": lr} }

// With returns the optimizer with one more hyperparameter: AdamW(1e-3).With("betas", []float64{0.9, 0.95}).
func (o Optimizer) With(name string, value any) Optimizer {
	other := maps.Clone(o)
	if other == nil {
		other = Optimizer{}
	}
	other[name] = value
	return other
}

// Schedule is a learning-rate schedule by its name with arguments, in torch's names: Schedule{"name": "cosine", "T_max": 100}.
type Schedule map[string]any

// Group gives some parameters other hyperparameters. The first group that matches a parameter takes it.
type Group struct {
	// Tensors are names of parameters, in which * stands for any characters.
	Tensors []string
	// Optimizer has the hyperparameters that differ from the call's, without a name.
	Optimizer Optimizer
}

func groupsOf(groups []Group) []any {
	out := make([]any, len(groups))
	for i, group := range groups {
		out[i] = map[string]any{"tensors": group.Tensors, "optimizer": map[string]any(group.Optimizer)}
	}
	return out
}
