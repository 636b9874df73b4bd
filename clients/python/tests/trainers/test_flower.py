"""Compares the strategies of stepd.flower with Flower's own strategies."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import Server
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM
from flwr.supercore.task_identity import TaskIdentity

import stepd
from stepd import flower

NODES = range(1, 9)
ROUNDS = 20
#: Rounds without a reply.
EMPTY = (4, 5, 11)

# Every message needs the ids of a run, and these tests start no run.
TaskIdentity.run_id = TaskIdentity.task_id = 1
TaskIdentity.node_id = 0

Arrays = dict[str, np.ndarray[Any, Any]]


class Nodes:
    """A grid of nodes. A strategy asks the grid only for the nodes' ids."""

    def get_node_ids(self) -> list[int]:
        return list(NODES)


def start(dtype: Any) -> Arrays:
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"w": (4, 3), "b": (3,), "scale": ()}
    return {
        name: np.asarray(rng.standard_normal(shape)).astype(dtype)
        for name, shape in shapes.items()
    }


def record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(a)) for name, a in arrays.items()})


def arrays_of(arrays: ArrayRecord) -> Arrays:
    return {name: array.numpy() for name, array in arrays.items()}


def replies(arrays: Arrays, server_round: int) -> list[Message]:
    """Return the nodes' replies: each moves a bit towards its own target."""
    messages = []
    for node in NODES:
        rng = np.random.default_rng(100 * server_round + node)
        own = {}
        for name, array in arrays.items():
            if array.dtype.kind == "f":
                noise = np.asarray(rng.standard_normal(array.shape))
                own[name] = (array - 0.1 * (array - noise)).astype(array.dtype)
            else:
                own[name] = array + 1
        asked = Message(content=RecordDict(), message_type="train", dst_node_id=node)
        examples = MetricRecord({"num-examples": 10 * node, "loss": 1.0 / node})
        content = RecordDict({"arrays": record(own), "metrics": examples})
        messages.append(Message(content, reply_to=asked))
    return messages


def run(
    strategy: FedAvg,
    arrays: Arrays,
    rounds: range = range(1, ROUNDS + 1),
    seed: int = 0,
) -> Iterator[Arrays]:
    """Run rounds as Strategy.start does; yield the arrays after each."""
    first = rounds[0] - 1
    for server_round in rounds:
        own = server_round - first
        strategy.configure_train(own, record(arrays), ConfigRecord(), Nodes())
        answers = [] if server_round in EMPTY else replies(arrays, server_round)
        random.Random(seed + server_round).shuffle(answers)
        new, metrics = strategy.aggregate_train(own, answers)
        if new is not None:
            arrays = arrays_of(new)
            assert metrics is not None
        yield arrays


@pytest.fixture
def client(server: Server) -> Iterator[stepd.Client]:
    with stepd.Client(server.url) as one:
        yield one


PAIRS: dict[str, tuple[Callable[[], FedAvg], Callable[[Any], FedAvg]]] = {
    "FedAvg": (FedAvg, flower.fed_avg),
    "FedAvgM": (
        lambda: FedAvgM(server_learning_rate=0.7, server_momentum=0.9),
        lambda client: flower.fed_avg_m(
            client, server_learning_rate=0.7, server_momentum=0.9
        ),
    ),
    "FedAdagrad": (FedAdagrad, flower.fed_adagrad),
    "FedAdam": (FedAdam, flower.fed_adam),
    "FedAdam, other settings": (
        lambda: FedAdam(eta=0.05, beta_1=0.8, beta_2=0.95, tau=1e-2),
        lambda client: flower.fed_adam(
            client, eta=0.05, beta_1=0.8, beta_2=0.95, tau=1e-2
        ),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_twenty_rounds_have_the_numbers_of_flower(
    name: str, client: stepd.Client
) -> None:
    theirs, ours = PAIRS[name]
    pairs = zip(
        run(theirs(), start(np.float64)),
        run(ours(client), start(np.float64)),
        strict=True,
    )
    for expected, found in pairs:
        for key, array in expected.items():
            np.testing.assert_allclose(found[key], array, rtol=1e-12, atol=1e-12)


def test_float32_and_integers_keep_their_dtypes(client: stepd.Client) -> None:
    arrays = {**start(np.float32), "seen": np.asarray(5, np.int64)}
    *_, last = run(flower.fed_adam(client), arrays)
    assert {name: array.dtype for name, array in last.items()} == {
        name: array.dtype for name, array in arrays.items()
    }
    assert last["seen"] == 5 + ROUNDS - len(EMPTY)


def test_the_order_of_arrival_changes_no_bit(client: stepd.Client) -> None:
    first = list(run(flower.fed_adam(client), start(np.float32), seed=1))
    second = list(run(flower.fed_adam(client), start(np.float32), seed=2))
    for one, other in zip(first, second, strict=True):
        assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_arrays_that_do_not_train_are_averaged(client: stepd.Client) -> None:
    strategy = flower.fed_adam(client, trainable=["w", "b"])
    (found,) = run(strategy, start(np.float64), range(1, 2))
    (expected,) = run(FedAvg(), start(np.float64), range(1, 2))
    np.testing.assert_allclose(found["scale"], expected["scale"], rtol=1e-12)
    assert strategy.state is not None
    assert set(strategy.state.steps) == {"w", "b"}


def test_a_strategy_rebuilt_after_a_crash_goes_on_to_the_same_bytes(
    client: stepd.Client, tmp_path: pathlib.Path
) -> None:
    arrays = {**start(np.float32), "seen": np.asarray(5, np.int64)}
    *_, whole = run(flower.fed_adam(client), arrays)
    # The first process ends in a round without replies.
    first = flower.fed_adam(client, path=tmp_path)
    *_, _ = run(first, arrays, range(1, EMPTY[0] + 1))
    second = flower.fed_adam(client, path=tmp_path)
    assert second.round == EMPTY[0]
    assert second.arrays is not None
    *_, last = run(second, arrays_of(second.arrays), range(EMPTY[0] + 1, ROUNDS + 1))
    assert list(last) == list(whole)
    for name, array in whole.items():
        assert last[name].tobytes() == array.tobytes(), name
    left = sorted(path.name for path in tmp_path.iterdir())
    files = [f"round-{ROUNDS}.npz", f"round-{ROUNDS}.safetensors"]
    assert left == ["latest.json", *files]
