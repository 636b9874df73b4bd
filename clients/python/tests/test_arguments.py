"""Wrong arguments raise a one-sentence error before anything is sent.

The tests cover the likeliest mistakes of callers in every public function.
"""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import stepd

#: Nothing listens at this address, so a call that is sent raises another error.
URL = "http://127.0.0.1:1"
ADAMW = {"name": "adamw"}
W = {"w": np.ones(3, np.float32)}
RESULT = stepd.StepResult(W, stepd.State.from_entries("adamw", 1, ()), 1, 0.1, False)
CLIENTS: dict[str, Callable[..., Any]] = {
    "Client": stepd.Client,
    "AsyncClient": stepd.AsyncClient,
    "ShardedClient": lambda url, *a, **b: stepd.ShardedClient([url], *a, **b),
}
LONE = "\ud800"

#: Arguments, and a part of the error's text.
Case = tuple[dict[str, Any], str]

CONSTRUCTORS: list[Case] = [
    ({"url": None}, "url"),
    ({"url": "127.0.0.1:8080"}, "expected http://host, https://host or unix:///path"),
    ({"url": "htp://host"}, "expected http://host, https://host or unix:///path"),
    ({"url": pathlib.Path("/run/x")}, "url"),
    ({"token": 5}, "token: expected a str, found int"),
    ({"token": b"secret"}, "token: expected a str, found bytes"),
    ({"token": "a b"}, "token: expected visible ASCII"),
    ({"timeout": "60"}, "timeout: expected seconds .*, found '60'"),
    ({"timeout": 0}, "timeout: expected seconds .*, found 0"),
    ({"timeout": None}, "timeout: expected seconds .*, found None"),
    ({"timeout": float("nan")}, "timeout: expected seconds .*, found nan"),
    ({"retries": -1}, "retries: expected a whole number from 0 on .*, found -1"),
    ({"retries": 1.5}, "retries: expected a whole number .*, found 1.5"),
    ({"retries": None}, "retries: expected a whole number .*, found None"),
    ({"retries": True}, "retries: expected a whole number .*, found True"),
    ({"ssl_context": True}, "ssl_context: expected an ssl.SSLContext, found bool"),
    ({"ssl_context": "ca.pem"}, "ssl_context: expected .*; ssl.create_default"),
    ({"shared_dir": 5}, "shared_dir: expected a folder's path, found 5"),
    ({"shared_dir": ""}, "shared_dir: expected a folder's path, found ''"),
    ({"shared_dir": "/nowhere/x"}, "shared_dir: expected a folder that can be"),
]

SINGLE_CONSTRUCTORS: list[Case] = [
    ({"pool_size": 0}, "pool_size: expected a whole number from 1 on, found 0"),
    ({"pool_size": "8"}, "pool_size: expected a whole number .*, found str '8'"),
]

SHARDED_CONSTRUCTORS: list[Case] = [
    ({"urls": URL}, "urls: expected a list of str, found str"),
    ({"urls": []}, "urls: expected at least one, found none"),
    ({"urls": None}, "urls: expected a list of str, found None"),
    ({"urls": [5]}, "url: expected a str, found int"),
    ({"urls": [stepd.Client(URL)]}, "url: expected a str, found Client"),
    ({"request_bytes": 0}, "request_bytes: expected a whole number from 1 on"),
    ({"request_bytes": 1e6}, "request_bytes: expected .*, found float 1000000.0"),
    ({"connections": 0}, "connections: expected a whole number from 1 on, found 0"),
    ({"connections": "4"}, "connections: expected a whole number .*, found str '4'"),
]

ARRAYS: list[tuple[Any, str]] = [
    (np.ones(3, np.float32), "expected a mapping of names to arrays, found ndarray"),
    ([np.ones(3)], "expected a mapping of names to arrays, found list"),
    (RESULT, "expected a mapping .*, found StepResult; its params are meant"),
    ({"w": [1.0, 2.0]}, "w: expected an array, found list; np.asarray"),
    ({"w": 1.0}, "w: expected an array, found float"),
    ({"w": None}, "w: expected an array, found NoneType"),
    ({"w": np.array([None, 1.0])}, "w: expected float16, .*, found object"),
    ({"w": np.array([1, 2])}, "w: expected float16, .*, found int64"),
    ({"w": np.array([1j])}, "w: expected float16, .*, found complex128"),
    ({"w": np.ones(2, np.uint16)}, "w: expected floats, found uint16; array.view"),
    ({"w": "1 2 3"}, "w: expected an array, found str"),
    ({"w": {"v": W["w"]}}, "w: expected an array, found dict"),
    ({5: W["w"]}, "expected names as str, found 5"),
    ({None: W["w"]}, "expected names as str, found None"),
    ({"__metadata__": W["w"]}, "no tensor can be called __metadata__"),
    ({"__proto__": W["w"]}, "no tensor can be called __proto__"),
    ({LONE: W["w"]}, "the name .* has a lone surrogate"),
]

