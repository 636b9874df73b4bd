"""Tests RemoteOptimizer(overlap=True): same bits, and calls that leave in backward."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import Server
from test_resident import require_equal
from test_torch import make_model

import stepd
from stepd._overlap import buckets
from stepd.torch import RemoteOptimizer, overlap_hook

#: Each parameter has a bucket of its own.
SMALL = 1 / 2**20

PARAMETERS = 4


class Recording(stepd.Client):
    """Counts the steps, and reports each one that starts."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.steps = 0
        self.has_stepped = threading.Event()

    def step(
        self, optimizer: Any, params: Any, grads: Any, *more: Any, **o: Any
    ) -> Any:
        if grads:
            self.steps += 1
            self.has_stepped.set()
        return super().step(optimizer, params, grads, *more, **o)


@pytest.fixture(scope="module")
def caching(server: Server) -> Iterator[Server]:
    with Server(STEPD_CACHE_MIB="64") as running:
        yield running


@pytest.fixture
def client(caching: Server) -> Iterator[Recording]:
    connected = Recording(caching.url)
    yield connected
    connected.close()


def make(client: Any, **options: Any) -> Any:
    model = make_model()
    return model, RemoteOptimizer(model.parameters(), client, **options)


def make_pair(client: Any, **options: Any) -> tuple[Any, Any]:
    overlap = {"overlap": True, "bucket_cap_mb": SMALL}
    return make(client, **copy.deepcopy(options)), make(client, **options, **overlap)


def loss_of(model: Any, seed: int) -> Any:
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
    return model(x).square().mean()


def under_way(optimizer: RemoteOptimizer) -> int:
    """Wait for the calls under way, and return their number."""
    calls = [part.call for part in optimizer._parts if part.call is not None]
    return sum(call.exception() is None for call in calls)


def take(run: Any, seed: int, backwards: int = 1) -> tuple[int, int]:
    """Take a step. Return the calls that left in backward, and those of step()."""
    model, optimizer = run
    optimizer.zero_grad()
    for part in range(backwards):
        loss_of(model, 10 * seed + part).backward()
    early = under_way(optimizer)
    before = getattr(optimizer._client, "steps", 0)
    optimizer.step()
    return early, getattr(optimizer._client, "steps", 0) - before


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"resident": True, "fetch_every": 3},
        {"reply": {"cache": True, "params": "bf16"}, "grad_dtype": torch.bfloat16},
        {"name": "lamb", "max_grad_norm": None},
    ],
    ids=str,
)
def test_same_bits_and_calls_in_backward(
    client: Recording, options: dict[str, Any]
) -> None:
    one, two = make_pair(client, **options)
    for seed in range(6):
        take(one, seed)
        # The first step counts gradients. A step that fetches leaves as a whole.
        waits = seed == 0 or (seed == 3 and "resident" in options)
        assert take(two, seed) == ((0, 4) if waits else (4, 0))
        assert two[1].last_result.step == one[1].last_result.step == seed + 1
    require_equal(one, two)


class WaitForStep(torch.autograd.Function):
    """Waits, in backward, until a step has left."""

    @staticmethod
    def forward(ctx: Any, x: Any, event: threading.Event) -> Any:
        ctx.event = event
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        assert ctx.event.wait(60)
        return grads[0], None


def test_leaves_while_backward_runs(client: Recording) -> None:
    _, run = make_pair(client)
    take(run, 0)
    model = run[0]
    client.has_stepped.clear()
    hidden = WaitForStep.apply(model[:2](torch.ones(8, 6)), client.has_stepped)
    model[2](hidden).sum().backward()
    run[1].step()


def test_accumulation(client: Recording) -> None:
    one, two = make_pair(client)
    early = []
    for seed, backwards in enumerate([3, 3, 3, 2, 2, 3]):
        take(one, seed, backwards)
        early.append(take(two, seed, backwards)[0])
    # The last step's early calls miss a backward, so step() makes them again.
    assert early == [0, 4, 4, 0, 4, 4]
    require_equal(one, two)


def test_frozen_and_unused_parameters(client: Recording) -> None:
    runs = make_pair(client)
    early = []
    for seed in range(6):
        for model, _ in runs:
            model[0].weight.requires_grad_(seed >= 3)
            if seed < 3:
                model[0].weight.grad = None
        take(runs[0], seed)
        early.append(take(runs[1], seed)[0])
    assert early == [0, 3, 3, 3, 4, 4]
    require_equal(*runs)


CHANGES: dict[str, Callable[[Any, Any], object]] = {
    "gradients": lambda model, _: model[0].weight.grad.data.mul_(0.5),
    "parameters": lambda model, _: model[2].bias.data.mul_(0.5),
    "gradients taken away": lambda model, _: setattr(model[0].bias, "grad", None),
    "lr": lambda _, optimizer: optimizer.param_groups[0].update(lr=0.5),
    "an option": lambda _, optimizer: optimizer.options["clip"].update(max_value=0.1),
    "state": lambda model, optimizer: optimizer.state[model[0].weight]["exp_avg"].mul_(
        0.5
    ),
}


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_changes_after_backward(client: Recording, change: str, resident: bool) -> None:
    runs = make_pair(client, resident=resident, clip={"max_value": 0.2})
    for model, optimizer in runs:
        for seed in range(2):
            take((model, optimizer), seed)
        optimizer.zero_grad()
        loss_of(model, 2).backward()
        under_way(optimizer)
        CHANGES[change](model, optimizer)
        optimizer.step()
        take((model, optimizer), 3)
    require_equal(*runs)


