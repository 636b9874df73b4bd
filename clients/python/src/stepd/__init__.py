"""stepd: optimizer steps run by a stateless service, bit-identical everywhere."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import _error_table, optimizers, schedules
from ._calls import (
    Cached,
    Conversion,
    NormsResult,
    Stats,
    StepResult,
    TensorNorms,
    TensorStats,
)
from ._client import Client
from ._error_table import *  # noqa: F403
from ._errors import (
    ConnectError,
    ServerError,
    StepdError,
    TimeoutError,  # noqa: A004
    TransportError,
)
from ._ledger import Ledger, Receipt
from ._options import Reply, StepOptions
from ._reduce import Reduce, ReduceResult, Reduction, Update
from ._retry import Retry
from ._shards import ShardedClient
from ._state import State
from ._tensors import bfloat16
from ._timeout import Timeout
from ._version import __version__

if TYPE_CHECKING:
    from . import flower as flower
    from . import optax as optax
    from . import torch as torch
    from ._async_client import AsyncClient

__all__ = [
    "AsyncClient",
    "Cached",
    "Client",
    "ConnectError",
    "Conversion",
    "Ledger",
    "NormsResult",
    "Receipt",
    "Reduce",
    "ReduceResult",
    "Reduction",
    "Reply",
    "Retry",
    "ServerError",
    "ShardedClient",
    "State",
    "Stats",
    "StepOptions",
    "StepResult",
    "StepdError",
    "TensorNorms",
    "TensorStats",
    "Timeout",
    "TimeoutError",
    "TransportError",
    "Update",
    "__version__",
    "bfloat16",
    "optimizers",
    "schedules",
]
__all__ += _error_table.__all__


def __getattr__(name: str) -> Any:
    # These modules load on first use: they need extras and take time to import.
    if name == "AsyncClient":
        from ._async_client import AsyncClient

        return AsyncClient
    if name in ("flower", "optax", "torch"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
