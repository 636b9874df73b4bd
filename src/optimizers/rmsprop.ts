import { epsRoot, maximize } from "./_adam.ts";
import { defineOptimizer, flag, rate, stateDtype } from "./_define.ts";

/**
 * RMSprop, plain or centered, with or without momentum, as in torch.
 *
 *   s <- alpha*s + (1-alpha)*g^2;  centered: h <- alpha*h + (1-alpha)*g, q = s - h^2, else q = s
 *   u = g / (sqrt(q + eps_root) + eps);  with momentum: buf <- momentum*buf + u, p <- p - lr*buf, else p <- p - lr*u
 *
 * When centered, q is computed in float64 from unrounded averages, and is at least 0. torch rounds the averages first, so its q
 * can be negative and the root NaN.
 *
 * optax and Keras add their eps under the root: there it is eps_root, and eps is 0. Their momentum buffer contains lr, which is the
 * same as long as lr is constant.
 */
export default defineOptimizer({
  name: "rmsprop",
  title: "RMSprop",
  revision: 3,
  family: "rmsprop",
  formula:
    "g += weight_decay*p; s = lerp(s, g^2, 1-alpha); q = centered ? max(s - h^2, 0), h = lerp(h, g, 1-alpha) : s; u = g/(sqrt(q + eps_root) + eps); p -= lr * (momentum ? buf = momentum*buf + u : u)",
  references: [
    "Hinton, 2012, lecture 6e, https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf",
    "centered: Graves, 2013, https://arxiv.org/abs/1308.0850",
    "peers: torch.optim.RMSprop; optax.rmsprop and keras.optimizers.RMSprop (eps 0, eps_root for their eps, alpha 0.9)",
  ],
  hyperparameters: {
    lr: rate(1e-2, "Learning rate; with a schedule, its base rate"),
    alpha: rate(0.99, "Decay rate of square_avg and grad_avg"),
    eps: rate(1e-8, "Added to the root"),
    weight_decay: rate(0, "Weight decay (L2): weight_decay times the parameter is added to the gradient"),
    momentum: rate(0, "Decay rate of momentum_buffer; 0 keeps no buffer"),
    centered: flag("Divide by the deviation from the mean gradient (slot grad_avg)"),
    maximize,
    eps_root: epsRoot,
    state_dtype: stateDtype,
  },
  variants: {
    "rmsprop with eps_root": { eps: 0, eps_root: 1e-7 },
    rmsprop: { weight_decay: 0.01 },
    "rmsprop, centered with momentum": { centered: true, momentum: 0.9, alpha: 0.4, maximize: true },
  },
  slots: ({ momentum, centered }) => ["square_avg", ...(centered ? ["grad_avg"] : []), ...(momentum === 0 ? [] : ["momentum_buffer"])],
  allSlots: ["square_avg", "grad_avg", "momentum_buffer"],
  moments: { square_avg: "square", momentum_buffer: "signed" },
  lateSlots: ["momentum_buffer"],
  squareSlots: ["square_avg"],
  fills: { grad_avg: null, momentum_buffer: null },
  // The variance is a small difference of two averages. Rounding one of them could make it 0.
  check: ({ centered, state_dtype }) =>
    centered && state_dtype !== "F32" ? { field: "state_dtype", expected: "F32 where centered is true", found: state_dtype } : undefined,
  stages: ({ alpha, eps, eps_root, weight_decay, momentum, centered }) => [
    {
      kernel: "rmsprop",
      operands: ["param", "grad", "square_avg", centered ? "grad_avg" : "absent", momentum === 0 ? "absent" : "momentum_buffer"],
      sums: 0,
      scalars: ({ lr }) => [weight_decay, 1 - alpha, lr, momentum, eps, eps_root],
    },
  ],
});
