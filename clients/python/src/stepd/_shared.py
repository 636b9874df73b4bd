"""A folder that the client shares with a server on its host, for instance in /dev/shm.

The client writes its blobs to files in the folder, and the server writes results to
other files there. The connection carries only file names, offsets and lengths. Files
are mapped into memory. A file is reused as soon as no array views it.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import secrets
import weakref
from typing import Any

import numpy as np

from ._memory import Pool, Region
from ._wire import Blob

#: Smaller blobs go over the connection, which is as fast.
SHARED_BYTES = 65536

#: Parts below this size are compared by value, because an equal copy may be elsewhere.
_COMPARED_BYTES = 4096

#: The file system allocates whole pages, so the sizes of files are whole pages.
_PAGE_BYTES = 4096


class SharedFile(Region):
    """A file of the folder. Removed at garbage collection or process exit."""

    def __init__(self, folder: str, nbytes: int) -> None:
        # The name is unguessable, because any process that knows it could write to the
        # file.
        self.name = f"stepd-{secrets.token_hex(16)}"
        path = os.path.join(folder, self.name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        handle = os.open(path, flags, 0o660)
        self.pid = os.getpid()
        self.remove = weakref.finalize(self, _remove, path, self.pid)
        try:
            size = -(-nbytes // _PAGE_BYTES) * _PAGE_BYTES
            # Allocate now, because the first write to an unallocated page of a full
            # file system ends the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle, 0, size)
            else:
                with open(handle, "wb", closefd=False) as file:
                    file.write(bytes(size))
            super().__init__(memoryview(mmap.mmap(handle, size)))
        except OSError as error:
            self.remove()
            sentence = f"{folder} has no room for {nbytes} bytes of a call"
            raise OSError(error.errno or errno.ENOSPC, sentence) from error
        finally:
            os.close(handle)
        self.address = _address(self.memory)


def _remove(path: str, pid: int) -> None:
    # A forked child must not remove its parent's files.
    if os.getpid() == pid:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


class Place(dict[str, Any]):
    """A range of a file in the folder: file, offset and length, as on the wire.

    ``parts`` are views of the file. While any view lives, the file is not reused.
    """

    def __init__(self, file: SharedFile, offset: int, parts: list[memoryview]) -> None:
        length = sum(part.nbytes for part in parts)
        super().__init__(file=file.name, offset=offset, length=length)
        self._file = file
        self._parts = parts

    def written(self, reply: Any) -> memoryview:
        """Return the written bytes. Raises ValueError if they lie elsewhere."""
        if reply["file"] != self["file"] or reply["offset"] != self["offset"]:
            raise ValueError(f"expected bytes in {self['file']}, found {reply!r}")
        # The reply shows that the server has finished with the file.
        self._file.is_reusable = True
        return self._parts[0][: reply["length"]]


class SharedFolder(Pool):
    """The files that this client keeps in one folder.

    Raises OSError if the folder is missing or not writable.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        if not isinstance(path, (str, os.PathLike)) or not path:
            raise TypeError(f"shared_dir: expected a folder's path, found {path!r}")
        self._path = os.path.abspath(path)
        self._files: weakref.WeakValueDictionary[str, SharedFile]
        self._files = weakref.WeakValueDictionary()
        try:
            SharedFile(self._path, 1).remove()
        except OSError as error:
            sentence = "shared_dir: expected a folder that can be written"
            raise OSError(error.errno, sentence, self._path) from error

    def close(self) -> None:
        """Remove all files. Arrays that view them stay valid."""
        for file in self._own():
            file.remove()
        self._files.clear()
        super().close()

    def source(self, blob: Blob) -> Blob | Place:
        """Return the place of a blob's bytes, and copy them there if necessary.

        Returns a small blob itself. Raises OSError if the folder is full.
        """
        if blob.nbytes < SHARED_BYTES:
            return blob
        found = self._found(blob)
        if found is not None:
            return found
        memory, file = self._room(blob.nbytes)
        start = 0
        for part in blob.parts:
            memory[start : (start := start + part.nbytes)] = part
        return Place(file, 0, [memory])

    def target(self, nbytes: int) -> Place | None:
        """Reserve a place for a result of ``nbytes``. Returns None for a small result.

        The file is reused only after a reply names it: if a reply is lost, the server
        may still write to the file. Raises OSError if the folder is full.
        """
        if nbytes < SHARED_BYTES:
            return None
        memory, file = self._room(nbytes)
        file.is_reusable = False
        return Place(file, 0, [memory])

    def _room(self, nbytes: int) -> tuple[memoryview, SharedFile]:
        memory, file = self.take(nbytes)
        assert isinstance(file, SharedFile)
        return memory, file

    def _make(self, nbytes: int) -> SharedFile:
        file = SharedFile(self._path, nbytes)
        self._files[file.name] = file
        return file

    def _own(self) -> list[SharedFile]:
        """Return the files that this process has made and not removed."""
        files = [reference() for reference in self._files.valuerefs()]
        pid = os.getpid()
        return [file for file in files if file is not None and file.pid == pid]

    def _found(self, blob: Blob) -> Place | None:
        """Return the place of a blob that already lies in a file, else None."""
        parts = blob.parts
        largest = max(range(len(parts)), key=lambda i: parts[i].nbytes)
        before = sum(part.nbytes for part in parts[:largest])
        start = _address(parts[largest]) - before
        for file in self._own():
            offset = start - file.address
            if 0 <= offset <= file.memory.nbytes - blob.nbytes:
                is_there = _holds(file.memory[offset:], blob)
                return Place(file, offset, blob.parts) if is_there else None
        return None


def _holds(memory: memoryview, blob: Blob) -> bool:
    """Return whether memory starts with a blob whose large parts are views of it."""
    start = 0
    for index, part in enumerate(blob.parts):
        there = memory[start : (start := start + part.nbytes)]
        is_compared = index == 0 or part.nbytes < _COMPARED_BYTES
        if _address(there) != _address(part) and not (is_compared and there == part):
            return False
    return True


def _address(memory: memoryview) -> int:
    address: int = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
    return address
