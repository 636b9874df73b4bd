/** Settings to run every optimizer with in the suites over the registry. A new optimizer needs an entry here (test/optimizers/variants.test.ts). */
export interface Variant {
  readonly label: string;
  readonly optimizer: { readonly name: string; readonly [hyperparameter: string]: unknown };
  /** Whether tensors depend on each other, so that a step over shards needs the global norm first. */
  readonly isGlobal?: boolean;
}

export const variants: readonly Variant[] = [
  { label: "sgd", optimizer: { name: "sgd", lr: 0.1 } },
  { label: "sgd with momentum and dampening", optimizer: { name: "sgd", lr: 0.1, momentum: 0.9, dampening: 0.1, weight_decay: 0.01 } },
  { label: "sgd with Nesterov, maximizing", optimizer: { name: "sgd", lr: 0.1, momentum: 0.9, nesterov: true, maximize: true } },
  { label: "qhm", optimizer: { name: "qhm", lr: 0.5, momentum: 0.9, nu: 0.7, weight_decay: 0.01 } },
  { label: "qhm, direct decay", optimizer: { name: "qhm", lr: 0.5, momentum: 0.999, nu: 0.7, weight_decay: 0.01, weight_decay_type: "direct" } },
  { label: "adam", optimizer: { name: "adam", weight_decay: 0.01 } },
  { label: "adam with amsgrad", optimizer: { name: "adam", amsgrad: true, maximize: true } },
  { label: "adam with small betas", optimizer: { name: "adam", betas: [0.4, 0.3] } },
  { label: "adam, Nesterov", optimizer: { name: "adam", nesterov: true, eps_root: 1e-8 } },
  { label: "adamw", optimizer: { name: "adamw" } },
  { label: "adamw, undecayed scale", optimizer: { name: "adamw", weight_decay_scale: "none", weight_decay: 0.001, amsgrad: true } },
  { label: "qhadam", optimizer: { name: "qhadam", weight_decay: 0.01 } },
  { label: "qhadam with nu2", optimizer: { name: "qhadam", nus: [0.8, 0.9] } },
  { label: "qhadamw", optimizer: { name: "qhadamw", weight_decay: 0.01 } },
  { label: "lamb", optimizer: { name: "lamb" } },
  {
    label: "lamb, decoupled and bounded",
    optimizer: { name: "lamb", weight_decay_mode: "decoupled", trust_max: 10, bias_correction: "step_size", grad_averaging: false },
  },
  { label: "lamb with caution", optimizer: { name: "lamb", caution: true } },
  { label: "lamb with max_grad_norm", optimizer: { name: "lamb", max_grad_norm: 1 }, isGlobal: true },
  { label: "nadam", optimizer: { name: "nadam", weight_decay: 0.01 } },
  { label: "nadam, decoupled", optimizer: { name: "nadam", weight_decay: 0.01, decoupled_weight_decay: true, momentum_decay: 0.1, maximize: true } },
  { label: "radam", optimizer: { name: "radam", weight_decay: 0.01 } },
  {
    label: "radam, never rectified, decoupled",
    optimizer: { name: "radam", betas: [0.9, 0.4], weight_decay: 0.01, decoupled_weight_decay: true, maximize: true },
  },
  { label: "adamax", optimizer: { name: "adamax", weight_decay: 0.01 } },
  { label: "adamax with small betas", optimizer: { name: "adamax", betas: [0.4, 0.3], maximize: true } },
  { label: "rmsprop", optimizer: { name: "rmsprop", weight_decay: 0.01 } },
  { label: "rmsprop, centered with momentum", optimizer: { name: "rmsprop", centered: true, momentum: 0.9, alpha: 0.4, maximize: true } },
  { label: "adagrad", optimizer: { name: "adagrad", lr_decay: 0.1, weight_decay: 0.01, initial_accumulator_value: 0.5 } },
  { label: "adagrad, maximizing", optimizer: { name: "adagrad", maximize: true } },
  { label: "adadelta", optimizer: { name: "adadelta", weight_decay: 0.01 } },
  { label: "adadelta with small rho", optimizer: { name: "adadelta", rho: 0.3, maximize: true } },
  { label: "lars", optimizer: { name: "lars", weight_decay: 0.01, nesterov: true } },
  { label: "lars of optax", optimizer: { name: "lars", trust_denominator: "decayed_grad", lr_in_momentum: true, eps: 0, weight_decay: 0.01 } },
  { label: "lars without momentum, clipped", optimizer: { name: "lars", momentum: 0, trust_clip: true, always_adapt: true } },
  { label: "lars with dampening", optimizer: { name: "lars", dampening: 0.1, weight_decay: 0.01 } },
  { label: "lion", optimizer: { name: "lion", weight_decay: 0.1 } },
  { label: "lion with caution", optimizer: { name: "lion", caution: true, weight_decay: 0.1 } },
  { label: "lion with small betas", optimizer: { name: "lion", betas: [0.4, 0.3], maximize: true } },
];
