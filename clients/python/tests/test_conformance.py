"""Runs the conformance set of test/conformance with the public methods of every client.

The server's tests and the other clients' tests run the same files.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import inspect
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Server

import stepd
from stepd._optimizer_table import ALL_TENSORS
from stepd._reduce import ReduceOptions
from stepd._tensors import array_of as entry_array
from stepd._tensors import read_file

Json = dict[str, Any]
Arrays = dict[str, np.ndarray[Any, Any]]

FOLDER = ROOT / "test/conformance/cases"
FILES = sorted(FOLDER.glob("*.json"))
if not FILES:
    raise RuntimeError(f"{FOLDER} has no cases")

#: The fields that may hold a blob.
BLOBS = ("params", "grads", "state")

ERROR_MEMBERS = ("name", "code", "status", "field", "expected", "found", "tensors")

#: bfloat16 is the dtype of ml_dtypes here, because numpy can convert it.
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": stepd.bfloat16,
}


def arrays_of(tensors: Mapping[str, Json] | str) -> Arrays:
    """Return arrays by name, from tensors or from a file in base64."""
    if isinstance(tensors, str):
        _, entries = read_file(memoryview(base64.b64decode(tensors)))
        return {name: entry_array(entry) for name, entry in entries.items()}
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
    """Return a result's member as JSON, without absent members."""
    if isinstance(value, Mapping):
        return {k: json_of(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [json_of(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        names = {math.inf: "Infinity", -math.inf: "-Infinity"}
        return names.get(value, "NaN")
    return value


def fetched(members: Json, files: Mapping[str, str]) -> Json:
    """Return members, with places replaced by the bytes of their files."""
    whole = dict(members)
    for name in BLOBS:
        source = members.get(name)
        if isinstance(source, dict) and isinstance(source.get("file"), str):
            start, end = source["offset"], source["offset"] + source["length"]
            file = base64.b64decode(files[source["file"]])
            assert end <= len(file)
            whole[name] = text_of(file[start:end])
    return whole


def handles_of(params: Json) -> dict[str, str]:
    """Return the handles in params, by field."""
    named = {name: params[name] for name in BLOBS if name in params}
    return {
        name: value["handle"]
        for name, value in named.items()
        if isinstance(value, dict) and isinstance(value.get("handle"), str)
    }


def with_handles(params: Json, results: list[Json]) -> Json:
    """Return params with the handles of earlier results in place of ``$1.params``."""
    named = dict(params)
    for name, handle in handles_of(params).items():
        if handle.startswith("$"):
            call, field = handle[1:].split(".")
            named[name] = results[int(call) - 1]["cached"][field]
    return named


def without_handles(found: Json) -> Json:
    """Return a result with ``$`` in place of each handle, as in the cases."""
    cached = found.get("cached")
    if not cached:
        return found
    for blob in cached.values():
        assert 0 < len(blob["handle"]) <= 64
    return {**found, "cached": {field: {"handle": "$"} for field in cached}}


def stepped(result: stepd.StepResult) -> Json:
    found = {
        field.name: getattr(result, field.name)
        for field in dataclasses.fields(result)
        # The cases ask for no receipts.
        if field.name not in ("state", "receipts")
    }
    with contextlib.suppress(ValueError):
        found["state"] = text_of(result.state.to_bytes())
    found["stats"] = result.stats and dataclasses.asdict(result.stats)
    found["warnings"] = result.warnings or None
    found["reduce"] = result.reduce and vars(result.reduce)
    kept = {} if result.cached is None else dataclasses.asdict(result.cached)
    named = {name: {"handle": handle} for name, handle in kept.items() if handle}
    found["cached"] = named or None
    return found


# Each function makes a case's call (awaitable with an AsyncClient) and returns its
# result in wire form. The client refuses params that the function does not handle.


def step(client: Any, params: Json) -> Any:
    rest = dict(params)
    if handles := handles_of(params):
        rest["cached"] = stepd.Cached(handles.get("params"), handles.get("state"))
        rest.update(dict.fromkeys(handles))
    if "reply" in rest:
        # The client itself chooses the places of results.
        rest["reply"] = {k: v for k, v in rest["reply"].items() if k != "into"}
    given = rest.pop("params")
    arrays = None if given is None else arrays_of(given)
    if "reduce" in rest:
        reduce = dict(rest["reduce"])
        if "accumulator" in reduce:
            reduce["accumulator"] = base64.b64decode(reduce["accumulator"])
        rest["reduce"] = {**reduce, "updates": updates_of(reduce)}
    grads = arrays_of(rest.pop("grads")) if "grads" in rest else None
    state = state_of(rest.pop("state", None))
    return client.step(rest.pop("optimizer"), arrays, grads, state, **rest)


def norms(client: Any, params: Json) -> Any:
    rest = dict(params)
    grads = arrays_of(rest.pop("grads"))
    given = rest.pop("params", None)
    return client.norms(grads, given and arrays_of(given), **rest)


def normed(result: stepd.NormsResult) -> Json:
    found = dataclasses.asdict(result)
    return found if result.warnings else {**found, "warnings": None}


def init(client: Any, params: Json) -> Any:
    rest = dict(params)
    return client.init(rest.pop("optimizer"), arrays_of(rest.pop("params")), **rest)


def updates_of(params: Json) -> list[Any]:
    """Return arrays for an update without a weight, else a pair."""
    return [
        (arrays_of(update["tensors"]), update["weight"])
        if "weight" in update
        else arrays_of(update["tensors"])
        for update in params["updates"]
    ]


def reduce(client: Any, params: Json) -> Any:
    rest = {key: value for key, value in params.items() if key != "updates"}
    given = rest.pop("params", None)
    if "accumulator" in rest:
        rest["accumulator"] = base64.b64decode(rest["accumulator"])
    arrays = None if given is None else arrays_of(given)
    return client.reduce(updates_of(params), arrays, **rest)


def reduced(result: stepd.ReduceResult) -> Json:
    found = dict(vars(result))
    if result.accumulator is None:
        return found
    # Without the pseudo-gradient, the client's arrays are empty.
    assert found.pop("grads") == {}
    return {**found, "accumulator": text_of(result.accumulator)}


def distances(client: Any, params: Json) -> Any:
    earlier = params.get("distances")
    matrix = earlier and np.array([[float(v) for v in row] for row in earlier])
    return client.distances(updates_of(params), earlier=matrix)


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
    "optimizer.norms": (norms, normed),
    "optimizer.reduce": (reduce, reduced),
    "optimizer.distances": (
        distances,
        lambda matrix: {"distances": matrix.tolist()},
    ),
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


def call_of(case: Json, params: Json) -> Callable[[Any], Any]:
    return lambda client: METHODS[case["method"]][0](client, params)


def check(case: Json, run: Callable[[Callable[[Any], Any]], Any]) -> None:
    """Run a case. ``run`` takes a function of a client, and returns its result."""
    results: list[Json] = []
    for earlier in case.get("before", ()):
        call = call_of(earlier, with_handles(earlier["params"], results))
        results.append(METHODS[earlier["method"]][1](run(call)))
    params = with_handles(fetched(case["params"], case.get("files", {})), results)
    call = call_of(case, params)
    if "error" in case:
        with pytest.raises(stepd.ServerError) as caught:
            run(call)
        error = caught.value
        assert type(error) is stepd.ServerError.by_name[case["error"]["name"]]
        found = {name: getattr(error, name) or None for name in ERROR_MEMBERS}
        assert json_of(found) == case["error"]
        return
    expected = fetched(case["result"], case.get("written", {}))
    found = METHODS[case["method"]][1](run(call))
    if case["method"] == "optimizer.step":
        require_same(found.pop("params"), arrays_of(expected.pop("params", {})))
    if "grads" in expected:
        require_same(found.pop("grads"), arrays_of(expected.pop("grads")))
    assert without_handles(json_of(found)) == json_of(expected)


def require_same(found: Arrays, expected: Arrays) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        # Equal numbers have equal bits, except zeros and NaNs. JSON loses the sign of
        # zero, and the promise of equal bits excludes NaN payloads.
        same = np.array_equal(found[name], array, equal_nan=True)
        assert same, f"{name}: {found[name]} is not {array}"


@dataclasses.dataclass(frozen=True)
class Servers:
    #: This server has neither a cache nor a shared folder.
    bare: Server
    #: This server has a cache and a shared folder.
    storing: Server
    folder: pathlib.Path


@pytest.fixture(scope="module")
def servers(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("shared")
    settings = {"STEPD_CACHE_MIB": "1", "STEPD_SHARED_DIR": str(folder)}
    with Server(**settings) as storing:
        yield Servers(server, storing, folder)


def case_in(file: pathlib.Path) -> Json:
    case: Json = json.loads(file.read_text())
    return case


def is_of_files_alone(case: Json) -> bool:
    """Return whether the case tests that a server refuses files."""
    return case.get("server") == "bare" and "files" in case


def run_with(kind: str, case: Json, *given: Any, **options: Any) -> None:
    """Run a case on a new client."""

    async def run(call: Callable[[Any], Any]) -> Any:
        async with stepd.AsyncClient(*given, **options) as client:
            return await call(client)

    if kind == "AsyncClient":
        check(case, lambda call: asyncio.run(run(call)))
    else:
        with stepd.Client(*given, **options) as client:
            check(case, lambda call: call(client))


def cases(suits: Callable[[Json], bool]) -> pytest.MarkDecorator:
    files = [file for file in FILES if suits(case_in(file))]
    return pytest.mark.parametrize("file", files, ids=lambda file: file.stem)


kinds = pytest.mark.parametrize("kind", ["Client", "AsyncClient"])


@cases(lambda case: not is_of_files_alone(case))
@kinds
def test_case(servers: Servers, kind: str, file: pathlib.Path) -> None:
    case = case_in(file)
    storing = case.get("server") == "storing"
    run_with(kind, case, (servers.storing if storing else servers.bare).url)


@cases(lambda case: case.get("server") != "bare" or is_of_files_alone(case))
@kinds
def test_case_in_shared_memory(
    servers: Servers, kind: str, file: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stepd._shared.SHARED_BYTES", 1)
    case = case_in(file)
    server = servers.bare if is_of_files_alone(case) else servers.storing
    run_with(kind, case, server.url, shared_dir=servers.folder)
    assert list(servers.folder.iterdir()) == []


#: ShardedClient cannot run these cases: methods without tensors, statistics,
#: optimizers that need all tensors, and handles of all tensors together.
NOT_SHARDED = (
    *("convert.", "inspect.", "plan.", "schedule."),
    *("step.clip-norm", "step.lamb-stats", "step.loss-scale", "step.prodigy"),
    *("norms.slices", "step.error-slices-stats"),
    *("step.cached", "step.kept", "step.reply-none.", "step.shared-cached"),
    *("step.error-cached-kind", "step.error-handle", "step.error-missing-"),
    *("step.error-shared-bare", "init.error-shared-bare"),
)


def can_be_sharded(case: Json) -> bool:
    """Return whether ShardedClient has the case's method and all of its arguments."""
    method = getattr(stepd.ShardedClient, case["method"].partition(".")[2], None)
    known = {*inspect.signature(method).parameters} if method else set()
    if "options" in known:
        known |= stepd.StepOptions.__optional_keys__ - {"stats"}
    if case["method"] == "optimizer.reduce":
        known |= ReduceOptions.__optional_keys__
    if case["method"] == "optimizer.distances":
        # The client's argument has the name `earlier`.
        known.add("distances")
    names = handles_of(case["params"]) or "cached" in case.get("result", {})
    optimizer = case["params"].get("optimizer")
    name = optimizer.get("name") if isinstance(optimizer, dict) else None
    is_shared = case["method"] == "optimizer.step" and name in ALL_TENSORS
    is_whole = not names and not is_of_files_alone(case) and not is_shared
    return set(case["params"]) <= known and is_whole


def test_every_remaining_case_is_sharded() -> None:
    for file in FILES:
        is_listed = file.name.startswith(NOT_SHARDED)
        assert can_be_sharded(case_in(file)) != is_listed, file.stem


@cases(can_be_sharded)
def test_case_with_a_call_for_each_tensor(servers: Servers, file: pathlib.Path) -> None:
    case = case_in(file)
    server = servers.storing if case.get("server") == "storing" else servers.bare
    with stepd.ShardedClient([server.url], request_bytes=1) as client:
        check(case, lambda call: call(client))
