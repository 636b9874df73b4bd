"""Code that stepd.torch and stepd.optax share: client, options, first check."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping
from typing import Any

from ._client import Client
from ._options import Groups, Optimizer, StepOptions, step_options
from ._shards import ShardedClient
from ._tensors import name_fault


def client_of(client: Any) -> Any:
    """Return the client, or a new client if given a URL. Raises TypeError otherwise."""
    if isinstance(client, str):
        own = Client(client)
        # The caller cannot close this client, so garbage collection does.
        weakref.finalize(own, own._transport.close)
        return own
    step = getattr(client, "step", None)
    expected = "client: expected a Client, a ShardedClient or a URL, found"
    if inspect.iscoroutinefunction(step):
        kind = type(client).__name__
        raise TypeError(f"{expected} {kind}, which needs an event loop for each step")
    if not callable(step) or isinstance(client, type):
        raise TypeError(f"{expected} {client!r:.60}")
    return client


def adapter_options(given: Mapping[str, Any]) -> StepOptions:
    """Return a step's options. Raises TypeError for options that adapters refuse."""
    options = step_options(given)
    if options.get("cached") is not None:
        raise TypeError(
            'cached: expected none, because reply={"cache": True} is enough here: '
            "the next step names what the server kept"
        )
    if options.get("slices") is not None:
        raise TypeError(
            "slices: expected none, because every step here has all tensors"
        )
    reply = options.get("reply")
    if reply is not None and not isinstance(reply, Mapping):
        expected = 'expected a dict such as {"params": "bf16"}'
        raise TypeError(f"reply: {expected}, found {reply!r:.60}")
    for part in ("params", "state"):
        if reply is not None and reply.get(part) == "none":
            raise ValueError(
                f'reply: expected {part} in it, found "none"; every step needs them '
                "here, and only a Client's own step can do without"
            )
    return options


def check(
    client: Client | ShardedClient,
    optimizer: Optimizer,
    options: StepOptions,
    groups: Groups | None = None,
    *,
    resident: bool = False,
) -> None:
    """Have the server check hyperparameters and options, by a step without tensors.

    Raises :class:`stepd.InvalidParams`, which names the field.
    """
    # This step is no part of the run.
    own: StepOptions = {**options, "ledger": None}
    if resident:
        # A server without a cache refuses a reply without a state.
        own["reply"] = {**(own.get("reply") or {}), "state": "none", "cache": True}
    elif reply := own.get("reply"):
        own["reply"] = {**reply, "cache": False}
    if groups is not None:
        own["groups"] = groups
    client.step(optimizer, {}, {}, **own)


def is_sendable(name: str) -> bool:
    """Return True if a safetensors file may hold a tensor of that name."""
    return name_fault(name) is None
