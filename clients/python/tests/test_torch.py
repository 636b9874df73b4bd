"""RemoteOptimizer against torch's own optimizers."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from conftest import Server  # noqa: E402

import stepd  # noqa: E402
from stepd.torch import RemoteOptimizer  # noqa: E402

# The oracle fuses some multiplications and additions, stepd never does.
CLOSE = {"rtol": 2e-5, "atol": 1e-7}


def make_model(dtype: Any = None) -> Any:
    torch.manual_seed(3)
    layers = [torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)]
    return torch.nn.Sequential(*layers).to(dtype or torch.float32)


def train(model: Any, optimizer: Any, steps: int, scheduler: Any = None) -> list[float]:
    generator = torch.Generator().manual_seed(5)
    losses = []
    dtype = next(model.parameters()).dtype
    for _ in range(steps):
        x = torch.randn(32, 6, generator=generator)
        y = torch.stack([x.sum(1), x.prod(1)], 1)
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x.to(dtype)), y.to(dtype))
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.item())
    return losses


def assert_close(one: Any, other: Any) -> None:
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name, **CLOSE)


TWINS: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw": ("AdamW", {"lr": 1e-2, "weight_decay": 0.1}),
    "adam": ("Adam", {"lr": 1e-2, "weight_decay": 0.1, "amsgrad": True}),
    "sgd": ("SGD", {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
    "nadam": ("NAdam", {"lr": 1e-2}),
}


@pytest.mark.parametrize("name", TWINS)
def test_steps_as_torch_does(client: stepd.Client, name: str) -> None:
    twin, settings = TWINS[name]
    model = make_model()
    other = copy.deepcopy(model)
    mine = RemoteOptimizer(model.parameters(), client, name, **settings)
    theirs = getattr(torch.optim, twin)(other.parameters(), **settings)
    train(model, mine, 20)
    train(other, theirs, 20)
    assert_close(model, other)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_state_goes_either_way(client: stepd.Client, name: str) -> None:
    twin, settings = TWINS[name]
    kind = getattr(torch.optim, twin)
    model = make_model()
    mine = RemoteOptimizer(model.parameters(), client, name, **settings)
    train(model, mine, 5)
    saved = copy.deepcopy(mine.state_dict())
    assert set(saved["state"][0]) >= {"step", "exp_avg", "exp_avg_sq"}
    assert saved["state"][0]["step"].dtype == torch.float32

    other = copy.deepcopy(model)
    theirs = kind(other.parameters())
    theirs.load_state_dict(saved)
    assert theirs.param_groups[0]["lr"] == 1e-2
    train(model, mine, 5)
    train(other, theirs, 5)
    assert_close(model, other)

    # And back: what torch wrote is taken over.
    again = copy.deepcopy(other)
    resumed = RemoteOptimizer(again.parameters(), client, name)
    resumed.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert resumed.param_groups[0]["weight_decay"] == 0.1
    train(again, resumed, 5)
    train(other, theirs, 5)
    assert_close(again, other)
    assert int(resumed.state_dict()["state"][0]["step"]) == 15


def test_resumes_to_the_same_bits(client: stepd.Client) -> None:
    model = make_model()
    optimizer = RemoteOptimizer(model.parameters(), client, "nadam")
    train(model, optimizer, 3)
    twin = copy.deepcopy(model)
    second = RemoteOptimizer(twin.parameters(), client, "nadam")
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    product = second.state_dict()["state"][0]["mu_product"]
    assert product.dtype == torch.float64  # Not rounded by torch's load_state_dict.
    train(model, optimizer, 3)
    train(twin, second, 3)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_groups_schedulers_and_frozen_parameters(client: stepd.Client) -> None:
    def groups(model: Any) -> list[dict[str, Any]]:
        model[0].bias.requires_grad_(False)
        return [
            {"params": [p for p in model.parameters() if p.ndim > 1]},
            {
                "params": [p for p in model.parameters() if p.ndim == 1],
                "weight_decay": 0.0,
                "lr": 0.1,
            },
        ]

    model = make_model()
    other = copy.deepcopy(model)
    mine = RemoteOptimizer(groups(model), client, "adamw", lr=1e-2)
    theirs = torch.optim.AdamW(groups(other), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR
    ours = [(model, mine), (other, theirs)]
    for each, optimizer in ours:
        rates: Any = schedule(optimizer, max_lr=[0.05, 0.1], total_steps=30)
        before = each[0].bias.clone()
        train(each, optimizer, 25, rates)
        assert torch.equal(before, each[0].bias)
    assert_close(model, other)


def test_names_closures_clipping_and_shards(server: Server) -> None:
    results = []
    for sharded in (False, True):
        model = make_model()
        client: Any = (
            stepd.ShardedClient([server.url, server.url], request_bytes=300)
            if sharded
            else stepd.Client(server.url)
        )
        with client:
            optimizer = RemoteOptimizer(
                model.named_parameters(), client, "lamb", max_grad_norm=0.5
            )
            x = torch.ones(4, 6)

            def closure(
                model: Any = model, optimizer: Any = optimizer, x: Any = x
            ) -> Any:
                optimizer.zero_grad()
                loss = model(x).square().sum()
                loss.backward()
                return loss.detach()

            first = optimizer.step(closure)
            for _ in range(10):
                last = optimizer.step(closure)
            assert float(last) < float(first)
        results.append(model)
    for a, b in zip(results[0].parameters(), results[1].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("master", [False, True])
def test_bfloat16(client: stepd.Client, master: bool) -> None:
    model = make_model(torch.bfloat16)
    optimizer = RemoteOptimizer(
        model.parameters(), client, lr=1e-2, master_weights=master
    )
    losses = train(model, optimizer, 30)
    assert losses[-1] < losses[0]
    state = optimizer.state_dict()["state"][0]
    assert state["exp_avg"].dtype == torch.float32
    assert ("master_param" in state) == master
    twin = copy.deepcopy(model)
    resumed = RemoteOptimizer(twin.parameters(), client, master_weights=master)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(resumed.state_dict()["state"][0]["exp_avg"], state["exp_avg"])
    train(model, optimizer, 3)
    train(twin, resumed, 3)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_two_groups_with_the_same_names(client: stepd.Client) -> None:
    model = make_model()
    other = copy.deepcopy(model)
    layers = [
        {"params": list(layer.named_parameters()), "lr": lr}
        for layer, lr in ((model[0], 1e-2), (model[2], 1e-1))
    ]
    groups = [
        {"params": list(layer.parameters()), "lr": lr}
        for layer, lr in ((other[0], 1e-2), (other[2], 1e-1))
    ]
    train(model, RemoteOptimizer(layers, client, "adamw"), 5)
    train(other, torch.optim.AdamW(groups), 5)
    assert_close(model, other)


def test_a_stale_master_copy_is_made_anew(client: stepd.Client) -> None:
    weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    weight.grad = torch.ones(3, dtype=torch.bfloat16)
    settings: dict[str, Any] = {"lr": 0.1, "weight_decay": 0}
    mine = RemoteOptimizer([weight], client, master_weights=True, **settings)
    mine.step()
    # Between these two bfloat16 has no value, so that the copy is worth keeping.
    copied = mine.state[weight]["master_param"].clone()
    assert not torch.equal(copied, weight.float())
    mine.param_groups[0]["lr"] = 1e-6
    mine.step()
    assert torch.all((mine.state[weight]["master_param"] - copied).abs() < 2e-6)
    mine.param_groups[0]["lr"] = 0.1

    theirs = torch.optim.AdamW([weight], **settings)
    theirs.load_state_dict(mine.state_dict())
    for _ in range(5):
        theirs.step()
    before = weight.detach().float().clone()
    again = RemoteOptimizer([weight], client, master_weights=True, **settings)
    again.load_state_dict(theirs.state_dict())
    again.step()
    # Equal gradients make steps of lr each.
    torch.testing.assert_close(weight.float(), before - 0.1, rtol=0.01, atol=0)

    weight.data.fill_(5.0)
    again.step()
    torch.testing.assert_close(weight.float(), torch.full((3,), 4.9), rtol=0.01, atol=0)


@pytest.mark.parametrize(
    "twin",
    [copy.deepcopy, lambda given: pickle.loads(pickle.dumps(given))],
    ids=["deepcopy", "pickle"],
)
@pytest.mark.parametrize("sharded", [False, True])
def test_copies_go_on_alike(server: Server, sharded: bool, twin: Any) -> None:
    if sharded:
        client: Any = stepd.ShardedClient([server.url], request_bytes=300)
    else:
        client = stepd.Client(server.url)
    with client:
        model = make_model()
        optimizer = RemoteOptimizer(
            model.parameters(), client, "lamb", clip={"max_norm": 0.1}
        )
        train(model, optimizer, 2)
        copied, copied_optimizer = twin((model, optimizer))
        train(model, optimizer, 2)
        train(copied, copied_optimizer, 2)
        for a, b in zip(model.parameters(), copied.parameters(), strict=True):
            assert a is not b and torch.equal(a, b)
        assert copied_optimizer._client is not client
        copied_optimizer._client.close()


def test_skips_and_refuses(client: stepd.Client) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.tensor([1.0, float("nan"), 1.0])
    optimizer = RemoteOptimizer([weight], client, non_finite="skip")
    optimizer.step()
    assert optimizer.skipped and torch.equal(weight, torch.ones(3))
    strict = RemoteOptimizer([weight], client)
    with pytest.raises(stepd.NonFiniteGradient):
        strict.step()
    assert torch.equal(weight, torch.ones(3))
    with pytest.raises(TypeError, match="betas"):
        RemoteOptimizer([weight], client, momentum=0.9)
    adam = RemoteOptimizer([weight], client, "adam")
    adam.load_state_dict(torch.optim.AdamW([weight]).state_dict())
    with pytest.raises(ValueError, match="decoupled_weight_decay"):
        adam.step()
    weight.grad = None
    optimizer.step()
    assert not optimizer.skipped
