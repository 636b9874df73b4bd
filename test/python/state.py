"""Read a state with Python's safetensors, print what is in it, and write it again.

state.py IN OUT: a line of JSON on standard output, the tensors and metadata in OUT.
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
