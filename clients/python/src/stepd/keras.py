"""A Keras 3 optimizer that runs its steps on stepd. Needs the extra ``keras``."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

try:
    import keras
except ImportError as error:
    raise ImportError('stepd.keras needs Keras: pip install "stepd[keras]"') from error

from ._adapter import adapter_options, client_of
from ._calls import StepResult
from ._options import Optimizer, StepOptions
from ._state import STEP, State
from ._tensors import Array, Tensor, array_of, scalar
from ._timeout import Timeout

if TYPE_CHECKING:
    from ._client import Client
    from ._shards import ShardedClient

__all__ = ["RemoteOptimizer", "use_client"]

_LEARNING_RATE = 1e-3

#: The dtypes of variables that hold a slot, by the slot's dtype in a state.
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "BF16": "bfloat16",
    "I8": "int8",
    "U8": "uint8",
}

#: The client of optimizers that a config describes.
_CLIENT: ContextVar[Any] = ContextVar("stepd.keras", default=None)


@contextlib.contextmanager
def use_client(client: Client | ShardedClient) -> Iterator[None]:
    """Have optimizers that are loaded in this context use ``client``.

    A saved model has the server's URL, but no token:
    ``with use_client(client): model = keras.models.load_model(path)``.
    """
    token = _CLIENT.set(client_of(client))
    try:
        yield
    finally:
        _CLIENT.reset(token)


class _Slot(NamedTuple):
    """A variable of the optimizer that holds one entry of the state."""

    slot: str
    #: The dtype of the entry in a state.
    dtype: str
    variable: Any

    def tensor(self, value: Array) -> Tensor:
        """Return the entry with a value of the variable."""
        if self.slot == STEP:
            return scalar("I64", int(value))
        data = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
        return Tensor(self.dtype, () if self.is_bits else value.shape, data)

    def value(self, tensor: Tensor) -> Array:
        """Return the value of the variable for an entry."""
        if self.is_bits:
            return np.frombuffer(tensor.data, np.uint8)
        return array_of(tensor).astype(str(self.variable.dtype), copy=False)

    @property
    def is_bits(self) -> bool:
        """Return whether the variable holds the bytes of a float64 scalar."""
        return self.dtype == "F64" and self.variable.dtype == "uint8"


class _Remote:
    """The server's side of an optimizer. Keras does not track its attributes."""

    def __init__(
        self,
        client: Any,
        optimizer: Optimizer,
        options: StepOptions,
        timeout: float | Timeout | None,
    ) -> None:
        self.client = client
        self.optimizer = optimizer
        self.options = options
        self.timeout = timeout
        #: The groups with indices of variables in place of patterns of paths.
        self.groups: list[dict[str, Any]] | None = None
        #: The slots of each variable.
        self.slots: list[list[_Slot]] = []
        self.optimizers: dict[str, str] = {}
        self.revisions: dict[str, int] = {}
        self.last_result: StepResult | None = None

    def step(self, indices: Sequence[int], arrays: Sequence[Array]) -> list[Array]:
        """Return new parameters and slots.

        ``arrays`` are the learning rate, the parameters, the gradients and the slots.
        """
        rate, *rest = map(np.asarray, arrays)
        count = len(indices)
        names = [str(index) for index in indices]
        params = dict(zip(names, rest[:count], strict=True))
        grads = dict(zip(names, rest[count : 2 * count], strict=True))
        values = iter(rest[2 * count :])
        entries: list[tuple[str, Tensor]] = []
        for index in indices:
            own = [(one, one.tensor(next(values))) for one in self.slots[index]]
            # The server makes the slots of a parameter's first step.
            if any(one.slot == STEP and int(array_of(t)) > 0 for one, t in own):
                entries.extend((f"{one.slot}/{index}", t) for one, t in own)
        name = self.optimizer["name"]
        state = None
        if entries:
            state = State.from_entries(
                name,
                self.revisions[name],
                entries,
                optimizers=self.optimizers,
                revisions=self.revisions,
            )
        options: StepOptions = {**self.options, "groups": self._groups_of(names)}
        result = self.client.step(
            {**self.optimizer, "lr": float(rate)},
            params,
            grads,
            state,
            timeout=self.timeout,
            **options,
        )
        for sentence in result.warnings:
            warnings.warn(sentence, RuntimeWarning, stacklevel=2)
        self.last_result = result
        if result.skipped:
            return [*params.values(), *rest[2 * count :]]
        tensors = {f"{slot}/{name}": t for slot, name, t in result.state.entries()}
        return [
            *(np.asarray(result.params[name]) for name in names),
            *(
                one.value(tensors[f"{one.slot}/{index}"])
                for index in indices
                for one in self.slots[index]
            ),
        ]

    def _groups_of(self, names: Sequence[str]) -> list[dict[str, Any]] | None:
        """Return the groups of a call, which name only parameters of the call."""
        groups = [
            {**group, "tensors": own}
            for group in self.groups or ()
            if (own := [name for name in group["tensors"] if name in names])
        ]
        return groups or None


