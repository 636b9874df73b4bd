// DO NOT EDIT: written by `npm run generate`.
/** The wire's types, from schemas/. */

/**
 * Bytes: bin in MessagePack, a base64 string in JSON.
 */
export type Blob = Uint8Array | string
/**
 * An optimizer by name with its hyperparameters; absent ones take their defaults.
 */
export type Optimizer = (Adam | AdamW | LAMB | QHAdam | QHAdamW | QHM | SGD)
/**
 * One safetensors file as a blob, or tensors by name. A reply has the form of its request.
 */
export type Tensors = Uint8Array | string | { readonly [name: string]: PlainTensor }
/**
 * One element. JSON has no NaN and no infinity, so these are strings.
 */
export type Value = number | "NaN" | "Infinity" | "-Infinity"
/**
 * Element type, in the names of safetensors.
 */
export type Dtype = ("F32" | "F64" | "BF16" | "F16")
/**
 * Element type, in the names of safetensors.
 */
export type Dtype1 = ("F32" | "F64" | "BF16" | "F16")

export interface Wire {
"describe-result.schema.json": DescribeResult
"describe.schema.json": DescribeParams
"discover-result.schema.json": DiscoverResult
"discover.schema.json": DiscoverParams
"error.schema.json": ErrorData
"group.schema.json": Group
"init-result.schema.json": InitResult
"init.schema.json": InitParams
"inspect-result.schema.json": InspectResult
"inspect.schema.json": InspectParams
"list-result.schema.json": ListResult
"list.schema.json": ListParams
"norms-result.schema.json": NormsResult
"norms.schema.json": NormsParams
"optimizer.schema.json": Optimizer
"plan-result.schema.json": PlanResult
"plan.schema.json": PlanParams
"step-result.schema.json": StepResult
"step.schema.json": StepParams
"tensor.schema.json": PlainTensor
}
/**
 * Everything about one optimizer.
 */
export interface DescribeResult {
name: string
title: string
revision: number
/**
 * Optimizers of one family take each other's state.
 */
family: string
formula: string
references: string[]
/**
 * JSON Schema of the optimizer object.
 */
hyperparameters: {
[k: string]: unknown
}
/**
 * State per parameter with the default hyperparameters, and all slots that there can be.
 */
slots: {
default: string[]
all: string[]
}
/**
 * Bytes that a step in F32 with the default hyperparameters moves, for each parameter.
 */
bytes_per_parameter: {
in: number
out: number
state: number
}
}
/**
 * Which optimizer.
 */
export interface DescribeParams {
name: string
}
/**
 * The OpenRPC document.
 */
export interface DiscoverResult {
[k: string]: unknown
}
/**
 * No parameters.
 */
export interface DiscoverParams {

}
/**
 * What an error says beside its code and message.
 */
export interface ErrorData {
/**
 * Stable name of the error.
 */
name: string
/**
 * JSON pointer into the parameters.
 */
field?: string
expected?: string
found?: string
/**
 * Seconds.
 */
retry_after?: number
/**
 * The first tensors concerned.
 */
tensors?: string[]
request_id?: string
}
/**
 * A parameter group: hyperparameters for some tensors.
 */
export interface Group {
/**
 * Names of parameters; * stands for any characters. The first group that matches a parameter takes it.
 * 
 * @minItems 1
 */
tensors: [string, ...(string)[]]
/**
 * Hyperparameters that differ from the call's optimizer. The name stays.
 */
optimizer: { readonly [hyperparameter: string]: unknown }
}
/**
 * A state of zeros at step 0.
 */
export interface InitResult {
state: Blob
}
/**
 * The state before the first step, for these parameters; only their names, shapes and dtypes matter.
 */
export interface InitParams {
optimizer: Optimizer
/**
 * Parameter groups; the first that matches a parameter takes it.
 */
groups?: Group[]
params: Tensors
/**
 * Keep a float32 copy of each BF16 or F16 parameter in the state (slot master_param) and step that.
 */
master_weights?: boolean
}
/**
 * g += weight_decay*p; m = lerp(m, g, 1-beta1); v = lerp(v, g^2, 1-beta2); p -= lr * m/(1-beta1^t) / (sqrt(v/(1-beta2^t)) + eps)
 */
