"""Tests Client on a real server."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
from conftest import Server

import stepd

ADAMW = {"name": "adamw", "lr": 1e-2}


def tensors(seed: int, dtype: Any = np.float32) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "w": (7, 5),
        "bias/ü": (5,),
        "s": (),
        "empty": (0, 3),
    }
    return {
        name: np.asarray(rng.standard_normal(shape)).astype(dtype)
        for name, shape in shapes.items()
    }


def test_steps_without_changing_its_input(client: stepd.Client) -> None:
    params, grads = tensors(1), tensors(2)
    before = {name: array.copy() for name, array in params.items()}
    result = client.step(ADAMW, params, grads)
    assert list(result.params) == list(params)
    assert (result.step, result.lr, result.skipped) == (1, 1e-2, False)
    for name, array in result.params.items():
        assert np.array_equal(params[name], before[name])
        assert array.shape == params[name].shape
        assert array.dtype == np.float32
        assert array.flags.writeable and array.flags.aligned
        # Adam's first step has the size of lr.
        moved = np.abs(array - params[name] * np.float32(1 - 1e-4))
        assert np.allclose(moved, 1e-2, rtol=1e-3)
    again = client.step(ADAMW, result.params, grads, result.state)
    assert again.step == 2
    assert again.state.steps == dict.fromkeys(params, 2)


def test_errors_name_the_field(client: stepd.Client) -> None:
    with pytest.raises(stepd.InvalidParams) as caught:
        client.step({"name": "adamw", "lr": -1}, tensors(1), tensors(2))
    error = caught.value
    assert (error.name, error.code, error.status) == ("INVALID_PARAMS", -32602, 400)
    assert error.field == "/optimizer/lr"
    assert error.expected and error.found and error.request_id
    assert "/optimizer/lr" in str(error)
    with pytest.raises(stepd.TensorMismatch):
        client.step(ADAMW, {"w": np.zeros(3, np.float32)}, {"w": np.zeros(2)})
    with pytest.raises(stepd.NonFiniteGradient) as non_finite:
        client.step(ADAMW, {"w": np.zeros(1)}, {"w": np.array([np.nan])})
    assert non_finite.value.tensors == ("w",)
    # The connection is still usable.
    assert client.ready()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, stepd.bfloat16])
def test_takes_every_dtype(client: stepd.Client, dtype: Any) -> None:
    params, grads = tensors(1), tensors(2)
    if np.dtype(dtype) == np.uint16:
        bits = {
            n: np.asarray(a.view(np.uint32) >> 16, np.uint16) for n, a in params.items()
        }
        given = {n: a.view(dtype) for n, a in bits.items()}
    else:
        given = {name: array.astype(dtype) for name, array in params.items()}
    result = client.step(ADAMW, given, grads)
    for name, array in result.params.items():
        assert array.dtype == dtype
        assert array.shape == params[name].shape
    slot = np.float64 if dtype is np.float64 else np.float32
    assert result.state["exp_avg/w"].dtype == slot


def test_bfloat16_without_ml_dtypes(server: Server) -> None:
    code = """
import sys
sys.modules["ml_dtypes"] = None
import numpy as np, stepd
assert stepd.bfloat16 == np.uint16
ones = np.full((2, 2), 0x3F80, np.uint16).view(stepd.bfloat16)
client = stepd.Client(sys.argv[1])
result = client.step({"name": "sgd", "lr": 0.5}, {"w": ones}, {"w": ones})
assert result.params["w"].dtype == np.uint16
assert (result.params["w"] == 0x3F00).all()
again = client.step({"name": "sgd", "lr": 0.5}, result.params, {"w": ones})
assert (again.params["w"] == 0).all()
client.close()
"""
    subprocess.run([sys.executable, "-c", code, server.url], check=True)


def test_refuses_other_dtypes(client: stepd.Client) -> None:
    with pytest.raises(TypeError, match="int64"):
        client.step(ADAMW, {"w": np.zeros(2, np.int64)}, {})
    with pytest.raises(TypeError, match="bfloat16"):
        client.step(ADAMW, {"w": np.zeros(2, np.uint16)}, {})


def test_sends_arrays_of_any_layout(client: stepd.Client) -> None:
    wide = np.arange(24, dtype=np.float32).reshape(4, 6)
    layouts = {
        "transposed": wide.T,
        "strided": wide[::2, ::3],
        "big_endian": wide.astype(">f4"),
    }
    plain = {name: np.array(a, "<f4", order="C") for name, a in layouts.items()}
    one, other = (client.step(ADAMW, given, given) for given in (layouts, plain))
    for name in layouts:
        assert np.array_equal(one.params[name], other.params[name])
    assert one.state == other.state


def test_reports_statistics(client: stepd.Client) -> None:
    result = client.step(
        ADAMW,
        {"w": np.ones(4, np.float32)},
        {"w": np.array([3, 4, 0, np.inf], np.float32)},
        stats="tensor",
        non_finite="propagate",
    )
    assert result.stats is not None and result.stats.tensors is not None
    assert result.stats.grad_norm == np.inf
    assert result.stats.tensors["w"].param_norm == 2
    assert (result.stats.zeros, result.stats.non_finite) == (1, 1)
    assert isinstance(result.warnings, tuple)


def test_other_methods(client: stepd.Client) -> None:
    params, grads = tensors(1), tensors(2)
    assert {"adamw", "lamb"} <= {found["name"] for found in client.optimizers()}
    assert client.describe("adamw")["slots"]["default"] == ["exp_avg", "exp_avg_sq"]
    with pytest.raises(stepd.NotFound, match="adamw"):
        client.describe("adamv")
    state = client.init(ADAMW, params)
    first = client.step(ADAMW, params, grads, state)
    assert first.state == client.step(ADAMW, params, grads).state
    assert client.inspect(state)["optimizer"] == "adamw"
    norms = client.norms(grads, params, loss_scale=2)
    assert norms.tensors["w"].grad_squares == pytest.approx(
        float(np.sum(np.square(grads["w"] / 2, dtype=np.float64)))
    )
    assert norms.tensors["w"].param_squares is not None
    plan = client.plan(ADAMW, {**params, "big": {"shape": [1000, 1000]}})
    assert plan["parameters"] == 1_000_000 + sum(a.size for a in params.values())
    warm = {"name": "linear", "start_factor": 0.5, "total_iters": 2}
    rates = client.evaluate_schedule(warm, lr=1.0, start=0, count=4)
    assert rates["lrs"] == [0.5, 0.75, 1, 1]
    assert client.info()["name"] == "stepd"
    assert client.ready()


def test_takes_large_replies_of_many_tensors(client: stepd.Client) -> None:
    rng = np.random.default_rng(3)
    params = {
        f"layer.{i}": rng.standard_normal(20_000 if i % 7 else 300_000, np.float32)
        for i in range(60)
    }
    result = client.step(ADAMW, params, params, stats="tensor")
    assert result.stats is not None and result.stats.tensors is not None
    assert list(result.params) == list(params)
    once = {
        name: client.step(ADAMW, {name: a}, {name: a}) for name, a in params.items()
    }
    for name, single in once.items():
        assert np.array_equal(single.params[name], result.params[name])
    assert stepd.State.join(s.state for s in once.values()) == result.state


def test_threads_share_a_client(client: stepd.Client) -> None:
    results: dict[int, stepd.StepResult] = {}

    def work(seed: int) -> None:
        results[seed] = client.step(ADAMW, tensors(seed), tensors(seed + 100))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, result in results.items():
        alone = client.step(ADAMW, tensors(seed), tensors(seed + 100))
        assert alone.state == result.state
