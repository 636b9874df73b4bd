"""Runs torch training loops with RemoteOptimizer and with torch's own optimizer."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Server
from torch.optim import lr_scheduler, swa_utils
from twins import (
    CLOSE,
    assert_close,
    assert_equal,
    assert_moved,
    backward,
    batch,
    loss_of,
    make_model,
    train,
)

import stepd
from stepd.torch import RemoteOptimizer

Pair = tuple[Any, Any]

TWINS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sgd": ("sgd", "SGD", {"lr": 0.1}),
    "nesterov": ("sgd", "SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "adam": ("adam", "Adam", {"lr": 1e-2, "weight_decay": 0.1}),
    "amsgrad": ("adam", "Adam", {"lr": 1e-2, "amsgrad": True}),
    "adamw": ("adamw", "AdamW", {"lr": 1e-2, "weight_decay": 0.1}),
    "maximize": ("adamw", "AdamW", {"lr": 1e-3, "maximize": True}),
    "nadam": ("nadam", "NAdam", {"lr": 1e-2, "decoupled_weight_decay": True}),
    "radam": ("radam", "RAdam", {"lr": 1e-2, "weight_decay": 0.1}),
    "adamax": ("adamax", "Adamax", {"lr": 1e-2}),
    "rmsprop": ("rmsprop", "RMSprop", {"lr": 1e-3, "momentum": 0.9, "centered": True}),
    "adagrad": ("adagrad", "Adagrad", {"lr": 1e-2, "lr_decay": 0.1}),
    "adadelta": ("adadelta", "Adadelta", {"lr": 1.0}),
}


def remote(model: Any, client: stepd.Client, name: str = "adamw", **more: Any) -> Any:
    return RemoteOptimizer(model.named_parameters(), client, name, **more)


def pair(
    client: stepd.Client, name: str = "adamw", **more: Any
) -> tuple[Pair, Pair, Any]:
    """Return a model with stepd, its copy with torch, and the initial model."""
    ours, kind, settings = TWINS[name]
    start = make_model()
    model, other = copy.deepcopy(start), copy.deepcopy(start)
    settings = {**settings, **more}
    theirs = getattr(torch.optim, kind)(other.named_parameters(), **settings)
    return (model, remote(model, client, ours, **settings)), (other, theirs), start


@pytest.mark.parametrize("name", TWINS)
def test_checkpoints_load_both_ways(client: stepd.Client, name: str) -> None:
    (model, mine), (other, theirs), start = pair(client, name)
    for each, optimizer in ((model, mine), (other, theirs)):
        train(each, optimizer, 8)
    assert_close(model, other)
    assert_moved(model, start)

    # torch.load accepts, by default, only tensors and plain values in a file.
    files = {}
    for key, optimizer in (("mine", mine), ("theirs", theirs)):
        files[key] = io.BytesIO()
        torch.save(optimizer.state_dict(), files[key])

    def resumed(target: Any, key: str) -> Any:
        files[key].seek(0)
        target.load_state_dict(torch.load(files[key], weights_only=True))
        return target

    ours, kind, settings = TWINS[name]
    here, there, straight = (copy.deepcopy(model) for _ in range(3))
    runs = {
        "torch's state here": (here, resumed(remote(here, client, ours), "theirs")),
        "our state in torch": (
            there,
            resumed(getattr(torch.optim, kind)(there.parameters(), **settings), "mine"),
        ),
    }
    again = resumed(remote(straight, client, ours), "mine")
    train(straight, again, range(8, 12))
    train(model, mine, range(8, 12))
    assert_equal(model, straight)
    for each, optimizer in runs.values():
        train(each, optimizer, range(8, 12))
        assert_close(model, each)


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4], 0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.3, total_iters=4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 8, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 8),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(
        o, 3
    ),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-2, 2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 1e-2, total_steps=8),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)],
        [2],
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, 1e-3, 4),
}


def test_every_scheduler_is_there() -> None:
    assert {*lr_scheduler.__all__, "SWALR"} - {"LRScheduler"} == set(SCHEDULERS)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(client: stepd.Client, name: str) -> None:
    (model, mine), (other, theirs), start = pair(client)
    rates: list[Any] = []
    for each, optimizer in ((model, mine), (other, theirs)):
        scheduler = SCHEDULERS[name](optimizer)
        rates.append([])
        for seed in range(6):
            rates[-1].append((optimizer.param_groups[0]["lr"], *_betas(optimizer)))
            train(each, optimizer, range(seed, seed + 1))
            scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
    assert rates[0] == rates[1] and len(set(rates[0])) > 1
    assert_close(model, other)
    assert_moved(model, start)


def _betas(optimizer: Any) -> tuple[float, ...]:
    return tuple(optimizer.param_groups[0]["betas"])


def test_groups_added_later_and_frozen(client: stepd.Client) -> None:
    (model, _), (other, _), start = pair(client)
    for each in (model, other):
        optimizer: Any
        first = [{"params": each[0].parameters(), "lr": 1e-3, "weight_decay": 0.0}]
        if each is model:
            optimizer = RemoteOptimizer(first, client, lr=1e-2)
        else:
            optimizer = torch.optim.AdamW(first, lr=1e-2)
        train(each, optimizer, 3)
        optimizer.add_param_group({"params": each[2].parameters(), "betas": (0.5, 0.9)})
        train(each, optimizer, range(3, 6))
        each[0].weight.requires_grad_(False)
        train(each, optimizer, range(6, 9))
        each[0].weight.requires_grad_(True)
        train(each, optimizer, range(9, 12))
    assert_close(model, other)
    assert_moved(model, start)


def test_grad_scaler(client: stepd.Client) -> None:
    (model, mine), (other, theirs), start = pair(client, lr=torch.tensor(1e-2))
    scales = []
    for each, optimizer in ((model, mine), (other, theirs)):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        for seed in range(8):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=seed % 2 == 1):
                loss = loss_of(each, seed)
            backward(scaler.scale(loss))
            if seed == 3:
                each[0].weight.grad[0, 0] = torch.inf
            if seed % 2:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(each.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
        scales.append(scaler.get_scale())
    assert scales[0] == scales[1] != 2.0**10
    # Half of the steps have bfloat16 gradients, whose 8 bits sometimes amplify a
    # difference in the last bit of a weight.
    assert_close(model, other, rtol=1e-3, atol=1e-5)
    assert_moved(model, start)
    assert int(mine.state[model[0].weight]["step"]) == 7


@pytest.mark.parametrize("what", ["model", "step"])
def test_compile(client: stepd.Client, what: str) -> None:
    (model, mine), (other, theirs), start = pair(client)
    # aot_eager captures graphs like the default backend, but needs no C++ compiler.
    if what == "model":
        train(torch.compile(model, backend="aot_eager"), mine, 6)
    else:

        @torch.compile(backend="eager")
        def step(seed: int) -> None:
            mine.zero_grad()
            backward(loss_of(model, seed))
            mine.step()

        for seed in range(6):
            step(seed)
    train(other, theirs, 6)
    assert_close(model, other)
    assert_moved(model, start)


def test_hooks(client: stepd.Client) -> None:
    (model, mine), (other, theirs), _ = pair(client)
    calls: list[list[str]] = []
    for each, optimizer in ((model, mine), (other, theirs)):
        seen: list[str] = []

        def halve(
            owner: Any, args: Any, kwargs: Any, each: Any = each, seen: Any = seen
        ) -> None:
            seen.append("before")
            for param in each.parameters():
                param.grad.mul_(0.5)

        optimizer.register_step_pre_hook(halve)
        optimizer.register_step_post_hook(lambda *_, seen=seen: seen.append("after"))
        optimizer.register_state_dict_post_hook(
            lambda owner, state, seen=seen: seen.append("saved")
        )
        optimizer.register_load_state_dict_post_hook(
            lambda owner, seen=seen: seen.append("loaded")
        )
        train(each, optimizer, 3)
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        train(each, optimizer, 1)
        calls.append(seen)
    assert calls[0] == calls[1]
    assert calls[0].count("before") == calls[0].count("after") == 4
    assert_close(model, other)


def test_a_step_in_backward(client: stepd.Client) -> None:
    (model, _), (other, _), start = pair(client)
    for each in (model, other):
        for param in each.parameters():
            optimizer: Any = (
                RemoteOptimizer([param], client, lr=1e-2)
                if each is model
                else torch.optim.AdamW([param], lr=1e-2)
            )

            def hook(param: Any, optimizer: Any = optimizer) -> None:
                optimizer.step()
                optimizer.zero_grad()

            param.register_post_accumulate_grad_hook(hook)
        for seed in range(5):
            backward(loss_of(each, seed))
        assert all(param.grad is None for param in each.parameters())
    assert_close(model, other)
    assert_moved(model, start)


def test_accumulated_and_clipped_gradients(client: stepd.Client) -> None:
    (model, mine), (other, theirs), start = pair(client)
    # clip equals clip_grad_norm_, and stats hold the norm that clip_grad_norm_ returns.
    mine.options.update(clip={"max_norm": 0.3}, stats="global", loss_scale=2.0)
    for turn in range(4):
        for each in (model, other):
            each.zero_grad()
            for seed in range(3 * turn, 3 * turn + 3):
                backward(loss_of(each, seed) / 3)
        for param in model.parameters():
            param.grad *= 2
        norm = torch.nn.utils.clip_grad_norm_(other.parameters(), 0.3)
        mine.step()
        theirs.step()
        assert mine.last_result.stats.grad_norm == pytest.approx(norm.item(), rel=1e-5)
    assert_close(model, other)
    assert_moved(model, start)


def test_averaged_weights(client: stepd.Client) -> None:
    (model, mine), (other, theirs), start = pair(client)
    averages = []
    for each, optimizer in ((model, mine), (other, theirs)):
        moving: Any = swa_utils.get_ema_multi_avg_fn
        average = swa_utils.AveragedModel(each, multi_avg_fn=moving(0.5))
        for seed in range(5):
            train(each, optimizer, range(seed, seed + 1))
            average.update_parameters(each)
        averages.append(average.module)
    assert_close(*averages)
    assert_moved(averages[0], start)


def test_shared_scalar_and_permuted_parameters(client: stepd.Client) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(0.5))
            self.first = torch.nn.Linear(6, 6)
            self.second = torch.nn.Linear(6, 6)
            self.second.weight = self.first.weight
            conv = torch.nn.Conv2d(2, 3, 3, padding=1)
            self.conv = conv.to(memory_format=torch.channels_last)
            self.empty = torch.nn.Parameter(torch.ones(0, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.scale * self.second(torch.tanh(self.first(x)))
            x = self.conv(x.reshape(-1, 2, 3, 1).expand(-1, -1, -1, 3))
            return x.mean((2, 3))[:, :2] + self.empty.sum()

    torch.manual_seed(1)
    model = Model()
    other = copy.deepcopy(model)
    train(model, remote(model, client, lr=1e-2), 6)
    train(other, torch.optim.AdamW(other.parameters(), lr=1e-2), 6)
    assert_close(model, other)
    assert not model.conv.weight.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(client: stepd.Client, dtype: torch.dtype) -> None:
    model = make_model().to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    reference = copy.deepcopy(model).to(wide)
    mine = remote(model, client, lr=1e-2, master_weights=dtype != torch.float64)
    theirs = torch.optim.AdamW(reference.parameters(), lr=1e-2)
    for seed in range(8):
        x, y = batch(seed)
        model.zero_grad()
        backward(torch.nn.functional.mse_loss(model(x.to(dtype)), y.to(dtype)))
        for a, b in zip(model.parameters(), reference.parameters(), strict=True):
            b.grad = None if a.grad is None else a.grad.to(b.dtype)
        mine.step()
        theirs.step()
    if dtype == torch.float64:
        assert_close(model, reference, rtol=1e-13, atol=1e-15)
        return
    # The step changes a float32 copy. The weights are that copy, rounded.
    copies = {
        name: mine.state[p]["master_param"] for name, p in model.named_parameters()
    }
    assert_close(copies, reference.state_dict())
    assert_equal(model, {name: one.to(dtype) for name, one in copies.items()})


@pytest.mark.parametrize("calls", ["one", "many"])
def test_a_larger_model_over_several_calls(server: Server, calls: str) -> None:
    size = 2**26 if calls == "one" else 4096
    with stepd.ShardedClient([server.url, server.url], request_bytes=size) as sharded:
        torch.manual_seed(0)
        layer = torch.nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True)
        model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        other = copy.deepcopy(model)
        x = torch.randn(4, 5, 32)
        clip: Any = {"clip": {"max_norm": 0.5}}
        ours = RemoteOptimizer(model.parameters(), sharded, lr=1e-3, **clip)
        theirs = torch.optim.AdamW(other.parameters(), lr=1e-3)
        for each, optimizer in ((model, ours), (other, theirs)):
            for _ in range(5):
                optimizer.zero_grad()
                backward((each(x) - x.flip(1)).square().sum())
                if each is other:
                    torch.nn.utils.clip_grad_norm_(each.parameters(), 0.5)
                optimizer.step()
        # The gradient of a key's bias is only noise, from which Adam makes steps of lr.
        noise = {"rtol": CLOSE["rtol"], "atol": 5e-3}
        assert_close(model, other, **noise)