export interface Adam {
name: "adam"
/**
 * Learning rate; with a schedule, its base
 */
lr?: number
/**
 * Decay rates of exp_avg and exp_avg_sq
 * 
 * @minItems 2
 * @maxItems 2
 */
betas?: [number, number]
/**
 * Added to the root of the second moment, after the bias correction
 */
eps?: number
/**
 * Times the parameter, added to the gradient
 */
weight_decay?: number
/**
 * Divide by the running maximum of exp_avg_sq (slot max_exp_avg_sq)
 */
amsgrad?: boolean
/**
 * Go up the gradient instead of down
 */
maximize?: boolean
/**
 * Added under the root, as in optax
 */
eps_root?: number
/**
 * Use Nesterov's form of the first moment, as in optax
 */
nesterov?: boolean
}
/**
 * m = lerp(m, g, 1-beta1); v = lerp(v, g^2, 1-beta2); p -= scale*weight_decay*p + lr * m/(1-beta1^t) / (sqrt(v/(1-beta2^t)) + eps), scale = lr, lr_t/lr or 1 by weight_decay_scale
 */
export interface AdamW {
name: "adamw"
/**
 * Learning rate; with a schedule, its base
 */
lr?: number
/**
 * Decay rates of exp_avg and exp_avg_sq
 * 
 * @minItems 2
 * @maxItems 2
 */
betas?: [number, number]
/**
 * Added to the root of the second moment, after the bias correction
 */
eps?: number
/**
 * Times the parameter, taken from it beside the step
 */
weight_decay?: number
/**
 * What multiplies weight_decay: lr (torch), the schedule's factor lr_t/lr (the AdamW paper's fully decoupled form), or nothing (IPRally's QHAdamW)
 */
weight_decay_scale?: ("lr" | "schedule" | "none")
/**
 * Divide by the running maximum of exp_avg_sq (slot max_exp_avg_sq)
 */
amsgrad?: boolean
/**
 * Go up the gradient instead of down
 */
maximize?: boolean
/**
 * Added under the root, as in optax
 */
eps_root?: number
/**
 * Use Nesterov's form of the first moment, as in optax
 */
nesterov?: boolean
}
/**
 * m, v as in adam; u = mhat/(sqrt(vhat) + eps) + weight_decay*p; p -= lr * trust_ratio * u, trust_ratio = |p|/|u| (1 where either is 0) within [trust_min, trust_max]
 */
export interface LAMB {
name: "lamb"
/**
 * Learning rate; with a schedule, its base
 */
lr?: number
/**
 * Decay rates of exp_avg and exp_avg_sq
 * 
 * @minItems 2
 * @maxItems 2
 */
betas?: [number, number]
/**
 * Added to the root of the second moment, after the bias correction
 */
eps?: number
/**
 * Times the parameter, added to the update before its norm is taken
 */
weight_decay?: number
/**
 * Decay inside the update, or lr times it from the parameter before the norms
 */
weight_decay_mode?: ("in_update" | "decoupled")
/**
 * Correct the moments (paper), the step size outside the ratio (DeepSpeed), or nothing (albert)
 */
bias_correction?: ("moments" | "step_size" | "none")
/**
 * Where the trust ratio applies; decayed_only takes 1 where weight_decay is 0 (timm, apex)
 */
adapt?: ("always" | "decayed_only")
/**
 * Lower bound of the trust ratio
 */
trust_min?: (number | null)
/**
 * Upper bound of the trust ratio
 */
trust_max?: (number | null)
/**
 * Divide all gradients by max(1, norm/max_grad_norm), the norm over all tensors; null does not clip (timm: 1.0)
 */
max_grad_norm?: (number | null)
/**
 * Weigh the new gradient by 1-beta1 in exp_avg; false adds it whole
 */
grad_averaging?: boolean
/**
 * Added under the root, as in optax
 */
eps_root?: number
/**
 * Drop the parts of the update whose sign differs from the gradient's and scale the rest up (timm)
 */
caution?: boolean
}
/**
 * g += weight_decay*p; m, v as in adam; p -= lr * (nu1*mhat + (1-nu1)*g) / (sqrt(nu2*vhat + (1-nu2)*g^2) + eps), mhat = m/(1-beta1^t), vhat = v/(1-beta2^t)
 */