def test_clipping_by_torch_ends_early_calls(client: Recording) -> None:
    runs = make_pair(client)
    early = []
    for seed in range(5):
        for model, optimizer in runs:
            optimizer.zero_grad()
            loss_of(model, seed).backward()
            early.append(under_way(optimizer))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                optimizer.step()
            ends = [one for one in caught if "register_comm_hook" in str(one.message)]
            assert bool(ends) == (optimizer is runs[1][1] and seed == 2)
            assert all(one.filename == __file__ for one in ends)
    assert early[1::2] == [0, 4, 4, 0, 0]
    require_equal(*runs)


def test_grad_scaler(client: Recording) -> None:
    runs = make_pair(client, lr=0.01)
    left = []
    for model, optimizer in runs:
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4)
        for seed in range(8):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, seed)).backward()
            if seed == 5:
                model[0].bias.grad[0] = torch.inf
            under_way(optimizer)
            before = client.steps
            scaler.step(optimizer)
            scaler.update()
            left.append(client.steps - before)
    # The first step counts gradients. The scale grows after step 4, and step 6 has an
    # infinity, so two steps divide by another scale than their early calls.
    assert left == [1, 1, 1, 1, 1, 0, 1, 1, 4, 0, 0, 0, 4, 0, 4, 0]
    require_equal(*runs)


def test_failed_calls_change_nothing(client: Recording) -> None:
    for resident in (False, True):
        runs = make_pair(client, resident=resident)
        for model, optimizer in runs:
            for seed in range(2):
                take((model, optimizer), seed)
            before = copy.deepcopy(model.state_dict())
            optimizer.zero_grad()
            with torch.no_grad():
                bad = torch.full((8, 6), torch.nan)
            (loss_of(model, 3) + model(bad).mean()).backward()
            with pytest.raises(stepd.NonFiniteGradient) as error:
                optimizer.step()
            assert '"0" (96 values)' in str(error.value), str(error.value)
            assert '"2" (32 values)' in str(error.value)
            for name, value in model.state_dict().items():
                assert torch.equal(value, before[name])
            take((model, optimizer), 4)
        require_equal(*runs)


def test_killed_server(caching: Server) -> None:
    other = Server(STEPD_CACHE_MIB="64")
    options: Any = {"overlap": True, "bucket_cap_mb": SMALL, "fetch_every": 8}
    with stepd.Client(caching.url) as quiet, stepd.Client(other.url) as client:
        plain, resident = make(quiet), make(client, resident=True, **options)
        for seed in range(30):
            if seed in (5, 20):
                other.kill()
                port = other.url.rpartition(":")[2]
                other = Server(STEPD_CACHE_MIB="64", STEPD_PORT=port)
            take(plain, seed)
            take(resident, seed)
        require_equal(plain, resident)
    other.kill()


@pytest.fixture
def process_group() -> Iterator[None]:
    store: Any = vars(dist)["HashStore"]()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("views", [False, True])
def test_distributed_data_parallel(
    client: Recording, process_group: None, views: bool
) -> None:
    """Tests one process. two_processes.py has the same with two."""
    one, two = make_pair(client)
    model = torch.nn.parallel.DistributedDataParallel(
        two[0], gradient_as_bucket_view=views
    )
    model.register_comm_hook(two[1], overlap_hook)
    early = []
    for seed in range(5):
        take(one, seed, 2)
        two[1].zero_grad()
        with model.no_sync():
            loss_of(model, 10 * seed).backward()
        loss_of(model, 10 * seed + 1).backward()
        early.append(under_way(two[1]))
        two[1].step()
    assert early[-2:] == [4, 4]
    require_equal(one, two)


def test_copies_and_new_groups(client: Recording) -> None:
    runs = make_pair(client, resident=True)
    for model, optimizer in runs:
        for seed in range(2):
            take((model, optimizer), seed)
        more = torch.nn.Parameter(torch.ones(3))
        loss_of(model, 5).backward()
        optimizer.add_param_group({"params": [more], "lr": 0.5})
        take((model, optimizer), 2)
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        take((model, optimizer), 3)
    twins = [copy.deepcopy(run) for run in runs]
    twins += [pickle.loads(pickle.dumps(runs[1]))]
    for twin in twins:
        for seed in range(4, 7):
            last = take(twin, seed)
    assert last[0] == PARAMETERS
    require_equal(twins[0], twins[1])
    require_equal(twins[0], twins[2])
    for _, optimizer in twins:
        optimizer._client.close()


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"clip": {"max_norm": 1.0}}, "clipping by their norm"),
        ({"name": "lamb", "max_grad_norm": 1.0}, "clipping by their norm"),
        ({"name": "prodigy"}, "prodigy"),
        ({"stats": "global"}, "stats"),
        ({"non_finite": "skip"}, "non_finite"),
        ({"bucket_cap_mb": 0}, "bucket_cap_mb: expected a number > 0"),
    ],
    ids=str,
)
def test_options_that_need_all_gradients(
    client: Recording, options: dict[str, Any], found: str
) -> None:
    with pytest.raises(ValueError, match=found):
        make(client, overlap=True, **options)


def test_buckets() -> None:
    assert buckets([1, 1, 9, 3, 3], 5) == [[3, 4], [2], [0, 1]]
    assert buckets([], 5) == []
