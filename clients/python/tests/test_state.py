"""Compares state files with those of the safetensors library and the server."""

from __future__ import annotations

import pathlib
import pickle
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

import stepd


def state_of(client: stepd.Client, steps: int = 2) -> stepd.State:
    params: dict[str, np.ndarray[Any, Any]] = {
        "a/b": np.ones((2, 3), np.float32),
        "c": np.ones(3, np.float64),
        "\U0001f600": np.ones((), np.float32),
    }
    state: stepd.State | None = None
    for _ in range(steps):
        state = client.step({"name": "nadam"}, params, params, state).state
    assert state is not None
    return state


def test_is_a_mapping_without_copies(client: stepd.Client) -> None:
    state = state_of(client)
    assert (state.optimizer, state.revision) == ("nadam", 2)
    assert state.steps == {"a/b": 2, "c": 2, "\U0001f600": 2}
    assert state.step == 2
    assert set(state.slots) == {"exp_avg", "exp_avg_sq", "mu_product"}
    average = state["exp_avg/a/b"]
    assert average.shape == (2, 3) and average.dtype == np.float32
    assert not average.flags.writeable and average.flags.aligned
    assert np.shares_memory(average, state["exp_avg/a/b"])
    assert state["exp_avg/c"].dtype == np.float64
    assert len(state) == len(list(state)) == 12
    assert "nadam" in repr(state)


def test_saves_and_loads(client: stepd.Client, tmp_path: pathlib.Path) -> None:
    state = state_of(client)
    path = tmp_path / "run.safetensors"
    state.save(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    loaded = stepd.State.load(path)
    assert loaded == state
    assert loaded.to_bytes() == state.to_bytes() == path.read_bytes()
    assert pickle.loads(pickle.dumps(state)) == state
    others = load_file(path)
    assert others.keys() == state.keys()
    for key, array in others.items():
        assert np.array_equal(array, state[key])


def test_picked_states_join_again(client: stepd.Client) -> None:
    state = state_of(client)
    parts = [state.pick([name]) for name in ("c", "\U0001f600", "a/b")]
    assert parts[0].steps == {"c": 2}
    assert stepd.State.join([parts[0], state_of(client, 1).pick(["a/b"])]).step == 2
    assert stepd.State.join(parts).to_bytes() == state.to_bytes()
    assert client.inspect(parts[0])["tensors"].keys() == {"c"}


def test_states_of_several_optimizers_part_and_join(client: stepd.Client) -> None:
    params = {name: np.ones(3, np.float32) for name in ("a", "b", "c")}
    adamw, sgd = {"name": "adamw"}, {"name": "sgd", "lr": 0.1, "momentum": 0.9}
    groups = [{"tensors": ["b"], "optimizer": sgd}]
    state = client.step(adamw, params, params, groups=groups).state
    assert (state.optimizer, state.optimizers) == ("adamw", {"b": "sgd"})
    parts = [state.pick([name]) for name in params]
    assert [part.optimizers for part in parts] == [{}, {"b": "sgd"}, {}]
    assert stepd.State.join(parts).to_bytes() == state.to_bytes()
    # Two optimizers of torch have two states, which become one.
    own = [
        client.step(one, {k: params[k] for k in keys}, {k: params[k] for k in keys})
        for one, keys in ((adamw, "ac"), (sgd, "b"))
    ]
    assert stepd.State.join(one.state for one in own).to_bytes() == state.to_bytes()
    last = stepd.State.join(one.state for one in reversed(own))
    assert (last.optimizer, last.optimizers) == ("sgd", {"a": "adamw", "c": "adamw"})
    there = client.step(adamw, params, params, last, groups=groups)
    assert there.state == client.step(adamw, params, params, state, groups=groups).state


def test_converts_to_torch_and_back(client: stepd.Client) -> None:
    params: dict[str, np.ndarray[Any, Any]] = {"a/b": np.ones((2, 3), np.float32)}
    params["c"] = np.ones(3, np.float64)
    state = client.step({"name": "adamw"}, params, params).state
    torch = {"format": "torch", "optimizer": "adamw"}
    there = client.convert(state, target={"format": "torch"})
    assert there.lost == ()
    with pytest.raises(ValueError, match="format"):
        _ = there.state
    back = client.convert(there.file, source=torch)
    assert back.state == state
    assert client.convert(state, optimizer="lamb").state.optimizer == "lamb"
    with pytest.raises(stepd.StateMismatch):
        client.convert(state, optimizer="sgd")


def test_refuses_other_files() -> None:
    with pytest.raises(ValueError, match=r"stepd\.state/1"):
        stepd.State(save({"a": np.zeros(2, np.float32)}))
    header = b'{"__metadata__":{"format":"stepd.state/1"},"x":'
    for rest in (
        b'{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b'{"dtype":"F32","shape":[2]}}',
        b'{"dtype":"Q1","shape":[2],"data_offsets":[0,4]}}',
        b"7}",
        b"{",
    ):
        text = header + rest
        with pytest.raises(ValueError):
            stepd.State(len(text).to_bytes(8, "little") + text + b"1234")
    for broken in (b"", b"\xff" * 9, b"\0" * 8):
        with pytest.raises(ValueError):
            stepd.State(broken)
    with pytest.raises(ValueError, match="no state"):
        stepd.State.join([])


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [
        ("[0.0]", "[0,0]"),
        ("[0e0]", "[0,0]"),
        ("[-0]", "[0,0]"),
        ("[0]", "[0,0.0]"),
        ("[4294967296,4294967296,0]", "[0,0]"),
    ],
)
def test_sizes_must_be_digits(shape: str, offsets: str) -> None:
    entry = f'{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}'
    metadata = '{"format":"stepd.state/1","optimizer":"adam","revision":"1"}'
    header = f'{{"__metadata__":{metadata},"exp_avg/w-1":{entry}}}'.encode()
    file = len(header).to_bytes(8, "little") + header
    with pytest.raises(ValueError, match=r"size|shape"):
        stepd.State(file)
