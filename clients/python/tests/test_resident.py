"""Tests RemoteOptimizer(resident=True), on servers that are killed in mid-run."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Server
from test_torch import make_model

import stepd
from stepd.torch import RemoteOptimizer


@pytest.fixture(scope="module")
def caching(server: Server) -> Iterator[Server]:
    with Server(STEPD_CACHE_MIB="64") as running:
        yield running


def step(run: Any, seed: int) -> None:
    """Take a step with gradients that depend on the seed and on the parameters."""
    model, optimizer = run
    random = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    for param in model.parameters():
        noise = torch.randn(param.shape, generator=random)
        param.grad = (noise + param.detach().float()).to(param.dtype)
    optimizer.step()


def require_equal(one: Any, other: Any) -> None:
    """Compare models with their optimizers, bit for bit."""
    for a, b in zip(one[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(a, b)
    mine, others = one[1].state_dict()["state"], other[1].state_dict()["state"]
    assert mine.keys() == others.keys()
    for key, slots in mine.items():
        assert slots.keys() == others[key].keys()
        for slot, value in slots.items():
            assert torch.equal(value, others[key][slot]), (key, slot)


def make(client: Any, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    model = make_model().to(dtype)
    return model, RemoteOptimizer(model.parameters(), client, **options)


def test_killed_server(caching: Server) -> None:
    steps = 200
    options: dict[str, Any] = {
        "schedule": {"name": "cosine", "T_max": steps},
        "clip": {"max_norm": 1.0},
    }
    # One server and its successors serve both clients: a start takes as long as all
    # steps. The kills come amid the steps after a fetch, and before a fetch.
    other = Server(STEPD_CACHE_MIB="64")
    clients: list[Any] = [
        stepd.Client(caching.url),
        stepd.Client(other.url),
        stepd.ShardedClient([other.url], request_bytes=1),
    ]
    try:
        plain = make(clients[0], **options)
        resident, sharded = (
            make(client, resident=True, fetch_every=16, **options)
            for client in clients[1:]
        )
        for seed in range(steps):
            if seed in (77, 110):
                other.kill()
                port = other.url.rpartition(":")[2]
                other = Server(STEPD_CACHE_MIB="64", STEPD_PORT=port)
            step(plain, seed)
            step(resident, seed)
            if seed < 80:
                step(sharded, seed)
            if seed == 79:
                require_equal(sharded, plain)
        require_equal(resident, plain)
    finally:
        other.kill()
        for client in clients:
            client.close()


def test_results_evicted_by_other_calls(caching: Server) -> None:
    with (
        Server(STEPD_CACHE_MIB="32", STEPD_ARENA_MIB="32") as small,
        stepd.Client(small.url) as client,
        stepd.Client(caching.url) as other,
    ):
        plain, resident = make(other), make(client, resident=True)
        large = {"w": np.zeros(3 * 2**19, np.float32)}
        lost = 0
        for seed in range(8):
            if seed % 3 == 2:
                kept = resident[1].last_result.cached
                # Six large results leave no room for earlier ones.
                for _ in range(6):
                    client.step({"name": "sgd"}, large, large, reply={"cache": True})
                with contextlib.suppress(stepd.BlobMissing):
                    client.step({"name": "adamw"}, None, {}, cached=kept)
                    lost -= 1
                lost += 1
            step(plain, seed)
            step(resident, seed)
        assert lost
        require_equal(resident, plain)


def test_gradients_in_bf16(client: stepd.Client) -> None:
    runs = [make(client, grad_dtype=dtype) for dtype in (torch.bfloat16, None)]
    for model, optimizer in runs:
        for param in model.parameters():
            grad = torch.full_like(param, 1.01)
            param.grad = grad if model is runs[0][0] else grad.bfloat16().float()
        optimizer.step()
    require_equal(*runs)


def test_sends_gradients_alone(caching: Server) -> None:
    sent: list[Any] = []

    class Recording(stepd.Client):
        def step(self, *args: Any, **options: Any) -> Any:
            _, params, grads, *_ = args
            sent.append((params is None, bool(grads), options.get("reply")))
            return super().step(*args, **options)

    with Recording(caching.url) as client:
        model, optimizer = make(client, resident=True, fetch_every=4)
        sent.clear()
        for seed in range(9):
            step((model, optimizer), seed)
    stay = {"params": "same", "state": "none", "cache": True}
    steps = [(True, True, stay)] * 4
    fetch: Any = (True, False, {})
    assert sent == [(False, True, stay), *steps[1:], fetch, *steps, fetch, steps[0]]


@pytest.mark.parametrize(
    "settings",
    [{}, {"name": "sgd"}, {"name": "lamb"}, {"state_dtype": "BF16"}],
    ids=str,
)
def test_changes_between_steps(caching: Server, settings: Any) -> None:
    with stepd.Client(caching.url) as client:
        runs = [make(client, lr=0.1, resident=on, **settings) for on in (False, True)]
        for model, optimizer in runs:
            for seed in range(3):
                step((model, optimizer), seed)
            model[0].weight.data[0, 0] += 1
            step((model, optimizer), 3)
            for slots in optimizer.state.values():
                for value in slots.values():
                    if value.numel() > 1:
                        value.mul_(0.5)
            step((model, optimizer), 4)
            # The first parameter has no gradient in this step.
            model[0].weight.requires_grad_(False)
            model[0].weight.grad = None
            optimizer.zero_grad()
            for param in list(model.parameters())[1:]:
                param.grad = torch.ones_like(param)
            optimizer.step()
            more = torch.nn.Parameter(torch.ones(3))
            optimizer.add_param_group({"params": [more], "lr": 0.5})
            more.grad = torch.ones(3)
            step((model, optimizer), 5)
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            step((model, optimizer), 6)
            model.register_parameter("more", more)
        require_equal(*runs)
        # A copy continues from the same state.
        model, optimizer = copy.deepcopy(runs[1])
        step((model, optimizer), 7)
        step(runs[0], 7)
        require_equal((model, optimizer), runs[0])
        optimizer._client.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bf16_reply_resumes_with_the_same_bits(
    caching: Server, dtype: torch.dtype
) -> None:
    options: dict[str, Any] = {
        "resident": True,
        "reply": {"params": "bf16"},
        "master_weights": dtype == torch.bfloat16,
        "grad_dtype": torch.bfloat16,
    }
    with stepd.Client(caching.url) as client:
        whole = make(client, dtype, **options)
        for seed in range(8):
            step(whole, seed)
        first = make(client, dtype, **options)
        for seed in range(4):
            step(first, seed)
        file = io.BytesIO()
        torch.save([first[0].state_dict(), first[1].state_dict()], file)
        file.seek(0)
        second = make(client, dtype, **options)
        for one, saved in zip(second, torch.load(file), strict=True):
            one.load_state_dict(saved)
        for seed in range(4, 8):
            step(second, seed)
        require_equal(second, whole)
        for param in second[0].parameters():
            assert torch.equal(param, param.bfloat16().to(dtype))
        assert "master_param" in whole[1].state[next(whole[0].parameters())]


def test_refused_and_skipped_steps(caching: Server) -> None:
    with stepd.Client(caching.url) as client:
        runs = [make(client, resident=on) for on in (False, True)]
        for model, optimizer in runs:
            step((model, optimizer), 1)
            model[0].weight.grad[0, 0] = torch.nan
            with pytest.raises(stepd.NonFiniteGradient):
                optimizer.step()
            optimizer.options["non_finite"] = "skip"
            optimizer.step()
            assert optimizer.skipped
            step((model, optimizer), 2)
            assert optimizer.last_result.step == 2
        with pytest.raises(ValueError, match="stayed"):
            _ = runs[1][1].last_result.state
        require_equal(*runs)


def test_after_fetch_state_the_server_may_go(server: Server) -> None:
    with Server(STEPD_CACHE_MIB="64") as own, stepd.Client(own.url) as client:
        model, optimizer = make(client, resident=True)
        step((model, optimizer), 1)
        optimizer.fetch_state()
    assert len(optimizer.state_dict()["state"]) == len(list(model.parameters()))
    assert len(pickle.dumps(optimizer.state)) > 1000


def test_invalid_resident(client: stepd.Client, caching: Server) -> None:
    with pytest.raises(stepd.InvalidParams, match="STEPD_CACHE_MIB"):
        make(client, resident=True)
    with stepd.Client(caching.url) as kept:
        with pytest.raises(ValueError, match="fetch_every: expected"):
            make(kept, resident=True, fetch_every=0)
        with pytest.raises(TypeError, match="grad_dtype: expected"):
            make(kept, grad_dtype=torch.int8)
        # The results exceed the cache, so the step is refused and changes nothing.
        huge = torch.nn.Parameter(torch.ones(6 * 2**20))
        optimizer = RemoteOptimizer([huge], kept, resident=True)
        huge.grad = torch.ones_like(huge)
        with pytest.raises((stepd.PayloadTooLarge, ValueError)):
            optimizer.step()
        assert torch.equal(huge, torch.ones_like(huge)) and not optimizer.state
