"""Train the digits classifier for 200 steps, and keep a ledger with all its blobs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import stepd

sys.path.insert(0, str(Path(__file__).parent.parent / "digits"))
from train import SETTINGS, accuracy, batches_of, init, loss_and_grads

STEPS = 200


def main() -> None:
    out = Path(sys.argv[1])
    images, labels = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        (images / 16).astype(np.float32),
        labels.astype(np.int32),
        test_size=0.2,
        stratify=labels,
        random_state=SETTINGS["seed"],
    )
    rng = np.random.default_rng(SETTINGS["seed"])
    params = init(rng, x_train.shape[1], 10)
    batches = batches_of(rng, len(x_train), 10).reshape(-1, 64)[:STEPS]
    optimizer = {"name": "adamw", "lr": 3e-3}
    schedule = {"name": "cosine", "T_max": STEPS}
    state = None
    keep = ("grads", "params", "state")
    with (
        stepd.Client(os.environ["STEPD_URL"]) as client,
        stepd.Ledger(out / "run.jsonl", blobs=out / "blobs", keep=keep) as ledger,
    ):
        for batch in batches:
            _, grads = loss_and_grads(params, x_train[batch], y_train[batch])
            result = client.step(
                optimizer,
                params,
                grads,
                state,
                groups=SETTINGS["groups"],
                schedule=schedule,
                clip={"max_norm": 1.0},
                ledger=ledger,
            )
            params, state = result.params, result.state
    reached = accuracy(params, x_test, y_test)
    print(f"{result.step} steps, test accuracy {reached:.2%}, ledger {out}/run.jsonl")


if __name__ == "__main__":
    main()
