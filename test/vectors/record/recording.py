"""Code that all recorders share: the inputs of a case, the format, writing and
comparing.

format.schema.json describes the format. As a script, this module checks that the inputs
of all vectors follow from their seeds; this check needs only numpy.
"""

import base64
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

FORMAT = "stepd-oracle/1"
VECTORS = Path(__file__).resolve().parent.parent

Shapes = Mapping[str, tuple[int, ...]]
Arrays = dict[str, np.ndarray]

SMALL: Shapes = {"w": (3, 11), "b": (7,), "s": (), "z": (0,)}
ODD: Shapes = {"a": (5, 7, 3), "b": (33,), "c": (1,)}
LARGE: Shapes = {"w": (1000,), "b": (7,)}
ONE: Shapes = {"w": (1,)}


@dataclass(frozen=True)
class Case:
    """A run to record. `given` holds the hyperparameters that differ from the peer's
    defaults.
    """

    name: str
    seed: int
    given: Mapping[str, Any] = field(default_factory=dict)
    shapes: Shapes = field(default_factory=lambda: SMALL)
    grads: str = "normal"
    steps: int = 5
    # The learning rate of each step, if the learning rate changes.
    lrs: Sequence[float] = ()
    # Groups of tensors with their own hyperparameters.
    groups: Sequence[Mapping[str, Any]] = ()
    note: str | None = None


class Run(Protocol):
    """A peer's optimizer in one precision. Slots are arrays, steps are integers."""

    hyperparameters: Mapping[str, Any]

    def step(self, grads: Arrays, lr: float | None) -> None: ...

    def params(self) -> Arrays: ...

    def state(self) -> dict[str, dict[str, Any]]: ...


@dataclass(frozen=True)
class Peer:
    """The contents of `<optimizer>.<peer>.json`. `start` begins a run of a case."""

    source: Mapping[str, str]
    start: Callable[[Case, Arrays], Run]
    cases: Sequence[Case]


def _f32(values: Any) -> np.ndarray:
    """Round to float32. Arithmetic on zero-dimensional arrays yields plain numbers."""
    return np.asarray(values, np.float32)


# The standard normal draws are multiplied by this factor, for each kind of gradient.
_SCALES = {
    "normal": 1.0,
    "zeros": 0.0,
    "denormal": 1e-40,
    "tiny": 1e-22,
    "large18": 1e18,
    "large30": 1e30,
    # These kinds differ in more than the factor: see gradient() and inputs().
    "zeros_first": 1.0,
    "zero_params": 1.0,
    "sparse": 1.0,
    "mixed": 1.0,
    "nonfinite": 1.0,
    "missing": 1.0,
}


def gradient(
    kind: str, step: int, draws: np.random.Generator, shape: tuple[int, ...]
) -> np.ndarray:
    """Return a gradient in float64. The order of the draws decides its bits."""
    values = np.asarray(draws.standard_normal(shape))
    if kind == "sparse":
        return values * (draws.random(shape) < 0.3)
    if kind == "mixed":
        return values * 10 ** draws.uniform(-8, 4, shape)
    if kind == "zeros_first" and step == 0:
        return values * 0.0
    if kind == "nonfinite" and step == 1 and values.size >= 3:
        values.flat[:3] = [np.nan, np.inf, -np.inf]
    return values * _SCALES[kind]


def inputs(case: Case) -> tuple[Arrays, list[Arrays]]:
    """Return the parameters and each step's gradients, all exact in float32.

    One generator draws the tensors in order: first the parameters, then the gradients
    of each step, including gradients that the case omits.
    """
    draws = np.random.default_rng(case.seed)
    params = {
        name: _f32(draws.standard_normal(shape) * 0.5)
        for name, shape in case.shapes.items()
    }
    if case.grads == "zero_params":
        params = {name: np.zeros_like(value) for name, value in params.items()}
    steps = []
    for step in range(case.steps):
        grads = {
            name: _f32(gradient(case.grads, step, draws, shape))
            for name, shape in case.shapes.items()
        }
        # The first tensor has no gradient in the second step, and the second tensor has
        # none in the third step.
        if case.grads == "missing" and step in (1, 2):
            del grads[list(case.shapes)[step - 1]]
        steps.append(grads)
    return params, steps