OPTIMIZERS: list[Case] = [
    ({"optimizer": "adamw"}, "optimizer: expected a mapping such as .*'adamw'"),
    ({"optimizer": None}, "optimizer: expected a mapping such as .*, found None"),
    ({"optimizer": stepd.optimizers.adamw}, "optimizer: .*, found function"),
    ({"optimizer": {"name": "adamw", "lr": object()}}, "optimizer: expected a number"),
    ({"optimizer": {"name": LONE}}, "optimizer: expected text, found .*surrogate"),
    ({"optimizer": {"name": "adamw", "seed": 2**64}}, "optimizer: .* 64 bits"),
]

GROUPS: list[Case] = [
    ({"groups": {"tensors": ["w"]}}, "groups: expected a list of mappings"),
    ({"groups": "*.bias"}, "groups: expected a list of mappings"),
    ({"groups": ["*.bias"]}, r"groups\[0\]: expected a mapping such as"),
    ({"groups": [{"tensors": [LONE]}]}, "groups: expected text"),
    ({"master_weights": "yes"}, "master_weights: expected True or False, found str"),
]

STATES: list[tuple[Any, str]] = [
    (b"abc", r"state: expected a stepd.State, found bytes; stepd.State\(data\)"),
    (RESULT, "state: expected a stepd.State, found StepResult; its state is meant"),
    ({"step/w": W["w"]}, "state: expected a stepd.State, found dict"),
    ("run.safetensors", "state: expected a stepd.State, found str 'run.safetensors'"),
    (5, "state: expected a stepd.State, found int 5"),
]

STEP: list[Case] = [
    ({"schedule": "cosine"}, "schedule: expected a mapping such as .*'cosine'"),
    ({"clip": 1.0}, "clip: expected a mapping such as .*, found float 1.0"),
    ({"loss_scale": "1024"}, "loss_scale: expected a number, found str '1024'"),
    ({"non_finite": True}, "non_finite: expected a str, found bool True"),
    ({"stats": True}, "stats: .*True"),
    ({"stochastic_rounding": 7}, "stochastic_rounding: expected a mapping such as"),
    ({"reply": "none"}, "reply: expected a mapping such as"),
    ({"cached": True}, "cached: expected that of an earlier result, found bool"),
    ({"cached": RESULT}, "cached: .*, found StepResult"),
    ({"learning_rate": 1}, "a step has no option learning_rate"),
    ({"params": None}, "params: expected arrays, or cached that names them"),
    ({"timeout": -1}, "timeout: expected seconds .*, found -1"),
    *(({"state": value}, words) for value, words in STATES),
]


def cases_of(field: str, given: list[tuple[Any, str]]) -> list[Case]:
    return [({field: value}, f"{field}: {words}") for value, words in given]


UPDATES: list[Case] = [
    ({"updates": None}, "updates: expected a list of arrays by name.*, found None"),
    ({"updates": W}, "updates: expected a list of arrays by name.*, found dict"),
    ({"updates": [5]}, r"updates\[0\]: expected arrays by name.*, found int 5"),
    ({"updates": [(W, "2")]}, r"updates\[0\].weight: expected a number.*'2'"),
    ({"updates": [([1], 1)]}, r"updates\[0\]: expected a mapping .*, found list"),
]

