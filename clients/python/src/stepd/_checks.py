"""Checks of argument types, made before the client sends anything.

The server checks values, such as a learning rate below 0.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ._state import State
from ._tensors import RESERVED_NAMES, name_fault


def found(value: object) -> str:
    """Return a value's type, with the value itself if it is short."""
    kind = type(value).__name__
    if value is None:
        return "None"
    if isinstance(value, (bool, int, float, str)):
        text = repr(value)
        return f"{kind} {text if len(text) <= 60 else text[:57] + '...'}"
    return kind


def expected(field: str, what: str, value: object, hint: str = "") -> TypeError:
    return TypeError(f"{field}: expected {what}, found {found(value)}{hint}")


def require_mapping(field: str, value: object, example: str) -> None:
    if not isinstance(value, Mapping):
        raise expected(field, f"a mapping such as {example}", value)


def require_text(field: str, value: object) -> None:
    if not isinstance(value, str):
        raise expected(field, "a str", value)
    if not value:
        raise ValueError(f"{field}: expected a name, found an empty one")


def require_texts(field: str, value: object) -> None:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise expected(field, "a list of str", value)


def require_count(field: str, value: object, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise expected(field, f"a whole number from {least} on", value)
    if value < least:
        raise ValueError(
            f"{field}: expected a whole number from {least} on, found {value}"
        )


def require_tls(context: object) -> None:
    if context is not None and not isinstance(context, ssl.SSLContext):
        hint = "; ssl.create_default_context(cafile=...) makes one"
        raise expected("ssl_context", "an ssl.SSLContext", context, hint)


def require_optimizer(optimizer: object) -> None:
    require_mapping("optimizer", optimizer, '{"name": "adamw", "lr": 1e-3}')


def require_state(state: object) -> None:
    if isinstance(state, State):
        return
    hint = ""
    if isinstance(state, (bytes, bytearray, memoryview)):
        hint = "; stepd.State(data) reads the bytes of a file"
    elif isinstance(getattr(state, "state", None), State):
        hint = "; its state is meant"
    raise expected("state", "a stepd.State", state, hint)


def require_groups(groups: object) -> None:
    example = '{"tensors": ["*.bias"], "optimizer": {"weight_decay": 0}}'
    if isinstance(groups, (str, Mapping)) or not isinstance(groups, Sequence):
        raise expected("groups", f"a list of mappings such as {example}", groups)
    for index, group in enumerate(groups):
        require_mapping(f"groups[{index}]", group, example)


#: Options of a step that must be mappings, each with an example for the error text.
_MAPPINGS = {
    "schedule": '{"name": "cosine", "T_max": 1000}',
    "clip": '{"max_norm": 1.0}',
    "slices": '{"w": {"offset": 65536}}',
    "stochastic_rounding": '{"seed": 1}',
    "reply": '{"params": "bf16"}',
}


_FLAGS = ("master_weights", "others_non_finite")


def require_options(options: Mapping[str, Any]) -> None:
    """Raise TypeError for a step's option of the wrong type."""
    for name, value in options.items():
        if value is None:
            continue
        if name == "groups":
            require_groups(value)
        elif name in _MAPPINGS:
            require_mapping(name, value, _MAPPINGS[name])
        elif name == "loss_scale":
            require_number(name, value)
        elif name in ("non_finite", "stats") and not isinstance(value, str):
            raise expected(name, "a str", value)
        elif name in _FLAGS and not isinstance(value, bool):
            raise expected(name, "True or False", value)


def require_number(field: str, value: object) -> None:
    # Numbers of all kinds have __float__, numpy's scalars included; other objects do
    # not.
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise expected(field, "a number", value)


def require_arrays(field: str, value: object) -> None:
    """Raise TypeError unless value is a mapping with valid names."""
    if not isinstance(value, Mapping):
        has_params = isinstance(getattr(value, "params", None), Mapping)
        hint = "; its params are meant" if has_params else ""
        raise expected(field, "a mapping of names to arrays", value, hint)
    for name in value:
        # This fast path accepts most names, because the loop runs before every step.
        if type(name) is str and name.isascii() and name not in RESERVED_NAMES:
            continue
        fault = name_fault(name)
        if fault is not None:
            kind = ValueError if isinstance(name, str) else TypeError
            raise kind(f"{field}: {fault}")
