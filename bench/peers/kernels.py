"""Times torch's own optimizers on arrays in memory, on command: kernels.py THREADS

Reads one command per line and answers each command with one line. `prepare OPTIMIZER
ELEMENTS` returns "ok". `fused REPETITIONS` and `foreach REPETITIONS` return the
milliseconds of a step, as the mean of REPETITIONS steps in a row. The benchmark
competes with `fused`; `foreach` is torch's default on a CPU.
"""

from __future__ import annotations

import sys
import time

import torch

IMPLEMENTATIONS = ("fused", "foreach")
GAP_BYTES = 65536


def fill(array: torch.Tensor, signed: bool, seed: int) -> None:
    """Fill with magnitudes from 0.25 to 1, so that no average becomes subnormal."""
    generator = torch.Generator().manual_seed(seed)
    array.uniform_(0.25, 1, generator=generator)
    if signed:
        array[::2].neg_()


def arrays_of(elements: int) -> list[torch.Tensor]:
    """Return four arrays, with the same gap between them as in ../harness.ts."""
    stride = elements + GAP_BYTES // 4
    memory = torch.empty(4 * stride)
    return [memory[i * stride : i * stride + elements] for i in range(4)]


def optimizer_of(
    name: str, elements: int, implementation: str
) -> torch.optim.Optimizer:
    values, gradient, slot0, slot1 = arrays_of(elements)
    fill(values, True, 1)
    fill(gradient, True, 2)
    fill(slot0, True, 3)
    fill(slot1, False, 4)
    parameter = torch.nn.Parameter(values)
    parameter.grad = gradient
    fused, foreach = implementation == "fused", implementation == "foreach"
    optimizer: torch.optim.Optimizer
    if name == "adamw":
        optimizer = torch.optim.AdamW(
            [parameter], lr=1e-3, fused=fused, foreach=foreach
        )
        step = torch.tensor(100.0)
        slots = {"step": step, "exp_avg": slot0, "exp_avg_sq": slot1}
        optimizer.state[parameter] = slots
    elif name == "sgd":
        optimizer = torch.optim.SGD(
            [parameter], lr=1e-3, momentum=0.9, fused=fused, foreach=foreach
        )
        optimizer.state[parameter] = {"momentum_buffer": slot0}
    else:
        raise ValueError(f"expected adamw or sgd, found {name}")
    return optimizer


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    print(f"torch {torch.__version__}", flush=True)
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for line in sys.stdin:
        match line.split():
            case ["prepare", name, elements]:
                # The old arrays are freed first: at 64 Mi elements the arrays take a
                # gigabyte.
                optimizers.clear()
                for implementation in IMPLEMENTATIONS:
                    optimizers[implementation] = optimizer_of(
                        name, int(elements), implementation
                    )
                print("ok", flush=True)
            case [implementation, repetitions]:
                step = optimizers[implementation].step
                count = int(repetitions)
                start = time.perf_counter()
                for _ in range(count):
                    step()
                elapsed = time.perf_counter() - start
                print(1000 * elapsed / count, flush=True)
            case _:
                raise ValueError(f"expected a command, found {line!r}")


if __name__ == "__main__":
    main()
