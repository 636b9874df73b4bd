"""Change one byte of a gradient, of a state and of a receipt, and verify each time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def flip(path: Path, at: int) -> None:
    """Change one bit of a file."""
    file = bytearray(path.read_bytes())
    file[at] ^= 1
    path.write_bytes(file)


def change_blob(folder: Path, line: int, field: str) -> None:
    receipt = json.loads((folder / "run.jsonl").read_text().splitlines()[line - 1])
    flip(folder / f"blobs/{receipt['inputs'][field]}.safetensors", -1)


def change_receipt(folder: Path, line: int) -> None:
    """Change the first digit of a learning rate."""
    ledger = folder / "run.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    before = sum(map(len, lines[: line - 1]))
    flip(ledger, before + lines[line - 1].index(b'"lr":') + len(b'"lr":0.00'))


CHANGES: dict[str, Callable[[Path], None]] = {
    "a gradient of step 57": lambda folder: change_blob(folder, 57, "grads"),
    "the state before step 121": lambda folder: change_blob(folder, 121, "state"),
    "the receipt of step 150": lambda folder: change_receipt(folder, 150),
}


def main() -> int:
    folder = Path(sys.argv[1])
    verify = sys.argv[sys.argv.index("--") + 1 :]
    missed = 0
    for what, change in CHANGES.items():
        changed = folder / "changed"
        shutil.rmtree(changed, ignore_errors=True)
        shutil.copytree(folder / "blobs", changed / "blobs")
        shutil.copy(folder / "run.jsonl", changed)
        change(changed)
        keys = ["--key", str(folder / "public.pem")]
        blobs = ["--blobs", str(changed / "blobs"), "--json"]
        command = [*verify, str(changed / "run.jsonl"), *keys, *blobs]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        report = json.loads(ended.stdout)
        print(f"\nOne byte of {what} changed: exit code {ended.returncode}")
        for problem in report["problems"]:
            tensors = ", ".join(problem.get("tensors", [])) or "unknown"
            print(f"  step {problem['step']}: {problem['check']}: {tensors}: ", end="")
            print(problem["message"].replace(f"{changed}/", ""))
        missed += ended.returncode != 1
        shutil.rmtree(changed)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
