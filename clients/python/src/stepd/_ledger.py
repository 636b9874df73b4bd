"""Receipts of steps, and the ledger: a file that proves what an optimizer did."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ._calls import StepResult

Kept = Literal["grads", "params", "state"]

_KEPT: tuple[Kept, ...] = ("grads", "params", "state")

_DEFAULT: tuple[Kept, ...] = ("grads",)

_CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Receipt:
    """What one call did: its options, and the SHA-256 of each blob in and out."""

    #: The receipt as the server wrote it. ``docs/wire-format.md`` lists its fields.
    document: Mapping[str, Any] = field(hash=False)
    #: The blobs that this client sent or received, by field. They are views of the
    #: caller's arrays.
    inputs: Mapping[str, list[memoryview]] = field(repr=False, hash=False)
    outputs: Mapping[str, list[memoryview]] = field(repr=False, hash=False)


class Ledger:
    """A file with a line for each step: its receipt, in JSON.

    ``stepd verify`` checks a ledger and repeats its steps. Each line is on disk when
    :meth:`append` returns. A process that is killed leaves at most one torn line at the
    end, and the next Ledger of the file removes it.

    ``blobs`` names a folder that receives the blobs of ``keep``, as
    ``SHA256.safetensors``. Gradients alone are enough to repeat all steps, because the
    ledger always keeps the parameters and the state of its first step. ``every`` also
    keeps those of every n-th step, from which single steps can be repeated.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        blobs: str | os.PathLike[str] | None = None,
        keep: Collection[Kept] = _DEFAULT,
        every: int | None = None,
    ) -> None:
        unknown = sorted(set(keep) - set(_KEPT))
        if isinstance(keep, str) or unknown:
            raise ValueError(f"keep: expected some of {_KEPT}, found {keep!r}")
        if every is not None and every < 1:
            raise ValueError(f"every: expected at least 1, found {every}")
        self._blobs = None if blobs is None else pathlib.Path(blobs)
        self._keep = set(keep)
        self._every = every
        self._appended = 0
        if self._blobs is not None:
            self._blobs.mkdir(parents=True, exist_ok=True)
        self._file = _open(path)
        try:
            _lock(self._file, path)
            #: The bytes of a torn last line that this Ledger has removed.
            self.torn_bytes = _cut(self._file)
        except BaseException:
            self._file.close()
            raise
        _sync_folder(pathlib.Path(path).parent)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Ledger:
        # A copied optimizer continues the same file.
        return self

    def close(self) -> None:
        self._file.close()

    def append(self, result: StepResult) -> None:
        """Write the receipts of a step, with its blobs, to disk.

        Call it before the step's arrays change. Raises ValueError if the result has no
        receipt, or if a blob does not have the digest of the receipt.
        """
        receipts = result.receipts
        if not receipts:
            raise ValueError("expected a step with receipt=True, found no receipt")
        # The blobs of a line must exist before the line.
        for receipt in receipts:
            self._store(receipt)
        documents = [dict(receipt.document) for receipt in receipts]
        value = documents if len(documents) > 1 else documents[0]
        text = json.dumps(
            value, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        )
        line = memoryview(f"{text}\n".encode())
        end = self._file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())
        except BaseException:
            # A later line must not continue a torn one.
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise
        self._appended += 1

    def _store(self, receipt: Receipt) -> None:
        if self._blobs is None:
            return
        is_first = self._appended == 0
        is_due = self._every is not None and self._appended % self._every == 0
        keep = {*self._keep, "params", "state"} if is_first or is_due else self._keep
        for name, blobs in (("inputs", receipt.inputs), ("outputs", receipt.outputs)):
            digests = receipt.document[name]
            for key, parts in blobs.items():
                # Due inputs are kept, but not the outputs: they are the next inputs.
                if key in (keep if name == "inputs" else self._keep):
                    _write_blob(self._blobs, digests[key], parts, key)
        _sync_folder(self._blobs)


def _write_blob(
    folder: pathlib.Path, digest: str, parts: Iterable[memoryview], key: str
) -> None:
    path = folder / f"{digest}.safetensors"
    if path.exists():
        return
    partial = folder / f".{digest}.{os.getpid()}.partial"
    found = hashlib.sha256()
    try:
        with open(partial, "wb") as file:
            for part in parts:
                for start in range(0, part.nbytes, _CHUNK_BYTES):
                    chunk = part[start : start + _CHUNK_BYTES]
                    found.update(chunk)
                    file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if found.hexdigest() != digest:
            raise ValueError(
                f"{key}: expected the blob of the receipt (SHA-256 {digest}), found "
                f"{found.hexdigest()}: the arrays have changed since the step"
            )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _open(path: str | os.PathLike[str]) -> IO[bytes]:
    return open(path, "a+b", buffering=0)


def _cut(file: IO[bytes]) -> int:
    """Remove the bytes after the last newline, and return how many there were."""
    end = file.seek(0, os.SEEK_END)
    start = end
    while start > 0:
        size = min(_CHUNK_BYTES, start)
        file.seek(start - size)
        newline = file.read(size).rfind(b"\n")
        start -= size
        if newline >= 0:
            start += newline + 1
            break
    if start < end:
        file.truncate(start)
        os.fsync(file.fileno())
    return end - start


def _lock(file: IO[bytes], path: str | os.PathLike[str]) -> None:
    try:
        import fcntl
    except ImportError:  # Windows has no such lock.
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(f"another Ledger has {os.fspath(path)} open") from None


def _sync_folder(folder: pathlib.Path) -> None:
    """Write a folder's entries to disk. Windows does not open folders."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