@keras.saving.register_keras_serializable(package="stepd")
class RemoteOptimizer(keras.optimizers.Optimizer):  # type: ignore[misc]
    """Any optimizer of a stepd server, as a Keras 3 optimizer.

    ``client`` is a Client, a ShardedClient or a URL. ``optimizer`` is a dict such as
    ``{"name": "adam", "bias_correction": "step_size"}``. ``learning_rate`` is a number
    or a schedule of Keras; without it, the optimizer's ``lr`` or 0.001 is the rate.

    The other arguments of Keras' optimizers work as there: ``clipnorm``, ``use_ema``,
    ``gradient_accumulation_steps``, ``loss_scale_factor`` and so on. ``weight_decay``
    is Keras' own, which Keras applies before the step; that of stepd belongs into
    ``optimizer``. The options of a step (:class:`stepd.StepOptions`) are keyword
    arguments too. ``groups`` match the paths of variables, such as ``*bias``.

    The slots and the step counts are variables of the optimizer, so ``model.save``
    keeps them. The config has the URL and no token; see :func:`use_client`.

    With TensorFlow, compile the model with ``jit_compile=False``: XLA cannot call a
    server. Distribution over several replicas raises ValueError.

    Raises TypeError for a client, optimizer or option that cannot be used, and
    :class:`stepd.InvalidParams` at ``build`` for a value that the server refuses.
    """

    def __init__(
        self,
        client: Client | ShardedClient | str,
        optimizer: Optimizer,
        learning_rate: Any = None,
        *,
        timeout: float | Timeout | None = None,
        name: str | None = None,
        **settings: Any,
    ) -> None:
        if not isinstance(optimizer, Mapping) or "name" not in optimizer:
            raise TypeError(
                'optimizer: expected a dict such as {"name": "adam"}, '
                f"found {optimizer!r:.60}"
            )
        given = dict(optimizer)
        rate = given.pop("lr", None)
        if rate is not None and learning_rate is not None:
            raise TypeError(
                "learning_rate: expected none beside lr of the optimizer, "
                f"found {learning_rate!r:.60}"
            )
        if learning_rate is None:
            learning_rate = _LEARNING_RATE if rate is None else rate
        if isinstance(learning_rate, int):
            learning_rate = float(learning_rate)
        options = {
            key: settings.pop(key)
            for key in StepOptions.__optional_keys__ & settings.keys()
        }
        if options.get("reduce") is not None:
            raise TypeError("reduce: expected none, because Keras gives the gradients")
        super().__init__(learning_rate, name=name, **settings)
        self._remote = _Remote(
            client_of(client), given, adapter_options(options), timeout
        )

    @property
    def client(self) -> Client | ShardedClient:
        """The client of the steps."""
        client: Client | ShardedClient = self._remote.client
        return client

    @property
    def last_result(self) -> StepResult | None:
        """The last step's result. None before the first step."""
        return self._remote.last_result

    def build(self, variables: Sequence[Any]) -> None:
        """Create the slots as variables, in the shapes that the server names."""
        if self.built:
            return
        _refuse_replicas()
        remote = self._remote
        remote.groups = _indexed(
            remote.options.get("groups"), [_path(one) for one in variables]
        )
        # The server makes the values of slots at the first step, from the parameters.
        zeros = {
            str(index): np.zeros(
                tuple(one.shape), keras.backend.standardize_dtype(one.dtype)
            )
            for index, one in enumerate(variables)
        }
        state = remote.client.init(
            remote.optimizer,
            zeros,
            groups=remote.groups,
            master_weights=remote.options.get("master_weights"),
            timeout=remote.timeout,
        )
        super().build(variables)
        remote.optimizers, remote.revisions = state.optimizers, state.revisions
        remote.slots = [[] for _ in variables]
        for slot, name, tensor in state.entries():
            wide = zeros[name].dtype == np.float64
            remote.slots[int(name)].append(self._slot(slot, name, tensor, wide))

    def _slot(self, slot: str, index: str, tensor: Tensor, wide: bool) -> _Slot:
        """Create the variable of a slot."""
        shape, dtype = tensor.shape, _DTYPES.get(tensor.dtype, "float32")
        if slot == STEP:
            dtype = "int32"
        elif tensor.dtype == "F64" and not wide:
            # JAX has no float64 by default, so the variable holds the scalar's bytes.
            shape, dtype = (8,), "uint8"
        label = f"{index}_{slot}".replace("/", "_").replace(".", "_")
        variable = self.add_variable(shape, dtype=dtype, name=label)
        return _Slot(slot, tensor.dtype, variable)

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any], rate: Any
    ) -> None:
        remote = self._remote
        indices = [self._get_variable_index(one) for one in trainable_variables]
        slots = [one.variable for index in indices for one in remote.slots[index]]
        targets = [*trainable_variables, *slots]

        def step(*arrays: Any) -> list[Array]:
            return remote.step(indices, arrays)

        if callable(rate):
            rate = rate()
        inputs = [rate, *trainable_variables, *grads, *slots]
        call = _CALLS[keras.backend.backend()]
        values = call(step, inputs, targets, self._is_update())
        for target, value in zip(targets, values, strict=True):
            self.assign(target, value)

    def _is_update(self) -> Any:
        """Return whether this is the last of the gradients that are accumulated."""
        if not self.gradient_accumulation_steps:
            return None
        return (self._iterations + 1) % self.gradient_accumulation_steps == 0

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor. A client becomes its URL."""
        remote = self._remote
        url = getattr(remote.client, "url", None)
        if not isinstance(url, str):
            kind = type(remote.client).__name__
            raise ValueError(
                f"client: expected a Client, which has one URL, found a {kind}; "
                "save the weights, or load the model with use_client"
            )
        options = {k: v for k, v in remote.options.items() if v is not None}
        return {
            **super().get_config(),
            "client": url,
            "optimizer": dict(remote.optimizer),
            **options,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> RemoteOptimizer:
        """Return the optimizer of a config, on the client of :func:`use_client`."""
        client = _CLIENT.get() or config["client"]
        made: RemoteOptimizer = super().from_config(
            {**config, "client": client}, custom_objects
        )
        return made


def _path(variable: Any) -> str:
    return str(getattr(variable, "path", variable.name))


def _indexed(
    groups: Sequence[Mapping[str, Any]] | None, paths: Sequence[str]
) -> list[dict[str, Any]] | None:
    """Return groups with indices of variables in place of patterns of their paths.

    Paths hold counters of the process, so another process may have other paths.
    """
    if groups is None:
        return None
    found = []
    for group in groups:
        patterns = [
            re.compile(".*".join(map(re.escape, str(one).split("*"))), re.DOTALL)
            for one in group["tensors"]
        ]
        own = [
            str(index)
            for index, path in enumerate(paths)
            if any(pattern.fullmatch(path) for pattern in patterns)
        ]
        if not own:
            raise ValueError(
                f"groups: expected the path of a variable, such as {paths[0]}, "
                f"found {group['tensors']!r:.60}"
            )
        found.append({**group, "tensors": own})
    return found


def _refuse_replicas() -> None:
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    count = tf.distribute.get_strategy().num_replicas_in_sync
    if count > 1:
        raise ValueError(
            f"expected one replica of tf.distribute, found {count}; "
            "stepd.keras takes the gradients of one"
        )


def _plain(value: Any) -> Any:
    """Return the backend's own array of a variable of Keras."""
    return value.value if isinstance(value, keras.Variable) else value


