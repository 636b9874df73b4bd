"""Train a classifier of handwritten digits with every optimizer step done by stepd.

The model is an MLP in numpy with its gradients written out by hand. Each minibatch
sends parameters, gradients and state to the service as MessagePack, and continues with
the reply. Nothing about the optimizer lives in this process.

The run can stop at any step and resume later, also in another language: see
examples/go-trainer.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgpack
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

Tensors = dict[str, np.ndarray]

BATCH = 64
HIDDEN = 64

# Hyperparameters of each optimizer, and the other settings that the trainers of all
# languages share. The service's defaults apply to absent hyperparameters.
SETTINGS = json.loads(Path(__file__).with_name("settings.json").read_text())

DTYPES = {"F32": "<f4", "I32": "<i4", "I64": "<i8"}


class Stepd:
    """A stepd server, called over one persistent connection."""

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
        response = self.connection.getresponse()
        answer = response.read()
        if response.getheader("Content-Type") != "application/vnd.msgpack":
            # The reply came from a proxy, or from another service at that address.
            raise RuntimeError(f"{method}: HTTP {response.status}: {answer[:200]!r}")
        reply = msgpack.unpackb(answer)
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply['error']['message']}")
        return reply["result"]


def to_safetensors(tensors: Tensors) -> bytes:
    """Encode a safetensors file: the header's length, the header in JSON, the data."""
    names = {np.dtype(code): name for name, code in DTYPES.items()}
    header, end = {}, 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": names[array.dtype],
            "shape": array.shape,
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
    text = json.dumps(header).encode()
    data = (array.tobytes() for array in tensors.values())
    return struct.pack("<Q", len(text)) + text + b"".join(data)


def from_safetensors(file: bytes) -> Tensors:
    start = 8 + struct.unpack_from("<Q", file)[0]
    header = json.loads(file[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        data = np.frombuffer(file[start + begin : start + end], DTYPES[entry["dtype"]])
        tensors[name] = data.reshape(entry["shape"])
    return tensors


def steps_of(state: bytes | None) -> int:
    """Return the number of steps that a state has taken."""
    slots = from_safetensors(state) if state else {}
    return max((int(slots[key]) for key in slots if key.startswith("step/")), default=0)


def save(path: str, file: bytes) -> None:
    """Write a file atomically: no other process sees a partial file."""
    partial = f"{path}.{os.getpid()}.part"
    Path(partial).write_bytes(file)
    os.replace(partial, path)


def init(rng: np.random.Generator, inputs: int, outputs: int) -> Tensors:
    def weight(rows: int, columns: int) -> np.ndarray:
        values: np.ndarray = rng.standard_normal((rows, columns)) * np.sqrt(2 / rows)
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
    """Return the mean cross-entropy of a batch, and its gradient for every parameter.
    """
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


def batches_of(rng: np.random.Generator, count: int, epochs: int) -> np.ndarray:
    """Return the images of each step, as an array of indexes: epochs x batches x BATCH.
    """
    batches = count // BATCH
    order = [rng.permutation(count)[: batches * BATCH] for _ in range(epochs)]
    return np.array(order, np.int32).reshape(epochs, batches, BATCH)


def accuracy(params: Tensors, x: np.ndarray, y: np.ndarray) -> float:
    return float((forward(params, x)[1].argmax(axis=1) == y).mean())


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--url",
        default=os.environ.get("STEPD_URL", "http://127.0.0.1:8080"),
        help="where stepd listens, also as STEPD_URL (%(default)s)",
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
    parser.add_argument(
        "--seed",
        type=int,
        default=SETTINGS["seed"],
        help="of the split, the first parameters and the batches (%(default)s)",
    )
    parser.add_argument(
        "--stop-after",
        type=int,
        metavar="STEP",
        help="end before the last epoch, after this step of the whole run",
    )
    parser.add_argument(
        "--save",
        metavar="PREFIX",
        help="write PREFIX.params, .state and .grads (of the last step) .safetensors",
    )
    parser.add_argument(
        "--resume",
        metavar="PREFIX",
        help="go on from what --save wrote, here or in another language",
    )
    parser.add_argument(
        "--replay",
        metavar="FILE",
        help="take the gradients of the first step from a file",
    )
    parser.add_argument(
        "--export",
        metavar="FILE",
        help="only write images, labels, first parameters and batches, for a trainer "
        "in another language",
    )
    return parser.parse_args()


def main() -> int:
    arguments = read_arguments()
    images, labels = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        (images / 16).astype(np.float32),
        labels.astype(np.int32),
        test_size=0.2,
        stratify=labels,
        random_state=arguments.seed,
    )
    rng = np.random.default_rng(arguments.seed)
    params = init(rng, x_train.shape[1], 10)
    batches = batches_of(rng, len(x_train), arguments.epochs)
    if arguments.export:
        data = {"seed": np.array(arguments.seed, np.int32)}
        data |= {"train.images": x_train, "train.labels": y_train, "batches": batches}
        data |= {"test.images": x_test, "test.labels": y_test}
        data |= {f"params/{name}": array for name, array in params.items()}
        save(arguments.export, to_safetensors(data))
        return 0

    state: bytes | None = None
    grads: Tensors = {}
    if arguments.resume:
        params = from_safetensors(
            Path(f"{arguments.resume}.params.safetensors").read_bytes()
        )
        state = Path(f"{arguments.resume}.state.safetensors").read_bytes()
    replayed = (
        from_safetensors(Path(arguments.replay).read_bytes())
        if arguments.replay
        else None
    )
    optimizers = SETTINGS["optimizers"]
    optimizer = {"name": arguments.optimizer, **optimizers.get(arguments.optimizer, {})}
    if arguments.lr is not None:
        optimizer["lr"] = arguments.lr
    stepd = Stepd(arguments.url)

    done, total = steps_of(state), batches.shape[0] * batches.shape[1]
    stop = total if arguments.stop_after is None else min(arguments.stop_after, total)
    size = sum(array.size for array in params.values())
    print(f"{len(x_train)} images to train, {len(x_test)} to test, {size} parameters")
    print(f"optimizer {optimizer}")
    losses = []
    with tqdm(total=total, initial=done, unit="step") as bar:
        for step in range(done, stop):
            epoch, index = divmod(step, batches.shape[1])
            batch = batches[epoch, index]
            loss, grads = loss_and_grads(params, x_train[batch], y_train[batch])
            if replayed:
                grads, replayed = replayed, None
            result = stepd.call(
                "optimizer.step",
                {
                    "optimizer": optimizer,
                    "groups": SETTINGS["groups"],
                    "params": to_safetensors(params),
                    "grads": to_safetensors(grads),
                    "state": state,
                },
            )
            params, state = from_safetensors(result["params"]), result["state"]
            losses.append(loss)
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()
            if index + 1 == batches.shape[1]:
                mean = np.mean(losses)
                bar.write(f"epoch {epoch + 1:3d}  loss {mean:.4f}", file=sys.stdout)
                losses.clear()

    if arguments.save:
        save(f"{arguments.save}.params.safetensors", to_safetensors(params))
        save(f"{arguments.save}.grads.safetensors", to_safetensors(grads))
        if state is not None:
            save(f"{arguments.save}.state.safetensors", state)
    reached = accuracy(params, x_test, y_test)
    print(f"test accuracy {reached:.2%} after {steps_of(state)} steps")
    return 0 if reached > SETTINGS["goal"] or stop < total else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, RuntimeError) as error:
        sys.exit(f"train.py: {error}")
