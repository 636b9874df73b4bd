"""Train a classifier of handwritten digits with every optimizer step done by stepd.

The model is an MLP in numpy with its gradients written out by hand. Each minibatch
sends parameters, gradients and state to the service as MessagePack and goes on with
what comes back. Nothing about the optimizer lives in this process.
"""

from __future__ import annotations

import argparse
import http.client
import json
import struct
import sys
from typing import Any
from urllib.parse import urlsplit

import msgpack
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

Tensors = dict[str, np.ndarray]

GOAL = 0.95
BATCH = 64
HIDDEN = 64
SEED = 7

# What each optimizer is asked to do; what is not named takes the service's default.
SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    "qhm": {"lr": 0.5, "momentum": 0.9, "nu": 0.7},
    "adam": {"lr": 3e-3},
    "adamw": {"lr": 3e-3},
    "qhadam": {"lr": 3e-3},
    "qhadamw": {"lr": 3e-3, "weight_decay": 0.01},
    "lamb": {"lr": 1e-2},
}


class Stepd:
    """A stepd server over one connection that stays open."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.connection = http.client.HTTPConnection(
            parts.hostname or "127.0.0.1", parts.port or 8080, timeout=60
        )

    def call(self, method: str, params: dict[str, Any]) -> Any:
        body = msgpack.packb(
            {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        )
        self.connection.request(
            "POST", "/rpc", body, {"Content-Type": "application/vnd.msgpack"}
        )
        reply = msgpack.unpackb(self.connection.getresponse().read())
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply['error']['message']}")
        return reply["result"]


def to_safetensors(tensors: Tensors) -> bytes:
    """A safetensors file: the header's length, the header in JSON, the data."""
    header, end = {}, 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": array.shape,
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
    text = json.dumps(header).encode()
    data = (array.astype("<f4", copy=False).tobytes() for array in tensors.values())
    return struct.pack("<Q", len(text)) + text + b"".join(data)


def from_safetensors(file: bytes) -> Tensors:
    start = 8 + struct.unpack_from("<Q", file)[0]
    header = json.loads(file[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        data = np.frombuffer(file[start + begin : start + end], "<f4")
        tensors[name] = data.reshape(entry["shape"])
    return tensors


def init(rng: np.random.Generator, inputs: int, outputs: int) -> Tensors:
    def weight(rows: int, columns: int) -> np.ndarray:
        values = rng.standard_normal((rows, columns)) * np.sqrt(2 / rows)
        return values.astype(np.float32)

    return {
        "hidden.weight": weight(inputs, HIDDEN),
        "hidden.bias": np.zeros(HIDDEN, np.float32),
        "output.weight": weight(HIDDEN, outputs),
        "output.bias": np.zeros(outputs, np.float32),
    }


def forward(params: Tensors, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hidden = np.maximum(x @ params["hidden.weight"] + params["hidden.bias"], 0)
    return hidden, hidden @ params["output.weight"] + params["output.bias"]


def loss_and_grads(
    params: Tensors, x: np.ndarray, y: np.ndarray
) -> tuple[float, Tensors]:
    """Mean cross-entropy of a batch and its gradient by every parameter."""
    hidden, logits = forward(params, x)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    rows = np.arange(len(y))
    loss = -log_probs[rows, y].mean()

    d_logits = np.exp(log_probs)
    d_logits[rows, y] -= 1
    d_logits /= len(y)
    d_hidden = (d_logits @ params["output.weight"].T) * (hidden > 0)
    return float(loss), {
        "hidden.weight": x.T @ d_hidden,
        "hidden.bias": d_hidden.sum(axis=0),
        "output.weight": hidden.T @ d_logits,
        "output.bias": d_logits.sum(axis=0),
    }


def accuracy(params: Tensors, x: np.ndarray, y: np.ndarray) -> float:
    return float((forward(params, x)[1].argmax(axis=1) == y).mean())


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--url",
        default="http://127.0.0.1:8080",
        help="where stepd listens (%(default)s)",
    )
    parser.add_argument(
        "--optimizer",
        default="adamw",
        help="any optimizer of the service (%(default)s)",
    )
    parser.add_argument(
        "--lr", type=float, help="learning rate (one that suits the optimizer)"
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=30,
        help="passes over the training set (%(default)s)",
    )
    return parser.parse_args()


def main() -> int:
    arguments = read_arguments()
    images, labels = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        (images / 16).astype(np.float32),
        labels,
        test_size=0.2,
        stratify=labels,
        random_state=SEED,
    )
    rng = np.random.default_rng(SEED)
    params = init(rng, x_train.shape[1], 10)
    optimizer = {"name": arguments.optimizer, **SETTINGS.get(arguments.optimizer, {})}
    if arguments.lr is not None:
        optimizer["lr"] = arguments.lr
    groups = [{"tensors": ["*.bias"], "optimizer": {"weight_decay": 0.0}}]
    stepd = Stepd(arguments.url)
    state = None

    batches = len(x_train) // BATCH
    size = sum(array.size for array in params.values())
    print(f"{len(x_train)} images to train, {len(x_test)} to test, {size} parameters")
    print(f"optimizer {optimizer}")
    with tqdm(total=arguments.epochs * batches, unit="step") as bar:
        for epoch in range(1, arguments.epochs + 1):
            losses = []
            for batch in np.split(
                rng.permutation(len(x_train))[: batches * BATCH], batches
            ):
                loss, grads = loss_and_grads(params, x_train[batch], y_train[batch])
                result = stepd.call(
                    "optimizer.step",
                    {
                        "optimizer": optimizer,
                        "groups": groups,
                        "params": to_safetensors(params),
                        "grads": to_safetensors(grads),
                        "state": state,
                    },
                )
                params, state = from_safetensors(result["params"]), result["state"]
                losses.append(loss)
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                bar.update()
            bar.write(f"epoch {epoch:3d}  loss {np.mean(losses):.4f}", file=sys.stdout)

    reached = accuracy(params, x_test, y_test)
    print(f"test accuracy {reached:.2%} after {result['step']} steps")
    return 0 if reached > GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