export interface QHAdam {
name: "qhadam"
/**
 * Learning rate; with a schedule, its base
 */
lr?: number
/**
 * Decay rates of exp_avg and exp_avg_sq
 * 
 * @minItems 2
 * @maxItems 2
 */
betas?: [number, number]
/**
 * Weights of the first and second moment against the present gradient; any finite numbers
 * 
 * @minItems 2
 * @maxItems 2
 */
nus?: [number, number]
/**
 * Added to the root of the second moment, after the bias correction
 */
eps?: number
/**
 * Times the parameter, added to the gradient
 */
weight_decay?: number
}
/**
 * m, v as in adamw; p -= scale*weight_decay*p + lr * (nu1*mhat + (1-nu1)*g) / (sqrt(nu2*vhat + (1-nu2)*g^2) + eps), scale = lr, lr_t/lr or 1 by weight_decay_scale
 */
export interface QHAdamW {
name: "qhadamw"
/**
 * Learning rate; with a schedule, its base
 */
lr?: number
/**
 * Decay rates of exp_avg and exp_avg_sq
 * 
 * @minItems 2
 * @maxItems 2
 */
betas?: [number, number]
/**
 * Weights of the first and second moment against the present gradient; any finite numbers
 * 
 * @minItems 2
 * @maxItems 2
 */
nus?: [number, number]
/**
 * Added to the root of the second moment, after the bias correction
 */
eps?: number
/**
 * Times the parameter, taken from it beside the step
 */
weight_decay?: number
/**
 * What multiplies weight_decay: lr (torch), the schedule's factor lr_t/lr (the AdamW paper's fully decoupled form), or nothing (IPRally's QHAdamW)
 */
weight_decay_scale?: ("lr" | "schedule" | "none")
}
/**
 * g += weight_decay*p (type grad); buf = lerp(buf, g, 1-momentum); p -= lr*weight_decay*p (type direct) + lr * (nu*buf + (1-nu)*g)
 */
export interface QHM {
name: "qhm"
/**
 * Learning rate; with a schedule, its base. The paper's experiments use 1 with momentum 0.999 and nu 0.7
 */
lr: number
/**
 * Decay rate of momentum_buffer
 */
momentum: number
/**
 * Weight of the buffer against the present gradient
 */
nu: number
/**
 * Times the parameter
 */
weight_decay?: number
/**
 * Add the decay to the gradient, or take lr times it from the parameter
 */
weight_decay_type?: ("grad" | "direct")
}
/**
 * g += weight_decay*p; buf = momentum*buf + (1-dampening)*g (first step: buf = g); p -= lr * (nesterov ? g + momentum*buf : momentum ? buf : g)
 */
export interface SGD {
name: "sgd"
/**
 * Learning rate; with a schedule, its base
 */
lr?: number
/**
 * Decay rate of momentum_buffer; 0 keeps no buffer
 */
momentum?: number
/**
 * How much of each new gradient is held back from the buffer
 */
dampening?: number
/**
 * Times the parameter, added to the gradient
 */
weight_decay?: number
/**
 * Step along the gradient plus the decayed buffer
 */
nesterov?: boolean
/**
 * Go up the gradient instead of down
 */
maximize?: boolean
}
/**
 * What a state holds.
 */
export interface InspectResult {
format: "stepd.state/1"
optimizer: string
revision: number
/**
 * Size of the state.
 */
bytes: number
/**
 * Elements in all slots.
 */
elements: number
/**
 * By parameter name.
 */
tensors: {
[k: string]: {
step: number
slots: {
[k: string]: {
dtype: string
shape: number[]
}
}
}
}
}
/**
 * A state to look into.
 */
export interface InspectParams {
state: Blob
}
/**
 * The optimizers of this server.
 */
export interface ListResult {
optimizers: {
name: string
title: string
formula: string
}[]
}
/**
 * No parameters.
 */
export interface ListParams {

}
/**
 * Add grad_squares of all tensors of all calls in the order of the names' UTF-8 bytes, in float64; the root is clip.total_norm.
 */
export interface NormsResult {
/**
 * By parameter name.
 */
tensors: {
[k: string]: TensorNorms
}
grad_norm: Value
}
export interface TensorNorms {
grad_squares: Value
param_squares?: Value
zeros: number
non_finite: number
}
/**
 * Sums of squares of gradients, and of their parameters where given: phase one of a step over several calls with exact clipping.
 */
export interface NormsParams {
grads: Tensors
params?: Tensors
/**
 * What the gradients are divided by, first of all.
 */
loss_scale?: number
}
/**
 * What a step costs, as one call with a state.
 */