_Step = Callable[..., list[Array]]


def _call_torch(
    step: _Step, inputs: Sequence[Any], targets: Sequence[Any], _: Any
) -> list[Any]:
    return step(*map(keras.ops.convert_to_numpy, inputs))


def _call_jax(
    step: _Step, inputs: Sequence[Any], targets: Sequence[Any], is_update: Any
) -> list[Any]:
    import jax

    given = [jax.numpy.asarray(_plain(one)) for one in inputs]
    if not any(isinstance(one, jax.core.Tracer) for one in given):
        # A callback would print the traceback of every error.
        if is_update is not None and not bool(is_update):
            return [one.value for one in targets]
        return step(*given)
    old = [one.value for one in targets]
    shape_of: Any = jax.ShapeDtypeStruct
    shapes = [shape_of(one.shape, one.dtype) for one in old]

    def call() -> list[Any]:
        return list(jax.pure_callback(step, shapes, *given))

    # Keras takes a step for each of the gradients that it accumulates, and drops all
    # but the last.
    return call() if is_update is None else jax.lax.cond(is_update, call, lambda: old)


def _call_tensorflow(
    step: _Step, inputs: Sequence[Any], targets: Sequence[Any], _: Any
) -> list[Any]:
    import tensorflow as tf

    given = [tf.convert_to_tensor(_plain(one)) for one in inputs]
    dtypes = [tf.as_dtype(one.dtype) for one in targets]
    values = tf.numpy_function(step, given, dtypes)
    for value, target in zip(values, targets, strict=True):
        value.set_shape(target.shape)
    return list(values)


_CALLS: dict[str, Callable[..., list[Any]]] = {
    "torch": _call_torch,
    "jax": _call_jax,
    "tensorflow": _call_tensorflow,
}