def _encoded(array: np.ndarray) -> dict[str, Any]:
    dtype = {"float32": "f32", "float64": "f64"}[str(array.dtype)]
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return {
        "dtype": dtype,
        "shape": list(array.shape),
        "b64": base64.b64encode(little.tobytes()).decode(),
    }


def _decoded(raw: Mapping[str, Any]) -> np.ndarray:
    return np.frombuffer(
        base64.b64decode(raw["b64"]), {"f32": "<f4", "f64": "<f8"}[raw["dtype"]]
    ).reshape(raw["shape"])


def _encoded_all(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _encoded(value) if isinstance(value, np.ndarray) else value
        for name, value in values.items()
    }


def _snapshot(run: Run) -> dict[str, Any]:
    return {
        "params": _encoded_all(run.params()),
        "state": {name: _encoded_all(slots) for name, slots in run.state().items()},
    }


def _pairs(
    steps: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield each array of the float32 run, its kind and the float64 run's array."""
    for step in steps:
        f32, f64 = step["f32"], step["f64"]
        for name, raw in f32["params"].items():
            yield "params", _decoded(raw), _decoded(f64["params"][name])
        for name, slots in f32["state"].items():
            for slot, raw in slots.items():
                if isinstance(raw, dict) and raw["dtype"] == "f32":
                    yield slot, _decoded(raw), _decoded(f64["state"][name][slot])


def _measured(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the errors of the float32 run, and how it left float32's range."""
    errors: dict[str, list[np.ndarray]] = {}
    left = set()
    for kind, found, truth in _pairs(steps):
        with np.errstate(all="ignore"):
            unit = np.abs(np.spacing(truth.astype(np.float32))).astype(np.float64)
            error = np.abs(found.astype(np.float64) - truth) / unit
        finite = np.isfinite(found) & np.isfinite(truth) & np.isfinite(unit)
        errors.setdefault(kind, []).append(error[finite])
        if (~np.isfinite(found) & np.isfinite(truth)).any():
            left.add("overflow")
        if ((found == 0) & (truth != 0)).any():
            left.add("underflow")
    all_errors = {
        kind: np.concatenate([error.ravel() for error in each])
        for kind, each in errors.items()
    }
    return {
        "peer_f32_error_ulps": {
            kind: {
                "max": float(f"{each.max():.4g}"),
                "mean": float(f"{each.mean():.4g}"),
            }
            if each.size
            else {"max": 0.0, "mean": 0.0}
            for kind, each in all_errors.items()
        },
        **({"f32_range": sorted(left)} if left else {}),
    }


def _recorded(file: str, peer: Peer, case: Case) -> dict[str, Any]:
    optimizer, peer_name = file.split(".")
    params, grads = inputs(case)
    runs = {
        "f32": peer.start(case, {name: value.copy() for name, value in params.items()}),
        "f64": peer.start(
            case, {name: value.astype(np.float64) for name, value in params.items()}
        ),
    }
    steps: list[dict[str, Any]] = []
    for step_grads, lr in itertools.zip_longest(grads, case.lrs):
        step = {"grads": _encoded_all(step_grads), **({} if lr is None else {"lr": lr})}
        for precision, run in runs.items():
            dtype = {"f32": np.float32, "f64": np.float64}[precision]
            run.step(
                {name: value.astype(dtype) for name, value in step_grads.items()}, lr
            )
            step[precision] = _snapshot(run)
        steps.append(step)
    return {
        "name": f"{file}.{case.name}",
        "source": peer.source,
        "optimizer": optimizer,
        "peer": peer_name,
        "hyperparameters": runs["f32"].hyperparameters,
        "grad_kind": case.grads,
        "seed": case.seed,
        "tensors": [
            {"name": name, "shape": list(shape), "dtype": "f32"}
            for name, shape in case.shapes.items()
        ],
        **({"groups": case.groups} if case.groups else {}),
        **({"note": case.note} if case.note else {}),
        "initial": _encoded_all(params),
        "steps": steps,
        **_measured(steps),
    }


def _ulps(found: Any, expected: Any) -> float:
    """Return the largest difference of two arrays, in ulp of the larger value."""
    a, b = np.asarray(found), np.asarray(expected)
    with np.errstate(all="ignore"):
        unit = np.spacing(np.maximum(np.abs(a), np.abs(b)))
        return float(np.max(np.abs(a.astype(np.float64) - b) / unit, initial=0))


def _is_array(value: Any) -> bool:
    return isinstance(value, dict) and "b64" in value


def _differences(
    found: Any, expected: Any, path: str = ""
) -> Iterator[tuple[str, float | None]]:
    """Yield each place where two values differ. Arrays differ by a number of ulp."""
    if found == expected and type(found) is type(expected):
        return
    if (
        _is_array(found)
        and _is_array(expected)
        and {**found, "b64": ""} == {**expected, "b64": ""}
    ):
        yield path, _ulps(_decoded(found), _decoded(expected))
    elif isinstance(found, dict) and isinstance(expected, dict):
        for key in [*found, *(key for key in expected if key not in found)]:
            yield from _differences(found.get(key), expected.get(key), f"{path}/{key}")
    elif (
        isinstance(found, list)
        and isinstance(expected, list)
        and len(found) == len(expected)
    ):
        for index, (a, b) in enumerate(zip(found, expected, strict=True)):
            yield from _differences(a, b, f"{path}/{index}")
    else:
        yield path, None


def _compare(path: Path, text: str) -> bool:
    name = path.relative_to(VECTORS)
    old = path.read_text() if path.exists() else "null"
    if old == text:
        print(f"{name}: equal")
        return True
    places = list(_differences(json.loads(text), json.loads(old)))
    print(f"{name}: {len(places)} differences")
    for precision in ("f32", "f64"):
        ulps = [
            ulps
            for where, ulps in places
            if f"/{precision}/" in where and ulps is not None
        ]
        if ulps:
            print(f"  {precision}: {len(ulps)} arrays, {max(ulps):.4g} ulp at most")
    others = [where for where, ulps in places if ulps is None]
    print(*(f"  {where}" for where in others[:20]), sep="\n")
    return False


def write(files: Mapping[str, Callable[[], Any]]) -> None:
    """Write each file by its path in test/vectors, or compare it with `--check`."""
    are_equal = True
    for name, make in files.items():
        # The JSON is compact, because programs read these files, not people.
        text = json.dumps(make(), separators=(",", ":"))
        path = VECTORS / name
        if "--check" in sys.argv[1:]:
            are_equal = _compare(path, text) and are_equal
        else:
            path.write_text(text)
            print(f"{name}: written")
    sys.exit(not are_equal)


def record(peers: Mapping[str, Peer]) -> None:
    """Write each peer's vectors. Keys are file names without `.json`."""
    write(
        {
            f"{file}.json": lambda file=file, peer=peer: {
                "format": FORMAT,
                "cases": [_recorded(file, peer, case) for case in peer.cases],
            }
            for file, peer in peers.items()
        }
    )


def _requires_inputs(case: Mapping[str, Any]) -> None:
    shapes = {tensor["name"]: tuple(tensor["shape"]) for tensor in case["tensors"]}
    params, grads = inputs(
        Case(
            case["name"],
            case["seed"],
            shapes=shapes,
            grads=case["grad_kind"],
            steps=len(case["steps"]),
        )
    )
    expected = [_encoded_all(arrays) for arrays in (params, *grads)]
    found = [case["initial"], *(step["grads"] for step in case["steps"])]
    if found != expected:
        raise ValueError(f"{case['name']}: other inputs than its seed gives")


if __name__ == "__main__":
    files = [json.loads(path.read_text()) for path in sorted(VECTORS.glob("*.json"))]
    cases = [case for file in files for case in file["cases"]]
    for case in cases:
        _requires_inputs(case)
    print(f"{len(cases)} cases have the inputs of their seeds")