export interface PlanResult {
/**
 * Elements of all parameters.
 */
parameters: number
/**
 * Bytes of params, grads and state.
 */
bytes_in: number
/**
 * Bytes of the new params and state.
 */
bytes_out: number
/**
 * Bytes of the state.
 */
state_bytes: number
/**
 * Memory that the call holds on the server, an upper bound.
 */
arena_bytes: number
/**
 * Whether this server takes it as one call.
 */
fits: boolean
/**
 * How many calls to split it into, so that several fit beside each other; 0 where a tensor alone is too large.
 */
requests: number
/**
 * Tensors that alone do not fit.
 */
too_large: string[]
}
/**
 * A step without its data: what it would cost.
 */
export interface PlanParams {
optimizer: Optimizer
/**
 * Parameter groups; the first that matches a parameter takes it.
 */
groups?: Group[]
/**
 * Shapes and dtypes of the parameters by name.
 */
tensors: { readonly [name: string]: { readonly shape: readonly number[]; readonly dtype?: Dtype } }
grad_dtype?: Dtype
/**
 * Keep a float32 copy of each BF16 or F16 parameter in the state (slot master_param) and step that.
 */
master_weights?: boolean
}
/**
 * New parameters and new state.
 */
export interface StepResult {
params: Tensors
state: Blob
/**
 * The largest step count in the new state.
 */
step: number
/**
 * The learning rate that was used.
 */
lr: number
/**
 * Whether nothing was done because of non_finite skip.
 */
skipped: boolean
stats?: Stats
/**
 * What the caller should know of this step, in sentences.
 */
warnings?: string[]
}
/**
 * Euclidean norms of the gradients (after the loss scale, before clipping), of the parameters before the step, and of their change; counts of gradient values.
 */
export interface Stats {
grad_norm: Value
param_norm: Value
update_norm: Value
/**
 * Gradient values that are zero.
 */
zeros: number
/**
 * Gradient values that are NaN or infinite.
 */
non_finite: number
/**
 * Whether clipping by norm made the gradients smaller.
 */
clipped: boolean
/**
 * By parameter name.
 */
tensors?: {
[k: string]: TensorStats
}
}
export interface TensorStats {
grad_norm: Value
param_norm: Value
update_norm: Value
/**
 * Gradient values that are zero.
 */
zeros: number
/**
 * Gradient values that are NaN or infinite.
 */
non_finite: number
trust_ratio?: Value
}
/**
 * One optimizer step: parameters, gradients and state in. Gradients go by the names of their parameters, in the same shapes; a parameter without one is left as it is: no decay, no step.
 */
export interface StepParams {
optimizer: Optimizer
/**
 * Parameter groups; the first that matches a parameter takes it.
 */
groups?: Group[]
params: Tensors
grads: Tensors
/**
 * The state of the last reply; null or absent at the first step.
 */
state?: Uint8Array | string | null
/**
 * Learning-rate schedule (to come).
 */
schedule?: { readonly [key: string]: unknown }
/**
 * Gradient clipping, after the loss scale.
 */
clip?: {
/**
 * Multiply all gradients by min(1, max_norm / (norm + 1e-6)), the norm over all gradients of the call or total_norm, as torch.nn.utils.clip_grad_norm_ does.
 */
max_norm?: number
/**
 * Keep each value within -max_value and max_value.
 */
max_value?: number
/**
 * The norm over all gradients of the step, where this call has a part of them (optimizer.norms gives the parts). Also for an optimizer's max_grad_norm.
 */
total_norm?: number
}
/**
 * What the gradients are divided by, first of all.
 */
loss_scale?: number
/**
 * What a NaN or an infinity in a gradient does: refuse the call, return everything unchanged with skipped: true, or go on.
 */
non_finite?: ("error" | "skip" | "propagate")
/**
 * Statistics in the reply: over all tensors, or of each as well.
 */
stats?: ("none" | "global" | "tensor")
/**
 * Keep a float32 copy of each BF16 or F16 parameter in the state (slot master_param) and step that.
 */
master_weights?: boolean
/**
 * Round BF16 parameters up or down at random, by how near they are; the same seed gives the same bits. Without it, and where there are master weights, to nearest even.
 */
stochastic_rounding?: {
seed: number
}
}
/**
 * A tensor as a list of numbers, for small things and for curl. Values are in row-major order.
 */
export interface PlainTensor {
/**
 * Size of each dimension; [] is a scalar.
 * 
 * @maxItems 32
 */
shape: number[]
dtype?: Dtype1
values: readonly (number | "NaN" | "Infinity" | "-Infinity")[]
}
