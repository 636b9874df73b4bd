// DO NOT EDIT: written by `npm run generate`.
/** The wire's types, from schemas/. */

/**
 * Tensors, or the place in the shared folder that contains their file.
 */
export type TensorsResult = Uint8Array | string | { readonly [name: string]: PlainTensor } | SharedBlob
/**
 * An optimizer by name with its hyperparameters; absent ones take their defaults.
 */
export type Optimizer = (AdaBelief | Adadelta | Adafactor | Adagrad | Adam | Adamax | AdamW | Adan | AdEMAMix | ADOPT | ASGD | LAMB | LARS | Lion | Muon | NAdam | Prodigy | QHAdam | QHAdamW | QHM | RAdam | RMSprop | Rprop | ScheduleFreeAdamW | ScheduleFreeSGD | SGD | Signum | Yogi)
/**
 * Tensors, or a reference to their safetensors file in the shared folder or the cache.
 */
export type TensorsSource = Uint8Array | string | { readonly [name: string]: PlainTensor } | SharedBlob | CachedBlob
/**
 * A blob, or a reference to one in the shared folder or the cache.
 */
export type BlobSource = Uint8Array | string | SharedBlob | CachedBlob
/**
 * Bytes: bin in MessagePack, a base64 string in JSON.
 */
export type Blob = Uint8Array | string
/**
 * One element. JSON has no NaN and no infinity, so these are strings.
 */
export type Value = number | "NaN" | "Infinity" | "-Infinity"
/**
 * Tensors, or a reference to their safetensors file in the shared folder or the cache.
 */
export type TensorsSource1 = Uint8Array | string | { readonly [name: string]: PlainTensor } | SharedBlob | CachedBlob
/**
 * A learning-rate schedule by name with its arguments in torch's names; absent ones take their defaults.
 */
export type Schedule = (ChainedSchedule | ConstantSchedule | CosineSchedule | CosineWarmRestartsSchedule | CyclicSchedule | ExponentialSchedule | InverseSqrtSchedule | LinearSchedule | MultistepSchedule | OneCycleSchedule | PolynomialSchedule | SequenceSchedule | StepSchedule | TableSchedule | WarmupCosineSchedule | WarmupStableDecaySchedule)
/**
 * One element. JSON has no NaN and no infinity, so these are strings.
 */
export type Value1 = number | "NaN" | "Infinity" | "-Infinity"
/**
 * Names each tensor of this call that is a part of a larger one: a flat slice, which begins at element offset of the whole tensor. Offsets are multiples of 65,536, so that all calls together give the bits of one.
 */
export type Slices = { readonly [name: string]: { readonly offset: number } }
/**
 * Whether the reply has a receipt: the SHA-256 of each blob in and out, and the options. An object says which part of a sharded step this call is, and the receipt repeats it.
 */
export type ReceiptOption = boolean | ReceiptPart
/**
 * Element type, under its safetensors name.
 */
export type Dtype = ("F32" | "F64" | "BF16" | "F16")
/**
 * One safetensors file as a blob, or tensors by name. A reply has the form of its request.
 */
export type Tensors = Uint8Array | string | { readonly [name: string]: PlainTensor }
/**
 * Bytes: bin in MessagePack, a base64 string in JSON.
 */
export type Blob1 = Uint8Array | string
/**
 * One element. JSON has no NaN and no infinity, so these are strings.
 */
export type Value2 = number | "NaN" | "Infinity" | "-Infinity"
/**
 * Tensors, or a reference to their safetensors file in the shared folder or the cache.
 */
export type TensorsSource2 = Uint8Array | string | { readonly [name: string]: PlainTensor } | SharedBlob | CachedBlob
/**
 * The updates, in the order of the arithmetic. The same order gives the same bits, so sort them, for instance by client.
 * 
 * @maxItems 4096
 */
export type Updates = Update[]
/**
 * What the updates contain: new parameters (the result is params - mean), deltas to add to the parameters (the result is -mean), or gradients (the result is the mean).
 */
export type Form = ("params" | "deltas" | "gradients")
/**
 * How the updates are combined, element by element.
 */
export type ReduceMethod = (Mean | Median | TrimmedMean)
/**
 * What NaN or infinity in an update causes: error rejects the call, drop omits the whole update and lists it, propagate computes with it.
 */
export type NonFinite = ("error" | "drop" | "propagate")
/**
 * What a missing tensor in an update causes: error rejects the call, renormalize combines each tensor over the updates that have it.
 */
export type Missing = ("error" | "renormalize")
/**
 * A blob, or the place in the shared folder that contains it.
 */
export type BlobResult = Uint8Array | string | SharedBlob
/**
 * One element. JSON has no NaN and no infinity, so these are strings.
 */
export type Value3 = number | "NaN" | "Infinity" | "-Infinity"
/**
 * What the updates contain: new parameters (the result is params - mean), deltas to add to the parameters (the result is -mean), or gradients (the result is the mean).
 */
export type Form1 = ("params" | "deltas" | "gradients")
/**
 * How the updates are combined, element by element.
 */
export type ReduceMethod1 = (Mean | Median | TrimmedMean)
/**
 * What NaN or infinity in an update causes: error rejects the call, drop omits the whole update and lists it, propagate computes with it.
 */
export type NonFinite1 = ("error" | "drop" | "propagate")
/**
 * What a missing tensor in an update causes: error rejects the call, renormalize combines each tensor over the updates that have it.
 */
export type Missing1 = ("error" | "renormalize")
/**
 * Element type, under its safetensors name.
 */
export type Dtype1 = ("F32" | "F64" | "BF16" | "F16")

export interface Wire {
"average-result.schema.json": AverageResult
"average.schema.json": AverageParams
"convention.schema.json": Convention
"convert-result.schema.json": ConvertResult
"convert.schema.json": ConvertParams
"describe-result.schema.json": DescribeResult
"describe.schema.json": DescribeParams
"discover-result.schema.json": DiscoverResult
"discover.schema.json": DiscoverParams
"distances-result.schema.json": DistancesResult
"distances.schema.json": DistancesParams
"error.schema.json": ErrorData
"evaluate-result.schema.json": EvaluateResult
"evaluate.schema.json": EvaluateParams
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
"receipt.schema.json": Receipt
"reduce-result.schema.json": ReduceResult
"reduce.schema.json": ReduceParams
"schedule.schema.json": Schedule
"step-result.schema.json": StepResult
"step.schema.json": StepParams
"tensor.schema.json": PlainTensor
}
/**
 * The averaged parameters, in the form of the request. A parameter without steps is unchanged.
 */
export interface AverageResult {
params: TensorsResult
}
/**
 * Parameters and state after a step of an optimizer that evaluates a model with averaged parameters.
 */
export interface AverageParams {
optimizer: Optimizer
/**
 * Parameter groups, as in the step.
 * 
 * @maxItems 4096
 */
groups?: Group[]
params: TensorsSource
state: BlobSource
}
/**
 * m = lerp(m, g, 1-beta1); s = lerp(s, (g - m)^2, 1-beta2) + eps_root; p -= lr * m/(1-beta1^t) / (sqrt(s/(1-beta2^t)) + eps)
 */