#: Valid arguments of each method, and invalid arguments to replace some of them.
METHODS: dict[str, tuple[dict[str, Any], list[Case]]] = {
    "step": (
        {"optimizer": ADAMW, "params": W, "grads": W},
        [
            *OPTIMIZERS,
            *GROUPS,
            *STEP,
            *cases_of("params", ARRAYS),
            *cases_of("grads", ARRAYS),
            ({"grads": None}, "grads: expected a mapping .*, found None"),
        ],
    ),
    "init": (
        {"optimizer": ADAMW, "params": W},
        [*OPTIMIZERS, *GROUPS, *cases_of("params", ARRAYS)],
    ),
    "average": (
        {"optimizer": ADAMW, "params": W, "state": stepd.State.from_entries("", 0, ())},
        [
            *OPTIMIZERS,
            *(case for case in GROUPS if "groups" in case[0]),
            *cases_of("params", ARRAYS),
        ],
    ),
    "norms": (
        {"grads": W},
        [
            *cases_of("grads", ARRAYS),
            *cases_of("params", ARRAYS),
            ({"loss_scale": "2"}, "loss_scale: expected a number, found str '2'"),
        ],
    ),
    "reduce": (
        {"updates": [(W, 1)], "params": W},
        [
            *UPDATES,
            ({"params": [1]}, "params: expected a mapping of names .*, found list"),
            ({"method": "mean"}, "method: expected a mapping such as .*, found str"),
            ({"form": 5}, "form: expected a str, found int 5"),
            ({"accumulator": "x"}, "accumulator: expected bytes .*, found str 'x'"),
            ({"non_finite": 5}, "non_finite: expected a str, found int 5"),
            ({"missing": 5}, "missing: expected a str, found int 5"),
        ],
    ),
    "distances": (
        {"updates": [(W, 1), (W, 1)]},
        [
            *UPDATES,
            ({"earlier": "x"}, r"earlier: expected .* shape \(2, 2\), found str 'x'"),
            (
                {"earlier": np.ones(3)},
                r"earlier: expected .*, found one of shape \(3,\)",
            ),
        ],
    ),
    "plan": (
        {"optimizer": ADAMW, "tensors": W},
        [
            *OPTIMIZERS,
            *GROUPS,
            ({"tensors": [3, 4]}, "tensors: expected a mapping such as .*, found list"),
            ({"tensors": {"w": (3, 4)}}, "tensors: w: expected an array, found tuple"),
            ({"tensors": {"w": 3}}, "tensors: w: expected an array, found int"),
            ({"tensors": {LONE: W["w"]}}, "tensors: expected text.*surrogate"),
            ({"grad_dtype": np.float32}, "grad_dtype: expected a str, found type"),
        ],
    ),
    "inspect": ({"state": RESULT.state}, [({"state": s}, w) for s, w in STATES]),
    "convert": (
        {"state": RESULT.state},
        [
            *(({"state": s}, w) for s, w in STATES if not isinstance(s, bytes)),
            ({"target": "torch"}, "target: expected a mapping such as .*'torch'"),
            ({"source": ["torch"]}, "source: expected a mapping such as"),
            ({"optimizer": ADAMW}, "optimizer: expected a str, found dict"),
            ({"fill": "exp_avg"}, "fill: expected a list of str, found str 'exp_avg'"),
        ],
    ),
    "evaluate_schedule": (
        {"schedule": {"name": "cosine", "T_max": 10}},
        [
            ({"schedule": "cosine"}, "schedule: expected a mapping such as"),
            ({"schedule": None}, "schedule: expected a mapping such as"),
            ({"lr": "1"}, "lr: expected a number, found str '1'"),
            ({"start": [1]}, "start: expected a number, found list"),
            ({"count": "3"}, "count: expected a number, found str '3'"),
        ],
    ),
    "describe": (
        {"name": "adamw"},
        [
            ({"name": ""}, "name: expected a name, found an empty one"),
            ({"name": None}, "name: expected a str, found None"),
            ({"name": ADAMW}, "name: expected a str, found dict"),
            ({"name": 5}, "name: expected a str, found int 5"),
            ({"name": b"adamw"}, "name: expected a str, found bytes"),
        ],
    ),
    "optimizers": ({}, [({"timeout": "1"}, "timeout: expected seconds")]),
    "info": ({}, [({"timeout": 0}, "timeout: expected seconds")]),
    "ready": ({}, [({"timeout": []}, "timeout: expected seconds")]),
}


def call(kind: str, method: str, arguments: dict[str, Any]) -> None:
    if kind == "AsyncClient":

        async def run() -> None:
            async with stepd.AsyncClient(URL, retries=0) as client:
                await getattr(client, method)(**arguments)

        asyncio.run(run())
        return
    with CLIENTS[kind](URL, retries=0) as client:
        getattr(client, method)(**arguments)


def refused(words: str, make: Callable[[], object]) -> None:
    with pytest.raises((TypeError, ValueError, OSError), match=words) as caught:
        make()
    assert not isinstance(caught.value, stepd.StepdError)
    # The client words the error in one line, and does not repeat the text of a library.
    assert len(str(caught.value).splitlines()) == 1


def _has(kind: str, name: str) -> bool:
    return hasattr(getattr(stepd, kind), name)


@pytest.mark.parametrize(
    ("kind", "method"),
    [(kind, method) for kind in CLIENTS for method in METHODS if _has(kind, method)],
)
def test_methods(kind: str, method: str) -> None:
    good, cases = METHODS[method]
    for bad, words in cases:
        # These arguments are not ShardedClient's.
        own = {"describe": "timeout", "distances": "earlier"}.get(method)
        if kind == "ShardedClient" and own in bad:
            continue
        refused(words, partial(call, kind, method, good | bad))


