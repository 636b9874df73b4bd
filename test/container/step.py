"""Trains a small model through the Python client: python step.py URL FIRST LAST FOLDER.

Takes the steps FIRST to LAST - 1, and prints a line after each step. Reads parameters
and state from FOLDER and writes them back, so that another program can continue.
"""

import sys
from pathlib import Path

import numpy as np
import stepd


def gradient(step: int, size: int) -> np.ndarray:
    """Return small fractions, exact in float32, so that all languages agree."""
    return ((np.arange(size) * 7 + step * 3) % 16 - 7.5).astype(np.float32) / 8


def main(url: str, first: int, last: int, folder: Path) -> None:
    names = ("b", "w")
    params = {name: np.fromfile(folder / f"{name}.f32", np.float32) for name in names}
    file = folder / "state.safetensors"
    state = stepd.State.load(file) if first > 0 else None
    retries = stepd.Retry(attempts=60, longest=0.5)
    with stepd.Client(url, retries=retries) as client:
        for step in range(first, last):
            grads = {name: gradient(step, array.size) for name, array in params.items()}
            result = client.step({"name": "adamw", "lr": 0.01}, params, grads, state)
            params, state = result.params, result.state
            print(result.step, flush=True)
    for name, array in params.items():
        array.tofile(folder / f"{name}.f32")
    if state is not None:
        state.save(file)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
