"""Reads a state with Python's safetensors, prints its contents, and writes it again.

state.py IN OUT prints a line of JSON, and writes the tensors and metadata to OUT.
"""

import json
import sys

from safetensors import safe_open
from safetensors.numpy import load, save_file


def main(source: str, target: str) -> None:
    with open(source, "rb") as file:
        tensors = load(file.read())
    with safe_open(source, framework="numpy") as file:
        metadata = file.metadata()
        names = list(file.keys())
    entries = {
        name: {
            "dtype": str(tensor.dtype),
            "shape": tensor.shape,
            "values": tensor.ravel().tolist(),
        }
        for name, tensor in tensors.items()
    }
    print(json.dumps({"metadata": metadata, "names": names, "entries": entries}))
    save_file(tensors, target, metadata)


main(*sys.argv[1:])