@pytest.mark.parametrize("kind", CLIENTS)
def test_constructors(kind: str) -> None:
    cases = CONSTRUCTORS + (SINGLE_CONSTRUCTORS if kind != "ShardedClient" else [])
    for bad, words in cases:
        refused(words, partial(CLIENTS[kind], **{"url": URL} | bad))


def test_sharded_constructor() -> None:
    make: Any = stepd.ShardedClient
    for bad, words in SHARDED_CONSTRUCTORS:
        refused(words, partial(make, **{"urls": [URL]} | bad))


def test_every_public_method_has_its_cases() -> None:
    for kind in CLIENTS:
        public = {name for name in vars(getattr(stepd, kind)) if name[0] != "_"}
        assert public - {"close"} <= METHODS.keys()


def test_states(tmp_path: pathlib.Path) -> None:
    state = RESULT.state
    other = stepd.State.from_entries("adamw", 2, ())
    refused("expected the bytes of a state, found str", lambda: stepd.State("x"))  # type: ignore[arg-type]
    refused("expected the bytes of a state, found State", lambda: stepd.State(state))  # type: ignore[arg-type]
    refused("8 bytes or more", lambda: stepd.State(b"abc"))
    refused("No such file", lambda: stepd.State.load(tmp_path / "none"))
    refused(
        "expected states of one revision of adamw, found 1 and 2",
        lambda: stepd.State.join([state, other]),
    )
    refused("expected states, found bytes", lambda: stepd.State.join([b"abc"]))  # type: ignore[list-item]
    refused("there is no state to join", lambda: stepd.State.join([]))
    refused("parameters: expected names, found one str", lambda: state.pick("weight"))
    refused("expected str, bytes or os.PathLike", lambda: state.save(5))  # type: ignore[arg-type]


def test_timeouts_and_retries() -> None:
    refused("read: expected seconds", lambda: stepd.Timeout(read=0))
    refused("total: expected seconds", lambda: stepd.Timeout(total="5"))  # type: ignore[arg-type]
    refused("deadline: expected seconds", lambda: stepd.Timeout(deadline=-1))
    refused("connect: expected seconds", lambda: stepd.Timeout(connect=True))
    refused("attempts: expected a whole", lambda: stepd.Retry(attempts=-1))
    refused("attempts: expected a whole", lambda: stepd.Retry(attempts=2.5))  # type: ignore[arg-type]
    refused("first: expected seconds", lambda: stepd.Retry(first=-1))
    refused("longest: expected seconds", lambda: stepd.Retry(longest=None))  # type: ignore[arg-type]
    refused("refused: expected seconds", lambda: stepd.Retry(refused="30"))  # type: ignore[arg-type]


def test_unusual_names_survive_a_step(client: stepd.Client) -> None:
    names = ["", "a\0b", "x" * 1024, "*", "step/w", "constructor", "\uffff", "😀"]
    arrays = dict.fromkeys(names, W["w"])
    result = client.step(ADAMW, arrays, arrays)
    assert list(result.params) == names
    assert client.step(ADAMW, result.params, arrays, result.state).step == 2


@pytest.mark.parametrize("mask", [[True, False], False, np.ma.nomask])
def test_masked_arrays_are_refused(client: stepd.Client, mask: Any) -> None:
    plain = {"w": np.ones(2, np.float32)}
    masked = {"w": np.ma.masked_array(np.ones(2, np.float32), mask)}
    with stepd.ShardedClient([client.url]) as sharded:
        calls: list[Callable[[], Any]] = [
            lambda: client.step({"name": "adamw"}, plain, masked),
            lambda: client.step({"name": "adamw"}, masked, plain),
            lambda: client.init({"name": "adamw"}, masked),
            lambda: client.norms(masked),
            lambda: client.plan({"name": "adamw"}, masked),
            lambda: sharded.step({"name": "adamw"}, plain, masked),
        ]
        for call in calls:
            sentence = "w: expected an array without a mask, found a masked array"
            with pytest.raises(TypeError, match=sentence):
                call()


def test_norms_of_nothing_warn(client: stepd.Client) -> None:
    with stepd.ShardedClient([client.url]) as sharded:
        for one in (client, sharded):
            (sentence,) = one.norms({}).warnings
            assert sentence.startswith("No parameter has a gradient")
            assert one.norms({"w": np.ones(2, np.float32)}).warnings == ()
