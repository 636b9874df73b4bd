// DO NOT EDIT: written by `npm run generate`.
/** Whether an optimizer needs whole tensors: always, never, or with a hyperparameter. */
export const WHOLE_TENSORS: Readonly<Record<string, boolean | string>> = {
  adabelief: false,
  adadelta: false,
  adafactor: true,
  adagrad: false,
  adam: "caution",
  adamax: false,
  adamw: "caution",
  adan: false,
  ademamix: false,
  adopt: false,
  asgd: false,
  lamb: true,
  lars: true,
  lion: "caution",
  muon: true,
  nadam: false,
  prodigy: true,
  qhadam: false,
  qhadamw: false,
  qhm: false,
  radam: false,
  rmsprop: false,
  rprop: false,
  schedule_free_adamw: false,
  schedule_free_sgd: false,
  sgd: false,
  signum: false,
  yogi: false,
};

/** The optimizers whose step needs all of their tensors in one call. */
export const ALL_TENSORS: readonly string[] = ["prodigy"];
