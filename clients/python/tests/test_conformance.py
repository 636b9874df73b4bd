"""The conformance set of test/conformance, by the public methods of every client.

The server's own suite and the other clients' run the same files.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import inspect
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Server

import stepd

Json = dict[str, Any]
Arrays = dict[str, np.ndarray[Any, Any]]

FOLDER = ROOT / "test/conformance/cases"
FILES = sorted(FOLDER.glob("*.json"))
if not FILES:
    raise RuntimeError(f"{FOLDER} has no cases")

ERROR_MEMBERS = ("name", "code", "status", "field", "expected", "found", "tensors")

#: bfloat16 is ml_dtypes' here, which numpy converts.
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": stepd.bfloat16,
}


def arrays_of(tensors: Mapping[str, Json]) -> Arrays:
    return {name: array_of(**tensor) for name, tensor in tensors.items()}


def array_of(
    values: list[float | str], shape: list[int], dtype: str = "F32"
) -> np.ndarray[Any, Any]:
    exact = np.array([float(value) for value in values], np.float64)
    array = exact.astype(DTYPES[dtype]).reshape(shape)
    assert np.array_equal(array.astype(np.float64).ravel(), exact, equal_nan=True)
    return array


def state_of(text: str | None) -> stepd.State | None:
    return None if text is None else stepd.State(base64.b64decode(text))


def text_of(file: bytes | memoryview) -> str:
    return base64.b64encode(file).decode()


def json_of(value: Any) -> Any:
    """A result's member as JSON has it, without what is absent."""
    if isinstance(value, Mapping):
        return {k: json_of(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [json_of(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        names = {math.inf: "Infinity", -math.inf: "-Infinity"}
        return names.get(value, "NaN")
    return value


def stepped(result: stepd.StepResult) -> Json:
    found = {
        field.name: getattr(result, field.name) for field in dataclasses.fields(result)
    }
    found["state"] = text_of(result.state.to_bytes())
    found["stats"] = result.stats and dataclasses.asdict(result.stats)
    found["warnings"] = result.warnings or None
    return found


# Each gives the call of a case (awaitable with an AsyncClient), and what its result
# is on the wire. Members of params that it does not know are refused by the client.


def step(client: Any, params: Json) -> Any:
    rest = dict(params)
    tensors = [arrays_of(rest.pop(key)) for key in ("params", "grads")]
    state = state_of(rest.pop("state", None))
    return client.step(rest.pop("optimizer"), *tensors, state, **rest)


def norms(client: Any, params: Json) -> Any:
    rest = dict(params)
    grads = arrays_of(rest.pop("grads"))
    given = rest.pop("params", None)
    return client.norms(grads, given and arrays_of(given), **rest)


def init(client: Any, params: Json) -> Any:
    rest = dict(params)
    return client.init(rest.pop("optimizer"), arrays_of(rest.pop("params")), **rest)


def plan(client: Any, params: Json) -> Any:
    rest = dict(params)
    return client.plan(rest.pop("optimizer"), rest.pop("tensors"), **rest)


def convert(client: Any, params: Json) -> Any:
    names = {"from": "source", "to": "target"}
    rest = {names.get(key, key): value for key, value in params.items()}
    return client.convert(base64.b64decode(rest.pop("state")), **rest)


def evaluate(client: Any, params: Json) -> Any:
    rest = {("start" if key == "from" else key): v for key, v in params.items()}
    return client.evaluate_schedule(rest.pop("schedule"), **rest)


Method = tuple[Callable[[Any, Json], Any], Callable[[Any], Json]]

METHODS: dict[str, Method] = {
    "optimizer.step": (step, stepped),
    "optimizer.init": (init, lambda state: {"state": text_of(state.to_bytes())}),
    "optimizer.norms": (norms, dataclasses.asdict),
    "optimizer.plan": (plan, dict),
    "optimizer.describe": (lambda client, params: client.describe(**params), dict),
    "state.inspect": (
        lambda client, params: client.inspect(state_of(params["state"])),
        dict,
    ),
    "state.convert": (
        convert,
        lambda result: {"state": text_of(result.file), "lost": result.lost},
    ),
    "schedule.evaluate": (evaluate, dict),
}


def check(case: Json, run: Callable[[Callable[[Any], Any]], Any]) -> None:
    """Runs a case. ``run`` takes a function of a client and gives its result."""
    call, wire = METHODS[case["method"]]
    if "error" in case:
        with pytest.raises(stepd.ServerError) as caught:
            run(lambda client: call(client, case["params"]))
        error = caught.value
        assert type(error) is stepd.ServerError.by_name[case["error"]["name"]]
        found = {name: getattr(error, name) or None for name in ERROR_MEMBERS}
        assert json_of(found) == case["error"]
        return
    expected = dict(case["result"])
    found = wire(run(lambda client: call(client, case["params"])))
    if case["method"] == "optimizer.step":
        require_same(found.pop("params"), arrays_of(expected.pop("params")))
    assert json_of(found) == json_of(expected)


def require_same(found: Arrays, expected: Arrays) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        # Equal numbers are equal bits, but for zeros, whose sign JSON does not keep,
        # and NaNs, whose payload is outside of the promise.
        same = np.array_equal(found[name], array, equal_nan=True)
        assert same, f"{name}: {found[name]} is not {array}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("kind", ["Client", "AsyncClient"])
def test_case(server: Server, kind: str, file: Any) -> None:
    case = json.loads(file.read_text())

    async def run(call: Callable[[Any], Any]) -> Any:
        async with stepd.AsyncClient(server.url) as client:
            return await call(client)

    if kind == "AsyncClient":
        check(case, lambda call: asyncio.run(run(call)))
    else:
        with stepd.Client(server.url) as client:
            check(case, lambda call: call(client))


#: What ShardedClient does not have: methods that take no tensors, and statistics.
NOT_SHARDED = {
    *(file.stem for file in FILES if file.stem.split(".")[0] in ("convert", "plan")),
    *(
        file.stem
        for file in FILES
        if file.stem.split(".")[0] in ("inspect", "schedule")
    ),
    "step.clip-norm",
    "step.lamb-stats",
    "step.loss-scale",
}


def can_be_sharded(file: Any) -> bool:
    """Whether ShardedClient has the case's method, with all of its arguments."""
    case = json.loads(file.read_text())
    method = getattr(stepd.ShardedClient, case["method"].partition(".")[2], None)
    known = inspect.signature(method).parameters if method else {}
    return set(case["params"]) <= set(known)


def test_every_other_case_is_sharded() -> None:
    assert {file.stem for file in FILES if not can_be_sharded(file)} == NOT_SHARDED


@pytest.mark.parametrize(
    "file", list(filter(can_be_sharded, FILES)), ids=lambda file: file.stem
)
def test_case_with_a_call_for_each_tensor(server: Server, file: Any) -> None:
    case = json.loads(file.read_text())
    with stepd.ShardedClient([server.url], request_bytes=1) as client:
        check(case, lambda call: call(client))