export interface AdaBelief {
name: "adabelief"
/**
 * Learning rate; with a schedule, its base rate
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
 * Added to the root of exp_avg_var
 */
eps?: number
/**
 * Added to exp_avg_var at every step
 */
eps_root?: number
/**
 * Weight decay; decoupled_weight_decay selects its form
 */
weight_decay?: number
/**
 * Subtract lr*weight_decay times the parameter from it, instead of adding weight_decay times the parameter to the gradient
 */
decoupled_weight_decay?: boolean
/**
 * Rectify the step as in radam
 */
rectify?: boolean
/**
 * Go up the gradient instead of down
 */
maximize?: boolean
/**
 * Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32
 */
state_dtype?: ("F32" | "BF16" | "Q8")
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * g += weight_decay*p; s = lerp(s, g^2, 1-rho); d = sqrt(acc + eps)/sqrt(s + eps) * g; acc = lerp(acc, d^2, 1-rho); p -= lr*d
 */
export interface Adadelta {
name: "adadelta"
/**
 * Learning rate; with a schedule, its base rate
 */
lr?: number
/**
 * Decay rate of square_avg and acc_delta
 */
rho?: number
/**
 * Added under both roots
 */
eps?: number
/**
 * Weight decay (L2): weight_decay times the parameter is added to the gradient
 */
weight_decay?: number
/**
 * Go up the gradient instead of down
 */
maximize?: boolean
/**
 * Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32
 */
state_dtype?: ("F32" | "BF16" | "Q8")
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * w = t^beta2_decay; from two axes on: row_var = lerp(row_var, mean of g^2 by row, w), col_var = lerp(col_var, mean of g^2 by column, w), v = row_var*col_var/max(mean(row_var), eps1); else v = variance = lerp(variance, g^2, w); u = g/sqrt(max(v, eps1^2)); p -= lr*weight_decay*p + max(eps2, rms(p))*min(lr, 1/sqrt(t)) * u/max(1, rms(u)/d)
 */
export interface Adafactor {
name: "adafactor"
/**
 * Upper bound of the relative step size 1/sqrt(t), and factor of weight_decay; with a schedule, its base rate
 */
lr?: number
/**
 * The second moment's weight of the new gradient at step t is t^beta2_decay
 */
beta2_decay?: number
/**
 * eps1, the smallest divisor of the update: null is 2^-23 for parameters below F64, and 2^-52 for F64; and eps2, the smallest root mean square of the parameter, a number
 * 
 * @minItems 2
 * @maxItems 2
 */
eps?: [(number | null), (number | null)]
/**
 * Largest root mean square of an update; a larger update is scaled down
 */
d?: number
/**
 * Decoupled weight decay: lr*weight_decay times the parameter is subtracted from the parameter
 */
weight_decay?: number
/**
 * Go up the gradient instead of down
 */
maximize?: boolean
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * g += weight_decay*p; sum += g^2; p -= lr/(1 + (t-1)*lr_decay) * g/(sqrt(sum) + eps)
 */
export interface Adagrad {
name: "adagrad"
/**
 * Learning rate; with a schedule, its base rate
 */
lr?: number
/**
 * Learning rate decay: step t divides the rate by 1 + (t-1)*lr_decay
 */
lr_decay?: number
/**
 * Weight decay (L2): weight_decay times the parameter is added to the gradient
 */
weight_decay?: number
/**
 * Initial value of sum
 */
initial_accumulator_value?: number
/**
 * Added to the root
 */
eps?: number
/**
 * Go up the gradient instead of down
 */
maximize?: boolean
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * g += weight_decay*p; m = lerp(m, g, 1-beta1); v = lerp(v, g^2, 1-beta2); p -= lr * m/(1-beta1^t) / (sqrt(v/(1-beta2^t)) + eps)
 */
export interface Adam {
name: "adam"
/**
 * Learning rate; with a schedule, its base rate
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
 * Weight decay (L2): weight_decay times the parameter is added to the gradient
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
/**
 * Correct the moments (paper), the step size alone, so that eps is added to the uncorrected root (Keras, and Flower's FedAdam), or nothing
 */
bias_correction?: ("moments" | "step_size" | "none")
/**
 * Zero the elements of the update whose sign differs from the gradient's, and scale up the others (timm)
 */
caution?: boolean
/**
 * Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32
 */
state_dtype?: ("F32" | "BF16" | "Q8")
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * g += weight_decay*p; m = lerp(m, g, 1-beta1); u = max(beta2*u, |g| + eps); p -= lr/(1-beta1^t) * m/u
 */
export interface Adamax {
name: "adamax"
/**
 * Learning rate; with a schedule, its base rate
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
 * Added to the size of each gradient
 */
eps?: number
/**
 * Weight decay (L2): weight_decay times the parameter is added to the gradient
 */
weight_decay?: number
/**
 * Go up the gradient instead of down
 */
maximize?: boolean
/**
 * Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32
 */
state_dtype?: ("F32" | "BF16" | "Q8")
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * m = lerp(m, g, 1-beta1); v = lerp(v, g^2, 1-beta2); p -= scale*weight_decay*p + lr * m/(1-beta1^t) / (sqrt(v/(1-beta2^t)) + eps), scale = lr, lr_t/lr or 1 by weight_decay_scale
 */
export interface AdamW {
name: "adamw"
/**
 * Learning rate; with a schedule, its base rate
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
 * Decoupled weight decay: weight_decay times the parameter, scaled by weight_decay_scale, is subtracted from the parameter
 */
weight_decay?: number
/**
 * Factor of weight_decay: lr (torch), the schedule's factor lr_t/lr (the AdamW paper's fully decoupled form; lr_t/max_lr with one_cycle and cyclic), or 1 (IPRally's QHAdamW)
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
/**
 * Correct the moments (paper), the step size alone, so that eps is added to the uncorrected root (Keras, and Flower's FedAdam), or nothing
 */
bias_correction?: ("moments" | "step_size" | "none")
/**
 * Zero the elements of the update whose sign differs from the gradient's, and scale up the others (timm)
 */
caution?: boolean
/**
 * Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32
 */
state_dtype?: ("F32" | "BF16" | "Q8")
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * d = g - g_previous; m = lerp(m, g, 1-beta1); n = lerp(n, d, 1-beta2); v = lerp(v, (g + w*d)^2, 1-beta3); u = (m/(1-beta1^t) + w*n/(1-beta2^t)) / (sqrt(v/(1-beta3^t) + eps_root) + eps); p = (p - lr*u) / (1 + lr*weight_decay), with no_prox p -= lr*(weight_decay*p + u)
 */
export interface Adan {
name: "adan"
/**
 * Learning rate; with a schedule, its base rate
 */
lr?: number
/**
 * Decay rates of exp_avg, exp_avg_diff and exp_avg_sq
 * 
 * @minItems 3
 * @maxItems 3
 */
betas?: [number, number, number]
/**
 * Added to the root of the second moment, after the bias correction
 */
eps?: number
/**
 * Weight decay; no_prox selects its form
 */
weight_decay?: number
/**
 * Subtract lr*weight_decay times the parameter from it, instead of dividing the new parameter by 1 + lr*weight_decay
 */
no_prox?: boolean
/**
 * Weight of the difference and of exp_avg_diff; null is the second of betas (paper, timm), and optax has 1 minus it
 */
diff_weight?: (number | null)
/**
 * Added under the root, as in optax
 */
eps_root?: number
/**
 * Go up the gradient instead of down
 */
maximize?: boolean
/**
 * Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32
 */
state_dtype?: ("F32" | "BF16" | "Q8")
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * m = lerp(m, g, 1-beta1); s = lerp(s, g, 1-beta3_t); v = lerp(v, g^2, 1-beta2); p -= lr * (m/(1-beta1^t) + alpha_t*s) / (sqrt(v/(1-beta2^t) + eps_root) + eps); alpha_t and beta3_t grow over the first t_alpha_beta3 steps
 */
export interface AdEMAMix {
name: "ademamix"
/**
 * Learning rate; with a schedule, its base rate
 */
lr?: number
/**
 * Decay rates of exp_avg, exp_avg_sq and exp_avg_slow
 * 
 * @minItems 3
 * @maxItems 3
 */
betas?: [number, number, number]
/**
 * Weight of exp_avg_slow in the numerator
 */
alpha?: number
/**
 * Number of steps over which alpha grows from 0 and the decay rate of exp_avg_slow from the first of betas; null starts with their full values
 */
t_alpha_beta3?: (number | null)
/**
 * Added to the root of the second moment, after the bias correction
 */
eps?: number
/**
 * Weight decay; decoupled_weight_decay selects its form
 */
weight_decay?: number
/**
 * Subtract lr*weight_decay times the parameter from it, instead of adding weight_decay times the parameter to the gradient
 */
decoupled_weight_decay?: boolean
/**
 * Added under the root, as in optax
 */
eps_root?: number
/**
 * Go up the gradient instead of down
 */
maximize?: boolean
/**
 * Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32
 */
state_dtype?: ("F32" | "BF16" | "Q8")
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * n = clamp(g/max(sqrt(v), eps), +-(t-1)^clip_exp); m = lerp(m, n, 1-beta1); p -= lr*m; v = lerp(v, g^2, 1-beta2); first step: v = g^2 alone
 */
export interface ADOPT {
name: "adopt"
/**
 * Learning rate; with a schedule, its base rate
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
 * Lower bound of the root of exp_avg_sq
 */
eps?: number
/**
 * Clamp the quotients to the range that clip_exp gives
 */
use_clipping?: boolean
/**
 * The quotients of step t are clamped to (t-1)^clip_exp
 */
clip_exp?: number
/**
 * Weight decay; decoupled_weight_decay selects its form
 */
weight_decay?: number
/**
 * Subtract lr*weight_decay times the parameter from it, instead of adding weight_decay times the parameter to the gradient
 */
decoupled_weight_decay?: boolean
/**
 * Go up the gradient instead of down
 */
maximize?: boolean
/**
 * Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32
 */
state_dtype?: ("F32" | "BF16" | "Q8")
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * g += weight_decay*p; p -= lambd*eta*p + eta*g; ax = lerp(ax, p, mu); eta = lr/(1 + lambd*lr*t)^alpha; mu = 1/max(1, t - t0)
 */
export interface ASGD {
name: "asgd"
/**
 * Learning rate; with a schedule, its base rate
 */
lr?: number
/**
 * Decay of the parameter and of the rate
 */
lambd?: number
/**
 * Exponent of the rate's decrease
 */
alpha?: number
/**
 * The step after which parameters are averaged
 */
t0?: number
/**
 * Weight decay (L2): weight_decay times the parameter is added to the gradient
 */
weight_decay?: number
/**
 * Go up the gradient instead of down
 */
maximize?: boolean
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * m, v as in adam; u = mhat/(sqrt(vhat) + eps) + weight_decay*p; p -= lr * trust_ratio * u, trust_ratio = |p|/|u| (1 where either is 0) within [trust_min, trust_max]
 */
export interface LAMB {
name: "lamb"
/**
 * Learning rate; with a schedule, its base rate
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
 * Weight decay; weight_decay_mode selects its form
 */
weight_decay?: number
/**
 * Add weight_decay times the parameter to the update before its norm, or subtract lr times it from the parameter before the norms
 */
weight_decay_mode?: ("in_update" | "decoupled")
/**
 * Correct the moments (paper), the step size outside the ratio (DeepSpeed), or nothing (albert)
 */
bias_correction?: ("moments" | "step_size" | "none")
/**
 * When the trust ratio applies; decayed_only uses 1 if weight_decay is 0 (timm, apex)
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
 * Multiply the new gradient by 1-beta1 in exp_avg; false adds it unscaled
 */
grad_averaging?: boolean
/**
 * Added under the root, as in optax
 */
eps_root?: number
/**
 * Zero the elements of the update whose sign differs from the gradient's, and scale up the others (timm)
 */
caution?: boolean
/**
 * Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32
 */
state_dtype?: ("F32" | "BF16" | "Q8")
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * d = ratio*(g + weight_decay*p), ratio = trust_coefficient*|p|/(|g| + weight_decay*|p| + eps) (1 where a norm is 0); buf = momentum*buf + (1-dampening)*d (first step: buf = d); p -= lr * (nesterov ? d + momentum*buf : buf)
 */
export interface LARS {
name: "lars"
/**
 * Learning rate; with a schedule, its base rate
 */
lr?: number
/**
 * Decay rate of momentum_buffer; 0 keeps no buffer
 */
momentum?: number
/**
 * Fraction of each new gradient that is not added to the buffer
 */
dampening?: number
/**
 * Weight decay (L2): weight_decay times the parameter is added to the gradient
 */
weight_decay?: number
/**
 * Nesterov momentum: step along the scaled gradient plus momentum times the buffer
 */
nesterov?: boolean
/**
 * Factor of the trust ratio
 */
trust_coefficient?: number
/**
 * Added to the trust ratio's denominator
 */
eps?: number
/**
 * Sum of the norms (timm), or norm of the decayed gradient (optax)
 */
trust_denominator?: ("sum" | "decayed_grad")
/**
 * Keep ratio/lr at most 1, as LARC and timm do
 */
trust_clip?: boolean
/**
 * Apply the trust ratio even if weight_decay is 0; otherwise trust_denominator sum uses 1 then
 */
always_adapt?: boolean
/**
 * Apply lr before the momentum buffer (optax) instead of after it (timm)
 */
lr_in_momentum?: boolean
/**
 * Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32
 */
state_dtype?: ("F32" | "BF16" | "Q8")
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * u = sign(lerp(m, g, 1-beta1)); p -= lr*weight_decay*p + lr*u; m = lerp(m, g, 1-beta2)
 */
export interface Lion {
name: "lion"
/**
 * Learning rate; with a schedule, its base rate
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
 * Decoupled weight decay: lr times weight_decay times the parameter is subtracted from the parameter
 */
weight_decay?: number
/**
 * Go up the gradient instead of down
 */
maximize?: boolean
/**
 * Zero the elements of the update whose sign differs from the gradient's, and scale up the others (timm)
 */
caution?: boolean
/**
 * Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32
 */
state_dtype?: ("F32" | "BF16" | "Q8")
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * buf = lerp(buf, g, 1-momentum); u = nesterov ? lerp(g, buf, momentum) : buf; X = u/max(|u|, eps); ns_steps times: A = X*X', X = a*X + (b*A + c*A*A)*X; p -= lr*weight_decay*p + lr*scale*X, scale by adjust_lr_fn from R rows and C columns: original sqrt(max(1, R/C)), match_rms_adamw 0.2*sqrt(max(R, C)), spectral_unclamped sqrt(R/C)
 */
export interface Muon {
name: "muon"
/**
 * Learning rate; with a schedule, its base rate
 */
lr?: number
/**
 * Decoupled weight decay: lr*weight_decay times the parameter is subtracted from the parameter
 */
weight_decay?: number
/**
 * Decay rate of momentum_buffer
 */
momentum?: number
/**
 * Use Nesterov's form: orthogonalize the mean of gradient and buffer, instead of the buffer
 */
nesterov?: boolean
/**
 * Number of Newton-Schulz iterations, a whole number; each takes three matrix products
 */
ns_steps?: number
/**
 * Coefficients a, b and c of the iteration
 * 
 * @minItems 3
 * @maxItems 3
 */
ns_coefficients?: [number, number, number]
/**
 * Smallest divisor of the update before the iterations
 */
eps?: number
/**
 * Factor of lr by shape: sqrt(max(1, rows/columns)), 0.2*sqrt(max(rows, columns)), or sqrt(rows/columns)
 */
adjust_lr_fn?: ("original" | "match_rms_adamw" | "spectral_unclamped")
/**
 * Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32
 */
state_dtype?: ("F32" | "BF16" | "Q8")
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * m, v as in adam; mu_t = beta1*(1 - 0.96^(t*momentum_decay)/2); P = mu_1*...*mu_t; p -= lr * ((1-mu_t)/(1-P)*g + mu_{t+1}/(1-P*mu_{t+1})*m) / (sqrt(v/(1-beta2^t)) + eps)
 */
export interface NAdam {
name: "nadam"
/**
 * Learning rate; with a schedule, its base rate
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
 * Weight decay (L2): weight_decay times the parameter is added to the gradient
 */
weight_decay?: number
/**
 * Decouple the weight decay: subtract lr*weight_decay times the parameter, instead of adding to the gradient
 */
decoupled_weight_decay?: boolean
/**
 * Speed of the momentum's warm-up
 */
momentum_decay?: number
/**
 * Go up the gradient instead of down
 */
maximize?: boolean
/**
 * Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32
 */
state_dtype?: ("F32" | "BF16" | "Q8")
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * rate = d*lr (use_bias_correction: times sqrt(1-beta2^k)/(1-beta1^k)); m = beta1*m + (1-beta1)*d*g; v = beta2*v + (1-beta2)*d^2*g^2; s = beta3*s + d/d0*rate*g; over all tensors: numerator = beta3*numerator + d/d0*rate*<g, p0 - p>, d_hat = d_coef*numerator/|s|_1, d_max = max(d_max, d_hat), d = min(d_max, d*growth_rate); p -= rate*weight_decay*p + rate * m/(sqrt(v) + d*eps)
 */
export interface Prodigy {
name: "prodigy"
/**
 * Factor of the estimated step size; with a schedule, its base rate
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
 * Decay rate of s and of the numerator; null takes the root of the second of betas
 */
beta3?: (number | null)
/**
 * Added to the root of the second moment, after the bias correction
 */
eps?: number
/**
 * Weight decay; decouple selects its form
 */
weight_decay?: number
/**
 * Subtract rate*weight_decay times the parameter from it; false adds weight_decay times the parameter to the gradient
 */
decouple?: boolean
/**
 * Correct the bias of the moments in the step size (optax: always)
 */
use_bias_correction?: boolean
/**
 * Leave lr out of s, for schedules that begin with small rates
 */
safeguard_warmup?: boolean
/**
 * Estimate of the distance before the first step
 */
d0?: number
/**
 * Factor of the estimate
 */
d_coef?: number
/**
 * Largest factor by which d grows in a step; null for no limit
 */
growth_rate?: (number | null)
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * g += weight_decay*p; m, v as in adam; p -= lr * (nu1*mhat + (1-nu1)*g) / (sqrt(nu2*vhat + (1-nu2)*g^2) + eps), mhat = m/(1-beta1^t), vhat = v/(1-beta2^t)
 */
export interface QHAdam {
name: "qhadam"
/**
 * Learning rate; with a schedule, its base rate
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
 * Weights of the first and second moment, relative to the current gradient; any finite numbers
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
 * Weight decay (L2): weight_decay times the parameter is added to the gradient
 */
weight_decay?: number
/**
 * Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32
 */
state_dtype?: ("F32" | "BF16" | "Q8")
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * m, v as in adamw; p -= scale*weight_decay*p + lr * (nu1*mhat + (1-nu1)*g) / (sqrt(nu2*vhat + (1-nu2)*g^2) + eps), scale = lr, lr_t/lr or 1 by weight_decay_scale
 */
export interface QHAdamW {
name: "qhadamw"
/**
 * Learning rate; with a schedule, its base rate
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
 * Weights of the first and second moment, relative to the current gradient; any finite numbers
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
 * Decoupled weight decay: weight_decay times the parameter, scaled by weight_decay_scale, is subtracted from the parameter
 */
weight_decay?: number
/**
 * Factor of weight_decay: lr (torch), the schedule's factor lr_t/lr (the AdamW paper's fully decoupled form; lr_t/max_lr with one_cycle and cyclic), or 1 (IPRally's QHAdamW)
 */
weight_decay_scale?: ("lr" | "schedule" | "none")
/**
 * Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32
 */
state_dtype?: ("F32" | "BF16" | "Q8")
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * g += weight_decay*p (type grad); buf = lerp(buf, g, 1-momentum); p -= lr*weight_decay*p (type direct) + lr * (nu*buf + (1-nu)*g)
 */
export interface QHM {
name: "qhm"
/**
 * Learning rate; with a schedule, its base rate. The paper's experiments use 1 with momentum 0.999 and nu 0.7
 */
lr: number
/**
 * Decay rate of momentum_buffer
 */
momentum: number
/**
 * Weight of the buffer, relative to the current gradient
 */
nu: number
/**
 * Weight decay: a multiple of the parameter
 */
weight_decay?: number
/**
 * Add the decay to the gradient, or subtract lr times it from the parameter
 */
weight_decay_type?: ("grad" | "direct")
/**
 * Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32
 */
state_dtype?: ("F32" | "BF16" | "Q8")
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * m, v as in adam; rho = rho_inf - 2t*beta2^t/(1-beta2^t); p -= lr * m/(1-beta1^t) * (rho > 5 ? rect(rho)*sqrt(1-beta2^t)/(sqrt(v) + eps) : 1)
 */
export interface RAdam {
name: "radam"
/**
 * Learning rate; with a schedule, its base rate
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
 * Weight decay (L2): weight_decay times the parameter is added to the gradient
 */
weight_decay?: number
/**
 * Decouple the weight decay: subtract lr*weight_decay times the parameter, instead of adding to the gradient
 */
decoupled_weight_decay?: boolean
/**
 * Go up the gradient instead of down
 */
maximize?: boolean
/**
 * Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32
 */
state_dtype?: ("F32" | "BF16" | "Q8")
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * g += weight_decay*p; s = lerp(s, g^2, 1-alpha); q = centered ? max(s - h^2, 0), h = lerp(h, g, 1-alpha) : s; u = g/(sqrt(q + eps_root) + eps); p -= lr * (momentum ? buf = momentum*buf + u : u)
 */
export interface RMSprop {
name: "rmsprop"
/**
 * Learning rate; with a schedule, its base rate
 */
lr?: number
/**
 * Decay rate of square_avg and grad_avg
 */
alpha?: number
/**
 * Added to the root
 */
eps?: number
/**
 * Weight decay (L2): weight_decay times the parameter is added to the gradient
 */
weight_decay?: number
/**
 * Decay rate of momentum_buffer; 0 keeps no buffer
 */
momentum?: number
/**
 * Divide by the deviation from the mean gradient (slot grad_avg)
 */
centered?: boolean
/**
 * Go up the gradient instead of down
 */
maximize?: boolean
/**
 * Added under the root, as in optax
 */
eps_root?: number
/**
 * Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32
 */
state_dtype?: ("F32" | "BF16" | "Q8")
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * s = clamp(s * (g*prev > 0 ? eta_plus : g*prev < 0 ? eta_minus : 1), step_sizes); g = 0 where g*prev < 0; p -= sign(g)*s; prev = g (first step: s = lr)
 */
export interface Rprop {
name: "rprop"
/**
 * Step size of the first step
 */
lr?: number
/**
 * Factors of the step size: below 1 where the gradient's sign turns, above 1 where it stays
 * 
 * @minItems 2
 * @maxItems 2
 */
etas?: [number, number]
/**
 * Smallest and largest step size
 * 
 * @minItems 2
 * @maxItems 2
 */
step_sizes?: [number, number]
/**
 * Go up the gradient instead of down
 */
maximize?: boolean
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * v = lerp(v, g^2, 1-beta2); u = g/(sqrt(v/(1-beta2^t)) + eps) + weight_decay*p; c = w_t/(w_1 + ... + w_t), w_t = t^r * lr_max^weight_lr_power; p += c*(z - p) - lr*(1 - beta1*(1-c))*u; z -= lr*u (first step: z = p before it); average: p + (1 - 1/beta1)*(z - p)
 */
export interface ScheduleFreeAdamW {
name: "schedule_free_adamw"
/**
 * Learning rate; with a schedule, its base rate
 */
lr?: number
/**
 * Weight of the average x in the parameters, more than 0, and decay rate of exp_avg_sq
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
 * Weight decay: weight_decay times the parameter is added to the scaled gradient
 */
weight_decay?: number
/**
 * Number of steps in which the learning rate grows linearly from 0
 */
warmup_steps?: number
/**
 * Power of the step number in the weight of each step in the average
 */
r?: number
/**
 * Power of the largest learning rate so far in the weight of each step in the average
 */
weight_lr_power?: number
/**
 * Go up the gradient instead of down
 */
maximize?: boolean
/**
 * Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32
 */
state_dtype?: ("F32" | "BF16" | "Q8")
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * g += weight_decay*p; c = w_t/(w_1 + ... + w_t), w_t = t^r * lr_max^weight_lr_power; p += c*(z - p) - lr*(1 - momentum*(1-c))*g; z -= lr*g (first step: z = p before it); average: p + (1 - 1/momentum)*(z - p)
 */
export interface ScheduleFreeSGD {
name: "schedule_free_sgd"
/**
 * Learning rate; with a schedule, its base rate
 */
lr?: number
/**
 * Weight of the average x in the parameters; more than 0
 */
momentum?: number
/**
 * Weight decay (L2): weight_decay times the parameter is added to the gradient
 */
weight_decay?: number
/**
 * Number of steps in which the learning rate grows linearly from 0
 */
warmup_steps?: number
/**
 * Power of the step number in the weight of each step in the average
 */
r?: number
/**
 * Power of the largest learning rate so far in the weight of each step in the average
 */
weight_lr_power?: number
/**
 * Go up the gradient instead of down
 */
maximize?: boolean
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * g += weight_decay*p; buf = momentum*buf + (1-dampening)*g (first step: buf = g); p -= lr * (nesterov ? g + momentum*buf : momentum ? buf : g)
 */
export interface SGD {
name: "sgd"
/**
 * Learning rate; with a schedule, its base rate
 */
lr?: number
/**
 * Decay rate of momentum_buffer; 0 keeps no buffer
 */
momentum?: number
/**
 * Fraction of each new gradient that is not added to the buffer
 */
dampening?: number
/**
 * Weight decay (L2): weight_decay times the parameter is added to the gradient
 */
weight_decay?: number
/**
 * Nesterov momentum: step along the gradient plus momentum times the buffer
 */
nesterov?: boolean
/**
 * Go up the gradient instead of down
 */
maximize?: boolean
/**
 * Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32
 */
state_dtype?: ("F32" | "BF16" | "Q8")
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * buf = lerp(buf, g, 1-momentum); p -= lr*sign(buf)
 */
export interface Signum {
name: "signum"
/**
 * Learning rate; with a schedule, its base rate
 */
lr?: number
/**
 * Decay rate of momentum_buffer
 */
momentum?: number
/**
 * Weight decay; decoupled_weight_decay selects its form
 */
weight_decay?: number
/**
 * Subtract lr*weight_decay times the parameter from it, instead of adding weight_decay times the parameter to the gradient
 */
decoupled_weight_decay?: boolean
/**
 * Go up the gradient instead of down
 */
maximize?: boolean
/**
 * Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32
 */
state_dtype?: ("F32" | "BF16" | "Q8")
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * m = lerp(m, g, 1-beta1); v -= (1-beta2)*sign(v - g^2)*g^2; p -= lr * m/(1-beta1^t) / (sqrt(v/(1-beta2^t) + eps_root) + eps)
 */
export interface Yogi {
name: "yogi"
/**
 * Learning rate; with a schedule, its base rate
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
 * Added to the root of the second moment
 */
eps?: number
/**
 * Initial value of exp_avg and exp_avg_sq
 */
initial_accumulator_value?: number
/**
 * Weight decay; decoupled_weight_decay selects its form
 */
weight_decay?: number
/**
 * Subtract lr*weight_decay times the parameter from it, instead of adding weight_decay times the parameter to the gradient
 */
decoupled_weight_decay?: boolean
/**
 * Correct the moments (paper), the step size alone, so that eps is added to the uncorrected root (Keras, and Flower's FedAdam), or nothing
 */
bias_correction?: ("moments" | "step_size" | "none")
/**
 * Added under the root, as in optax
 */
eps_root?: number
/**
 * Go up the gradient instead of down
 */
maximize?: boolean
/**
 * Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average
 */
ema?: ({
/**
 * Weight of the old average; 1 - decay is that of the new parameter
 */
decay: number
} | null)
}
/**
 * A parameter group: hyperparameters, or another optimizer, for some tensors.
 */
export interface Group {
/**
 * Parameter names; * matches any characters. A parameter belongs to the first group that matches it.
 * 
 * @minItems 1
 */
tensors: [string, ...(string)[]]
/**
 * Hyperparameters that differ from the call's optimizer. With name, the group has an optimizer of its own: absent hyperparameters take that optimizer's defaults, and nothing is inherited from the call's.
 */
optimizer: { readonly name?: string; readonly [hyperparameter: string]: unknown }
}
/**
 * Describes how a safetensors file stores an optimizer's state; docs/state-conversion.md explains the formats.
 */
export interface Convention {
/**
 * stepd: stepd's own format; torch: a flattened state_dict; qhoptim: the same with bias-corrected moments, as in qhoptim and IPRally; optax: optax's own format.
 */
format: ("stepd" | "torch" | "qhoptim" | "optax")
/**
 * The optimizer of a file that is not in stepd's format; defaults to the call's.
 */
optimizer?: string
/**
 * torch and qhoptim: the parameter names by index in the file. Absent if the file itself contains names.
 */
names?: string[]
/**
 * qhoptim: the betas of the run, which must not have changed.
 * 
 * @minItems 2
 * @maxItems 2
 */
betas?: [number, number]
/**
 * The step count of parameters whose step count is not in the file.
 */
step?: number
}
/**
 * A converted state.
 */
export interface ConvertResult {
state: Blob
/**
 * One sentence for each part of the given state that the result cannot contain. Empty if converting back gives the same numbers.
 */
lost: string[]
}
/**
 * A state to convert: from one format to another (both default to stepd's own), to another optimizer of its family, or to more slots.
 */
export interface ConvertParams {
state: BlobSource
from?: Convention
to?: Convention
/**
 * The optimizer of the result, of the same family; defaults to the state's own. In a state of several optimizers, it replaces those of its family.
 */
optimizer?: string
/**
 * The format of the result's moments; defaults to the format that they have, and to F32 in the formats of other libraries.
 */
state_dtype?: ("F32" | "BF16" | "Q8")
/**
 * Slots to add if they are missing: max_exp_avg_sq as a copy of exp_avg_sq; momentum_buffer and grad_avg as zeros.
 */
fill?: string[]
}
/**
 * The complete description of one optimizer.
 */
export interface DescribeResult {
name: string
title: string
revision: number
/**
 * Optimizers of one family accept each other's state.
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
 * Slots of a parameter: the slots that the default hyperparameters need, and all possible slots.
 */
slots: {
default: string[]
all: string[]
}
/**
 * Bytes per element that an F32 step with the default hyperparameters transfers.
 */
bytes_per_parameter: {
in: number
out: number
state: number
}
}
/**
 * The optimizer to describe.
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
 * A symmetric matrix in the order of the updates.
 */
export interface DistancesResult {
/**
 * Sums of squared differences, in float64: block by block, then tensor by tensor in the order of the names' UTF-8 bytes.
 */
distances: Value[][]
}
/**
 * The squared distances between updates, for a choice among them such as Krum. Updates are deltas or gradients: between whole parameters, rounding may exceed the differences.
 */
export interface DistancesParams {
/**
 * The updates, all with the same tensors, as in optimizer.reduce. Weights have no influence.
 * 
 * @maxItems 256
 */
updates: Update[]
/**
 * The result of an earlier call for other tensors of the same updates, to which this call adds. Calls in the order of the names' UTF-8 bytes give the bits of one call.
 * 
 * @maxItems 256
 */
distances?: Value[][]
}
/**
 * One update: tensors, and their weight in the mean.
 */
export interface Update {
tensors: TensorsSource1
/**
 * Weight in the mean, for instance the number of examples. It must be 1 for the median and the trimmed mean.
 */
weight?: number
}
/**
 * The details of an error, besides its code and message.
 */
export interface ErrorData {
/**
 * Stable name of the error.
 */
name: string
/**
 * JSON pointer to the faulty parameter.
 */
field?: string
expected?: string
found?: string
/**
 * Seconds to wait before a retry.
 */
retry_after?: number
/**
 * Whose limit refused the call: `server` if the server is full, `share` if it is full and this caller holds the largest share of it, `caller` for a limit of this caller.
 */
limit?: ("server" | "share" | "caller")
/**
 * The first of the tensors concerned.
 */
tensors?: string[]
request_id?: string
}
/**
 * The schedule's values for each step of the range.
 */
export interface EvaluateResult {
/**
 * Learning rates.
 */
lrs: number[]
/**
 * Momentums, if the schedule cycles them. In a sequence, null at the steps of a schedule that does not cycle them.
 */
momentums?: (number | null)[]
}
/**
 * A range of steps of a schedule.
 */
export interface EvaluateParams {
schedule: Schedule
/**
 * The base learning rate. A step uses the optimizer's lr as its base rate.
 */
lr?: number
/**
 * Number of steps before the range; 0 starts at the first step.
 */
from?: number
/**
 * Number of steps in the range.
 */
count?: number
}
/**
 * lr_t = lr times the factors of all schedules at step t; a factor is the schedule's rate divided by lr
 */
export interface ChainedSchedule {
name: "chained"
/**
 * Schedules that multiply the base rate: all but one_cycle and cyclic, which set it
 * 
 * @minItems 1
 * @maxItems 64
 */
schedules: [Schedule, ...(Schedule)[]]
}
/**
 * lr_t = lr * factor for t < total_iters, or always if it is null, then lr
 */
export interface ConstantSchedule {
name: "constant"
/**
 * Factor of the base rate before step total_iters
 */
factor?: number
/**
 * Number of steps with the factor; null is all steps
 */
total_iters?: (number | null)
}
/**
 * lr_t = eta_min + (lr - eta_min) * (1 + cos(pi * t / T_max)) / 2
 */
export interface CosineSchedule {
name: "cosine"
/**
 * Steps from the base rate to eta_min
 */
T_max: number
/**
 * The lowest rate
 */
eta_min?: number
}
/**
 * lr_t = eta_min + (lr - eta_min) * (1 + cos(pi * T_cur / T_i)) / 2, T_cur steps after the last restart, T_i = T_0 * T_mult^i
 */
export interface CosineWarmRestartsSchedule {
name: "cosine_warm_restarts"
/**
 * Steps until the first restart
 */
T_0: number
/**
 * Factor from the length of one period to the next
 */
T_mult?: number
/**
 * The lowest rate
 */
eta_min?: number
}
/**
 * lr_t = base_lr + (max_lr - base_lr) * height * scale; height goes 0 -> 1 in step_size_up steps and back in step_size_down; scale is 1, 1/2^(completed cycles) or gamma^t by mode
 */
export interface CyclicSchedule {
name: "cyclic"
/**
 * The lowest rate
 */
base_lr: number
/**
 * The highest rate
 */
max_lr: number
/**
 * Steps in which the rate rises
 */
step_size_up?: number
/**
 * Steps in which the rate falls; null means step_size_up
 */
step_size_down?: (number | null)
/**
 * Change of the height from cycle to cycle
 */
mode?: ("triangular" | "triangular2" | "exp_range")
/**
 * Factor of the height per step in exp_range
 */
gamma?: number
/**
 * Cycle the momentum, or the first of betas, inversely to the rate
 */
cycle_momentum?: boolean
/**
 * The lowest momentum, at the highest rate
 */
base_momentum?: number
/**
 * The highest momentum, at base_lr
 */
max_momentum?: number
}
/**
 * lr_t = lr * gamma^t
 */
export interface ExponentialSchedule {
name: "exponential"
/**
 * Factor of the rate per step
 */
gamma: number
}
/**
 * lr_t = lr * t / warmup_steps for t < warmup_steps, then lr / sqrt((t - warmup_steps + timescale) / timescale)
 */
export interface InverseSqrtSchedule {
name: "inverse_sqrt"
/**
 * Steps from 0 to the base rate
 */
warmup_steps?: number
/**
 * Steps that divide the rate by the root of 2, after the warm-up; null is warmup_steps, or 10,000 without a warm-up
 */
timescale?: (number | null)
}
/**
 * lr_t = lr * (start_factor + (end_factor - start_factor) * min(t, total_iters) / total_iters)
 */
export interface LinearSchedule {
name: "linear"
/**
 * Factor of the base rate at the first step
 */
start_factor?: number
/**
 * Factor of the base rate from step total_iters on
 */
end_factor?: number
/**
 * Steps from start_factor to end_factor
 */
total_iters?: number
}
/**
 * lr_t = lr * gamma^(number of milestones <= t)
 */
export interface MultistepSchedule {
name: "multistep"
/**
 * Steps at which the rate decays, in ascending order; one that is listed twice decays twice
 * 
 * @maxItems 1024
 */
milestones: number[]
/**
 * Factor of the rate per decay
 */
gamma?: number
}
/**
 * max_lr/div_factor -> max_lr at t = pct_start*total_steps - 1 -> max_lr/div_factor/final_div_factor at t = total_steps - 1; three_phase goes back to max_lr/div_factor at t = 2*pct_start*total_steps - 2 before; no steps after
 */
export interface OneCycleSchedule {
name: "one_cycle"
/**
 * The highest rate
 */
max_lr: number
/**
 * Steps of the whole cycle
 */
total_steps: number
/**
 * Fraction of the cycle in which the rate rises
 */
pct_start?: number
/**
 * Shape of the curve between two rates
 */
anneal_strategy?: ("cos" | "linear")
/**
 * Cycle the momentum, or the first of betas, inversely to the rate
 */
cycle_momentum?: boolean
/**
 * The lowest momentum, where the rate is highest
 */
base_momentum?: number
/**
 * The highest momentum
 */
max_momentum?: number
/**
 * Ratio of max_lr to the first rate
 */
div_factor?: number
/**
 * Ratio of the first rate to the last
 */
final_div_factor?: number
/**
 * Fall to the first rate in as many steps as the rise, then to the last rate
 */
three_phase?: boolean
}
/**
 * lr_t = lr * (1 - min(t, total_iters) / total_iters)^power
 */
export interface PolynomialSchedule {
name: "polynomial"
/**
 * Steps until the rate is 0
 */
total_iters?: number
/**
 * Exponent: any number of at least 0, not only integers
 */
power?: number
}
/**
 * lr_t = schedules[i] at step t - milestones[i-1] with the same base rate, i = number of milestones <= t
 */
export interface SequenceSchedule {
name: "sequence"
/**
 * One schedule more than milestones; a schedule may be a sequence itself
 * 
 * @minItems 1
 * @maxItems 64
 */
schedules: [Schedule, ...(Schedule)[]]
/**
 * Steps at which the next schedule begins, in ascending order
 * 
 * @maxItems 1024
 */
milestones: number[]
}
/**
 * lr_t = lr * gamma^floor(t / step_size)
 */
export interface StepSchedule {
name: "step"
/**
 * Steps between two decays
 */
step_size: number
/**
 * Factor of the rate per decay
 */
gamma?: number
}
/**
 * lr_t = lrs[min(t, length - 1)]
 */
export interface TableSchedule {
name: "table"
/**
 * The rates of the steps, from the first one; later steps have the last rate
 * 
 * @minItems 1
 * @maxItems 10000
 */
lrs: [number, ...(number)[]]
}
/**
 * lr_t = lr times a line from start_factor to 1 in warmup_steps steps, then eta_min + (lr - eta_min) * (1 + cos(pi * (t - warmup_steps) / (total_steps - warmup_steps))) / 2 up to total_steps, then eta_min
 */
export interface WarmupCosineSchedule {
name: "warmup_cosine"
/**
 * Steps up to the base rate
 */
warmup_steps: number
/**
 * Steps up to eta_min, the warm-up included
 */
total_steps: number
/**
 * Factor of the base rate in the first step
 */
start_factor?: number
/**
 * The lowest rate
 */
eta_min?: number
}
/**
 * lr_t = lr times a line from min_lr_ratio to 1 in warmup_steps steps, then lr for stable_steps, then down to lr * min_lr_ratio in decay_steps by 1 - x, (1 + cos(pi * x)) / 2 or 1 - sqrt(x)
 */
export interface WarmupStableDecaySchedule {
name: "warmup_stable_decay"
/**
 * Steps up to the base rate
 */
warmup_steps: number
/**
 * Steps at the base rate
 */
stable_steps: number
/**
 * Steps down to the last rate
 */
decay_steps: number
/**
 * Shape of the fall
 */
decay_type?: ("linear" | "cosine" | "1-sqrt")
/**
 * Ratio of the first and the last rate to the base rate
 */
min_lr_ratio?: number
}
/**
 * The initial state, at step 0.
 */
export interface InitResult {
state: Blob
receipt?: Receipt
}
/**
 * What a call did: its options, and the SHA-256 of each blob in and out, in hexadecimal. Tensors in lists of numbers have the digest of the canonical safetensors file with the same tensors.
 */
export interface Receipt {
format: "stepd.receipt/1"
/**
 * The version of the service.
 */
version: string
method: ("optimizer.step" | "optimizer.init" | "optimizer.norms" | "optimizer.reduce")
/**
 * The call without its blobs. Its optimizers have all their hyperparameters.
 */
options: {
[k: string]: unknown
}
/**
 * The revision of each optimizer of the call. It rises with every change to the bits of a result.
 */
revisions: {
[k: string]: number
}
part?: ReceiptPart
/**
 * The digests of the call's blobs by field, for instance params, grads, state or reduce/updates/0/tensors.
 */
inputs: {
[k: string]: string
}
/**
 * The digests of the results: params and state of a step, and rounded_params if the reply has them; state of an initial state; grads or accumulator of a reduction.
 */
outputs: {
[k: string]: string
}
/**
 * The largest step count in the new state.
 */
step?: number
/**
 * Whether the call did nothing, because of non_finite skip or a reduction without updates.
 */
skipped?: boolean
grad_norm?: Value1
/**
 * The name of the key that signed the receipt: the SHA-256 of the public key in DER.
 */
key?: string
/**
 * The Ed25519 signature, in base64, of the receipt without this field, as canonical JSON (RFC 8785) in UTF-8.
 */
signature?: string
}
/**
 * Which part of a sharded step a call is. The parts of a step have one receipt each, with indexes from 0.
 */
export interface ReceiptPart {
index: number
count: number
}
/**
 * Parameters whose initial state is returned. Their values matter only with master_weights.
 */
export interface InitParams {
optimizer: Optimizer
/**
 * Parameter groups; a parameter belongs to the first one that matches it.
 * 
 * @maxItems 4096
 */
groups?: Group[]
params: TensorsSource
slices?: Slices
/**
 * Keep a float32 copy of each BF16 or F16 parameter in the state (slot master_param), and apply the steps to that copy.
 */
master_weights?: boolean
receipt?: ReceiptOption
}
/**
 * Contents of a state.
 */
export interface InspectResult {
format: "stepd.state/1"
/**
 * The optimizer of all parameters that name no other.
 */
optimizer: string
revision: number
/**
 * The revisions of the other optimizers in the state, by name; absent if there are none.
 */
revisions?: {
[k: string]: number
}
/**
 * Size of the state in bytes.
 */
bytes: number
/**
 * Number of elements in all slots.
 */
elements: number
/**
 * Steps and slots by parameter name.
 */
tensors: {
[k: string]: {
/**
 * The parameter's optimizer, if it differs from the state's.
 */
optimizer?: string
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
 * A state whose contents are listed.
 */
export interface InspectParams {
state: BlobSource
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
 * Sums by tensor. To get clip.total_norm, add grad_squares of all tensors of all calls in float64, in UTF-8 order of the names, and take the square root.
 */
export interface NormsResult {
/**
 * Sums by parameter name.
 */
tensors: {
[k: string]: TensorNorms
}
grad_norm: Value
/**
 * Warnings about this call.
 */
warnings?: string[]
/**
 * Handles of what the server has kept, for the step that follows.
 */
cached?: {
grads?: CachedBlob
}
receipt?: Receipt
}
export interface TensorNorms {
grad_squares: Value
param_squares?: Value
/**
 * Of a slice: the gradient's sum of squares over each 65,536 elements. The sums of all slices, added in the order of their offsets, are grad_squares of the whole tensor.
 */
grad_shard_squares?: Value[]
/**
 * The same of the parameter.
 */
param_shard_squares?: Value[]
zeros: number
non_finite: number
}
/**
 * A blob in the server's cache (STEPD_CACHE_MIB). The field cached of an earlier reply named it. The server may have evicted it.
 */
export interface CachedBlob {
/**
 * The name that the server gave the blob. It means nothing to other servers and other callers.
 */
handle: string
}
/**
 * Gradients, and optionally their parameters, whose sums of squares are computed: the first phase of exact clipping over several calls.
 */
export interface NormsParams {
grads: TensorsSource
params?: TensorsSource
slices?: Slices
/**
 * All gradients are first divided by this number: a normal float32.
 */
loss_scale?: number
/**
 * What the server keeps.
 */
reply?: {
/**
 * Keep the gradients in the server's cache, if it has one and they came as a blob. The reply's field cached has their handle, which one step uses up.
 */
cache?: boolean
}
receipt?: ReceiptOption
}
/**
 * Cost of a step as one call with a state.
 */
export interface PlanResult {
/**
 * Number of elements in all parameters.
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
 * Upper bound of the memory that the call needs on the server.
 */
arena_bytes: number
/**
 * Multiplications and additions in the matrix products of a step, such as those of muon; 0 for other optimizers.
 */
matrix_flops: number
/**
 * Whether this server accepts the step as one call.
 */
fits: boolean
/**
 * Number of calls to split the step into, so that several fit at once; 0 if too_large names a tensor. A tensor that does not fit counts as slices, unless its optimizer needs it whole.
 */
requests: number
/**
 * Tensors that are too large on their own, and that their optimizer needs whole. Calls can have slices of others.
 */
too_large: string[]
}
/**
 * A step whose cost is estimated, without its data.
 */
export interface PlanParams {
optimizer: Optimizer
/**
 * Parameter groups; a parameter belongs to the first one that matches it.
 * 
 * @maxItems 4096
 */
groups?: Group[]
/**
 * Shapes and dtypes of the parameters by name.
 */
tensors: { readonly [name: string]: { readonly shape: readonly number[]; readonly dtype?: Dtype } }
grad_dtype?: Dtype
/**
 * Keep a float32 copy of each BF16 or F16 parameter in the state (slot master_param), and apply the steps to that copy.
 */
master_weights?: boolean
}
/**
 * The pseudo-gradient, or the accumulator if the call does not finish.
 */
export interface ReduceResult {
grads?: Tensors
accumulator?: Blob1
/**
 * Number of updates in the result, including those of the accumulator. If tensors differ, the largest number.
 */
count: number
weight: Value2
/**
 * Indexes of the updates that were dropped because of non_finite drop.
 */
dropped: number[]
/**
 * Whether the result is empty: there is no update, or all weights are 0.
 */
skipped: boolean
receipt?: Receipt
}
/**
 * Combines the updates of several clients into one pseudo-gradient, in float64 and in the given order.
 */
export interface ReduceParams {
params?: TensorsSource2
updates: Updates
form?: Form
method?: ReduceMethod
/**
 * The accumulator of the last call, for a mean over several calls; null or absent in the first call.
 */
accumulator?: Uint8Array | string | SharedBlob | CachedBlob | null
non_finite?: NonFinite
missing?: Missing
/**
 * Whether the call returns the pseudo-gradient. Otherwise it returns the accumulator, for further updates in another call.
 */
finish?: boolean
receipt?: ReceiptOption
}
/**
 * The weighted mean: the sum of weight * update, divided by the sum of weights.
 */
export interface Mean {
name: "mean"
/**
 * Divisor instead of the sum of weights, for instance the expected sum.
 */
divisor?: (number | null)
}
/**
 * The median. For an even number of updates, it is the mean of the two middle values.
 */
export interface Median {
name: "median"
}
/**
 * The trimmed mean: each element's mean without its smallest and largest values, as many as cut at each end.
 */
export interface TrimmedMean {
name: "trimmed_mean"
/**
 * Number of values to remove at each end.
 */
cut: number
}
/**
 * New parameters and new state, unless the call omits them.
 */
export interface StepResult {
params?: TensorsResult
state?: BlobResult
/**
 * The largest step count in the new state.
 */
step: number
/**
 * The learning rate of this step.
 */
lr: number
/**
 * Whether the step did nothing, because of non_finite skip or a reduction without updates.
 */
skipped: boolean
stats?: Stats
reduce?: ReductionReport
/**
 * Warnings about this step, in alphabetical order.
 */
warnings?: string[]
cached?: Cached
receipt?: Receipt
}
/**
 * Euclidean norms of the gradients (after the loss scale, before clipping), of the parameters before the step, and of their change; counts of gradient values. Absent for a skipped step.
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
 * Whether clipping by norm scaled the gradients.
 */
clipped: boolean
/**
 * Statistics by parameter name.
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
 * What optimizer.reduce returns beside the pseudo-gradient.
 */
export interface ReductionReport {
/**
 * Number of updates in the result, including those of the accumulator. If tensors differ, the largest number.
 */
count: number
weight: Value3
/**
 * Indexes of the updates that were dropped because of non_finite drop.
 */
dropped: number[]
/**
 * Whether the result is empty: there is no update, or all weights are 0.
 */
skipped: boolean
}
/**
 * Handles of the results in the server's cache. The next call may send a handle instead of the bytes.
 */
export interface Cached {
params?: CachedBlob
state?: CachedBlob
}
/**
 * One optimizer step: parameters, gradients and state. The gradients are in grads, or the updates in reduce are combined into them. A gradient has the name and shape of its parameter. A parameter without a gradient does not change, and its step count stays.
 */
export interface StepParams {
optimizer: Optimizer
/**
 * Parameter groups; a parameter belongs to the first one that matches it.
 * 
 * @maxItems 4096
 */
groups?: Group[]
params: TensorsSource
grads?: TensorsSource
reduce?: Reduction
/**
 * The state of the last reply; null or absent at the first step.
 */
state?: Uint8Array | string | SharedBlob | CachedBlob | null
slices?: Slices
schedule?: Schedule
/**
 * Gradient clipping, after the loss scale.
 */
clip?: {
/**
 * Multiply all gradients by min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ does. The norm is over all gradients of the call, or total_norm.
 */
max_norm?: number
/**
 * Clamp each value to the range from -max_value to max_value.
 */
max_value?: number
/**
 * The norm over all gradients of the step, if this call has only some of them (optimizer.norms returns the sums). max_grad_norm of an optimizer uses it, too.
 */
total_norm?: number | "Infinity" | "NaN"
}
/**
 * All gradients are first divided by this number: a normal float32.
 */
loss_scale?: number
/**
 * What NaN or infinity in a gradient causes: error rejects the call, skip returns everything unchanged with skipped: true, propagate computes with it.
 */
non_finite?: ("error" | "skip" | "propagate")
/**
 * Whether another call of the same step has NaN or infinity in its gradients. If it has, non_finite applies to this call, too.
 */
others_non_finite?: boolean
/**
 * Statistics in the reply: none, over all tensors, or also of each tensor.
 */
stats?: ("none" | "global" | "tensor")
/**
 * Keep a float32 copy of each BF16 or F16 parameter in the state (slot master_param), and apply the steps to that copy.
 */
master_weights?: boolean
/**
 * Round BF16 parameters stochastically; equal seeds give equal bits. Without a seed, or with master weights, they are rounded to nearest even.
 */
stochastic_rounding?: {
seed: number
}
reply?: ReplyOptions
receipt?: ReceiptOption
}
/**
 * The updates of a step, combined into its gradients by optimizer.reduce. The parameters are those of the step.
 */
export interface Reduction {
updates: Updates
form?: Form1
method?: ReduceMethod1
/**
 * The accumulator of the last call, for a mean over several calls; null or absent in the first call.
 */
accumulator?: Uint8Array | string | SharedBlob | CachedBlob | null
non_finite?: NonFinite1
missing?: Missing1
}
/**
 * Selects the results in the reply, and their places.
 */
export interface ReplyOptions {
/**
 * The new parameters: unchanged, rounded to BF16 (to nearest even), or omitted.
 */
params?: ("same" | "bf16" | "none")
/**
 * The new state: included, or omitted if the server caches it.
 */
state?: ("same" | "none")
/**
 * Keep the new parameters and the new state in the server's cache, if it has one. The reply's field cached has their handles.
 */
cache?: boolean
into?: ReplyPlaces
}
/**
 * Places in the shared folder that receive the results instead of the reply. By default a result overwrites the blob that it replaces.
 */
export interface ReplyPlaces {
params?: SharedBlob
state?: SharedBlob
}
/**
 * A range of a file in the folder that the server shares with trainers on its host (STEPD_SHARED_DIR).
 */
export interface SharedBlob {
/**
 * Name of a regular file in the folder; with tokens, in the token's own subfolder.
 */
file: string
/**
 * Offset of the first byte.
 */
offset: number
/**
 * Number of bytes. For a place that receives a result, its maximum size.
 */
length: number
}
/**
 * A tensor as a list of numbers in row-major order, for small tensors and for curl.
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
