"""The state of an optimizer: a safetensors file, readable from any language."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterable, Iterator, Mapping

from ._tensors import (
    Array,
    Header,
    Tensor,
    array_of,
    canonical,
    file_parts,
    open_file,
    tensor_in,
    tensors_in,
)

FORMAT = "stepd.state/1"
STEP = "step"

#: Keys of the metadata end with a parameter's or an optimizer's name, for optimizers
#: other than the state's own.
_OPTIMIZER = "optimizer/"
_REVISION = "revision/"

Source = bytes | bytearray | memoryview


class State(Mapping[str, Array]):
    """An optimizer's state: a result of each step, and an input of the next step.

    The state is a read-only mapping. ``<slot>/<parameter>`` is an array of the
    parameter's shape in float32, or float64 for float64 parameters (Adafactor has one
    number for each row and column); ``step/<parameter>`` is an int64 scalar. The arrays
    are views of the file's bytes.
    ``state_dtype`` stores moments in bfloat16, or as int8 and uint8 codes with
    ``<slot>.scale/<parameter>``; :meth:`Client.convert` widens them.
    """

    def __init__(self, file: Source) -> None:
        """Parse a state's file, without a copy. Raises ValueError for other bytes."""
        try:
            view = memoryview(file).cast("B")
        except TypeError:
            found = type(file).__name__
            raise TypeError(f"expected the bytes of a state, found {found}") from None
        header, data = open_file(view)
        metadata = header.metadata
        if metadata.get("format") != FORMAT:
            found = metadata.get("format", "none")
            raise ValueError(f"expected a state in the format {FORMAT}, found {found}")
        if "optimizer" not in metadata or not metadata.get("revision", "").isdecimal():
            raise ValueError("the state does not say its optimizer and revision")
        self._metadata = dict(metadata)
        self._opened: tuple[Header, memoryview] | None = (header, data)
        self._file: memoryview | None = None

    @classmethod
    def of_server(cls, file: memoryview) -> State:
        """Return the state in a reply. The next step sends the same bytes back."""
        state = cls(file)
        state._file = file
        return state

    @functools.cached_property
    def _entries(self) -> dict[str, Tensor]:
        # The dict is built only on demand, because the next step sends the file
        # unchanged.
        assert self._opened is not None
        return dict(tensors_in(*self._opened))

    def _items(self) -> Iterable[tuple[str, Tensor]]:
        """Iterate over all entries, without a dict of them."""
        if self._opened is None or "_entries" in vars(self):
            return self._entries.items()
        return tensors_in(*self._opened)

    def _keys(self) -> Mapping[str, object]:
        if self._opened is None:
            return self._entries
        return self._opened[0].entries

    @classmethod
    def from_entries(
        cls,
        optimizer: str,
        revision: int,
        entries: Iterable[tuple[str, Tensor]],
        *,
        optimizers: Mapping[str, str] | None = None,
        revisions: Mapping[str, int] | None = None,
    ) -> State:
        """Return a state of the entries, in any order, without copying their bytes.

        ``optimizers`` names the optimizer of each parameter that has another one, and
        ``revisions`` their revisions. Parameters without entries are ignored.
        """
        state = cls.__new__(cls)
        state._opened = state._file = None
        state._entries = canonical(entries)
        state._metadata = {
            "format": FORMAT,
            "optimizer": optimizer,
            "revision": str(revision),
        }
        named = optimizers or {}
        present = {key.partition("/")[2] for key in state._entries} if named else set()
        for name in sorted(present & named.keys()):
            own = named[name]
            if own != optimizer:
                state._metadata[_OPTIMIZER + name] = own
                state._metadata[_REVISION + own] = str((revisions or {})[own])
        return state

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> State:
        """Read a state's .safetensors file. Raises OSError or ValueError."""
        with open(path, "rb") as file:
            return cls(file.read())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a .safetensors file. An existing file is replaced atomically."""
        partial = f"{os.fspath(path)}.{os.getpid()}.partial"
        try:
            with open(partial, "wb") as file:
                file.writelines(self.parts())
            os.replace(partial, path)
        except BaseException:
            if os.path.exists(partial):
                os.unlink(partial)
            raise

    def to_bytes(self) -> bytes:
        """Return the file's bytes. Equal states give equal bytes."""
        return b"".join(self.parts())

    def parts(self) -> list[memoryview]:
        """Return the file in parts, which are views of the state's bytes."""
        if self._file is not None:
            return [self._file]
        return file_parts(self._entries, self._metadata)

    @property
    def nbytes(self) -> int:
        """The number of bytes of all entries, without the header."""
        return sum(tensor.data.nbytes for _, tensor in self._items())

    @property
    def optimizer(self) -> str:
        """The name of the optimizer that wrote the state."""
        return self._metadata["optimizer"]

    @property
    def revision(self) -> int:
        """The revision of that optimizer's arithmetic."""
        return int(self._metadata["revision"])

    @property
    def optimizers(self) -> dict[str, str]:
        """The optimizer of each parameter that is under another than the state's."""
        return {
            key.removeprefix(_OPTIMIZER): name
            for key, name in self._metadata.items()
            if key.startswith(_OPTIMIZER)
        }

    @property
    def revisions(self) -> dict[str, int]:
        """The revisions of all optimizers of the state, by the optimizer's name."""
        others = {
            key.removeprefix(_REVISION): int(revision)
            for key, revision in self._metadata.items()
            if key.startswith(_REVISION)
        }
        return {**others, self.optimizer: self.revision}

    @property
    def steps(self) -> dict[str, int]:
        """The number of steps taken, by parameter."""
        return {
            name: int.from_bytes(tensor.data, "little", signed=True)
            for slot, name, tensor in self.entries()
            if slot == STEP
        }

    @property
    def step(self) -> int:
        """The largest number of steps that a parameter has taken."""
        return max(self.steps.values(), default=0)

    @property
    def slots(self) -> dict[str, dict[str, Array]]:
        """Return the arrays by slot, then by parameter. The steps are not included."""
        slots: dict[str, dict[str, Array]] = {}
        for slot, name, tensor in self.entries():
            if slot != STEP:
                slots.setdefault(slot, {})[name] = _fixed(tensor)
        return slots

    def entries(self) -> Iterator[tuple[str, str, Tensor]]:
        """Iterate over slot, parameter and tensor of all entries."""
        for key, tensor in self._items():
            slot, _, name = key.partition("/")
            yield slot, name, tensor

    def pick(self, parameters: Collection[str]) -> State:
        """Return the part of the state for some parameters, without a copy."""
        if isinstance(parameters, str):
            raise TypeError(f"parameters: expected names, found one str {parameters!r}")
        wanted = frozenset(parameters)
        return self.replaced(
            (f"{slot}/{name}", tensor)
            for slot, name, tensor in self.entries()
            if name in wanted
        )

    def replaced(self, entries: Iterable[tuple[str, Tensor]]) -> State:
        """Return a state of the same optimizer with other entries."""
        return self.from_entries(
            self.optimizer,
            self.revision,
            entries,
            optimizers=self.optimizers,
            revisions=self.revisions,
        )

    @classmethod
    def join(cls, states: Iterable[State]) -> State:
        """Merge states of different parameters, as a server would write them.

        The first state's optimizer becomes that of the result. Parameters under another
        optimizer keep theirs.

        Raises ValueError if there are no states, and for two revisions of an optimizer.
        """
        states = list(states)
        if not states:
            raise ValueError("there is no state to join")
        for state in states:
            if not isinstance(state, State):
                raise TypeError(f"expected states, found {type(state).__name__}")
        revisions: dict[str, int] = {}
        optimizers: dict[str, str] = {}
        first = states[0]
        for state in states:
            for name, revision in state.revisions.items():
                if revisions.setdefault(name, revision) != revision:
                    raise ValueError(
                        f"expected states of one revision of {name}, "
                        f"found {revisions[name]} and {revision}"
                    )
            if state.optimizer != first.optimizer:
                optimizers |= {name: state.optimizer for _, name, _ in state.entries()}
            optimizers |= state.optimizers
        return cls.from_entries(
            first.optimizer,
            first.revision,
            (entry for state in states for entry in state._items()),
            optimizers=optimizers,
            revisions=revisions,
        )

    def __getitem__(self, key: str) -> Array:
        if self._opened is None:
            return _fixed(self._entries[key])
        return _fixed(tensor_in(*self._opened, key))

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys())

    def __len__(self) -> int:
        return len(self._keys())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, State):
            return NotImplemented
        return self._metadata == other._metadata and self._entries == other._entries

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type[State], tuple[bytes]]:
        return State, (self.to_bytes(),)

    def __repr__(self) -> str:
        return (
            f"<stepd.State of {self.optimizer}, step {self.step}, {self.nbytes} bytes>"
        )


def _fixed(tensor: Tensor) -> Array:
    array = array_of(tensor)
    array.flags.writeable = False
    return array
