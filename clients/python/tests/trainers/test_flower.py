"""Compares the strategies of stepd.flower with Flower's own strategies."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import random
import signal
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
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedYogi,
)
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


def reply(node: int, own: Arrays, examples: float, loss: float = 1.0) -> Message:
    asked = Message(content=RecordDict(), message_type="train", dst_node_id=node)
    metrics = MetricRecord({"num-examples": examples, "loss": loss})
    content = RecordDict({"arrays": record(own), "metrics": metrics})
    return Message(content, reply_to=asked)


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
        messages.append(reply(node, own, 10 * node, 1.0 / node))
    return messages


def one_round(strategy: FedAvg, arrays: Arrays, answers: list[Message]) -> Any:
    strategy.configure_train(1, record(arrays), ConfigRecord(), Nodes())
    return strategy.aggregate_train(1, answers)


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
        lambda client: flower.fed_avgm(
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
    "FedYogi": (FedYogi, flower.fed_yogi),
    "FedYogi, other settings": (
        lambda: FedYogi(eta=0.05, beta_1=0.8, beta_2=0.95, tau=1e-2),
        lambda client: flower.fed_yogi(
            client, eta=0.05, beta_1=0.8, beta_2=0.95, tau=1e-2
        ),
    ),
    "FedMedian": (
        FedMedian,
        lambda client: flower.fed_avg(client, reduce={"method": {"name": "median"}}),
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


def test_a_round_of_weight_zero_changes_nothing(
    client: stepd.Client, tmp_path: pathlib.Path
) -> None:
    strategy = flower.fed_adam(client, path=tmp_path)
    arrays = {**start(np.float32), "seen": np.asarray(5, np.int64)}
    moved = {name: array + 1 for name, array in arrays.items()}
    answers = [reply(node, moved, 0.0) for node in (1, 2)]
    assert one_round(strategy, arrays, answers) == (None, None)
    assert strategy.state is None
    assert flower.fed_adam(client, path=tmp_path).round == 1


def test_arrays_are_paired_by_name(client: stepd.Client) -> None:
    arrays = start(np.float64)
    turned = {name: arrays[name] + 1 for name in reversed(arrays)}
    new, _ = one_round(flower.fed_avg(client), arrays, [reply(1, turned, 3.0)])
    found = arrays_of(new)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_allclose(found[name], array + 1, rtol=1e-12)


def test_large_integers_keep_their_digits(client: stepd.Client) -> None:
    arrays = {"w": np.zeros(2), "seed": np.asarray([2**62 + 1, -3])}
    own = {"w": np.ones(2), "seed": arrays["seed"] + 6}
    answers = [reply(node, own, float(node)) for node in (1, 2)]
    new, _ = one_round(flower.fed_avg(client), arrays, answers)
    np.testing.assert_array_equal(arrays_of(new)["seed"], own["seed"])


@pytest.mark.parametrize("spoilt", ["w", "scale"])
def test_drop_leaves_out_a_node_whose_array_is_not_finite(
    client: stepd.Client, spoilt: str, caplog: pytest.LogCaptureFixture
) -> None:
    # The array "scale" does not train, so the step does not see it.
    arrays = {**start(np.float64), "seen": np.asarray(5)}
    good = [
        {name: array + node for name, array in arrays.items()} for node in range(1, 4)
    ]
    bad = {**good[1], spoilt: np.full(arrays[spoilt].shape, np.nan)}
    options: dict[str, Any] = {"trainable": ["w", "b"]}
    answers = [
        reply(1, good[0], 1.0, 1.0),
        reply(2, bad, 1.0, float("nan")),
        reply(3, good[2], 1.0, 3.0),
    ]
    strict = flower.fed_avg(client, **options)
    with pytest.raises(stepd.NonFiniteGradient, match=f'"{spoilt}"'):
        one_round(strict, arrays, answers)
    assert "the nodes 1, 2, 3" in caplog.text
    assert (strict.state, strict.round) == (None, 0)
    dropping = flower.fed_avg(client, reduce={"non_finite": "drop"}, **options)
    new, metrics = one_round(dropping, arrays, answers)
    assert "The reply of node 2 has NaN or infinity" in caplog.text
    expected, _ = one_round(
        flower.fed_avg(client, **options), arrays, [answers[0], answers[2]]
    )
    found = arrays_of(new)
    for name, array in arrays_of(expected).items():
        assert found[name].tobytes() == array.tobytes(), name
    assert dict(metrics) == {"loss": 2.0}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"scale": np.ones(3)}, r"scale of node 2: expected shape \(\), found \(3,\)"),
        ({"w": np.ones((3, 4))}, r"w of node 2: expected shape \(4, 3\)"),
        ({"more": np.ones(3)}, "more of node 2: expected no such array"),
        ({"scale": None}, "scale of node 2: expected an array, found none"),
    ],
)
def test_a_reply_with_other_arrays_is_refused(
    client: stepd.Client, change: dict[str, Any], text: str
) -> None:
    arrays = start(np.float64)
    strategy = flower.fed_avg(client, trainable=["w", "b"])
    changed = {**arrays, **change}
    own = {name: array for name, array in changed.items() if array is not None}
    with pytest.raises(AggregationError, match=text):
        one_round(strategy, arrays, [reply(2, own, 1.0)])
    assert strategy.round == 0


def test_what_a_strategy_cannot_do_is_refused(client: stepd.Client) -> None:
    with pytest.raises(TypeError, match="reduce: expected method, missing, non_finite"):
        flower.fed_avg(client, reduce={"form": "deltas"})
    with pytest.raises(ValueError, match="count: expected steps or rounds"):
        flower.fed_avg(client, count="days")
    complex_one = {"w": np.ones(2, np.complex64)}
    with pytest.raises(TypeError, match="w: expected floats, integers or booleans"):
        one_round(flower.fed_avg(client), complex_one, [])


def test_a_run_goes_on_only_from_its_own_arrays(
    client: stepd.Client, tmp_path: pathlib.Path
) -> None:
    arrays = start(np.float32)
    *_, whole = run(flower.fed_adam(client), arrays)
    first = flower.fed_adam(client, path=tmp_path)
    *_, reached = run(first, arrays, range(1, 8))
    for strategy in (first, flower.fed_adam(client, path=tmp_path)):
        with pytest.raises(ValueError, match=r"expected strategy.arrays.*round 7"):
            next(run(strategy, arrays))
    # The first strategy itself may start again.
    *_, last = run(first, reached, range(8, ROUNDS + 1))
    assert first.round == ROUNDS
    assert all(last[name].tobytes() == array.tobytes() for name, array in whole.items())


def _die(url: str, path: pathlib.Path, arrays: Arrays, calls: int) -> None:
    """Take round 3, and die at a call that changes files. The last file is halved."""
    left = calls

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                if function is fsync:
                    os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return call

    fsync = os.fsync
    os.fsync = counted(os.fsync)
    os.replace = counted(os.replace)
    os.unlink = counted(os.unlink)
    pathlib.Path.unlink = counted(pathlib.Path.unlink)  # type: ignore[method-assign]
    with stepd.Client(url) as client:
        next(run(flower.fed_adam(client, path=path), arrays, range(3, 4)))


def test_a_kill_while_a_round_is_saved_loses_no_round(
    client: stepd.Client, server: Server, tmp_path: pathlib.Path
) -> None:
    arrays = start(np.float32)
    rounds = list(run(flower.fed_adam(client), arrays, range(1, 5)))
    reached = set()
    for calls in range(1, 100):
        path = tmp_path / str(calls)
        list(run(flower.fed_adam(client, path=path), arrays, range(1, 3)))
        forked = multiprocessing.get_context("fork")
        child = forked.Process(target=_die, args=(server.url, path, rounds[1], calls))
        child.start()
        child.join(60)
        second = flower.fed_adam(client, path=path)
        reached.add(second.round)
        assert second.arrays is not None
        found = arrays_of(second.arrays)
        expected = rounds[second.round - 1]
        assert all(found[name].tobytes() == expected[name].tobytes() for name in found)
        # Round 4 has no replies, so round 3 shows whether the state is the right one.
        *_, last = run(second, found, range(second.round + 1, 5))
        assert all(last[name].tobytes() == rounds[3][name].tobytes() for name in last)
        assert not list(path.glob("*.partial"))
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
    assert reached == {2, 3} and calls > 6
