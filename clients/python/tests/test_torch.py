"""Compares RemoteOptimizer with torch's own optimizers."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from conftest import Server  # noqa: E402

import stepd  # noqa: E402
from stepd.torch import RemoteOptimizer  # noqa: E402

# torch fuses some multiplications with additions. stepd never does.
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
    "adafactor": ("Adafactor", {"lr": 0.1, "weight_decay": 0.1}),
}


@pytest.mark.parametrize("name", TWINS)
def test_steps_equal_torch(client: stepd.Client, name: str) -> None:
    twin, settings = TWINS[name]
    model = make_model()
    other = copy.deepcopy(model)
    mine = RemoteOptimizer(model.parameters(), client, name, **settings)
    theirs = getattr(torch.optim, twin)(other.parameters(), **settings)
    train(model, mine, 20)
    train(other, theirs, 20)
    assert_close(model, other)


SLOTS = {"adafactor": {"row_var", "col_var"}}


@pytest.mark.parametrize("name", ["adam", "adamw", "adafactor"])
def test_state_dicts_load_both_ways(client: stepd.Client, name: str) -> None:
    twin, settings = TWINS[name]
    kind = getattr(torch.optim, twin)
    model = make_model()
    mine = RemoteOptimizer(model.parameters(), client, name, **settings)
    train(model, mine, 5)
    saved = copy.deepcopy(mine.state_dict())
    slots = SLOTS.get(name, {"exp_avg", "exp_avg_sq"})
    assert set(saved["state"][0]) >= {"step", *slots}
    assert saved["state"][0]["step"].dtype == torch.float32

    other = copy.deepcopy(model)
    theirs = kind(other.parameters())
    theirs.load_state_dict(saved)
    assert theirs.param_groups[0]["lr"] == settings["lr"]
    train(model, mine, 5)
    train(other, theirs, 5)
    assert_close(model, other)

    # In the other direction, RemoteOptimizer loads a state that torch has written.
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
    assert product.dtype == torch.float64  # torch's load_state_dict has not rounded it.
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


@pytest.mark.parametrize("state_dtype", ["BF16", "Q8"])
def test_narrow_moments(client: stepd.Client, state_dtype: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 600), torch.nn.Linear(600, 4))
    twin, wide = copy.deepcopy(model), copy.deepcopy(model)

    def optimizer_of(model: Any, **settings: Any) -> RemoteOptimizer:
        return RemoteOptimizer(model.parameters(), client, lr=1e-2, **settings)

    def train(model: Any, optimizer: RemoteOptimizer) -> None:
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(16, 8, generator=generator)).square().mean().backward()
            optimizer.step()

    optimizer = optimizer_of(model, state_dtype=state_dtype)
    train(model, optimizer)
    state = optimizer.state_dict()["state"]
    stock = torch.optim.AdamW(copy.deepcopy(model).parameters())
    stock.load_state_dict(optimizer.state_dict())
    for param in stock.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    if state_dtype == "Q8":
        codes = (state[0]["exp_avg.code"].dtype, state[0]["exp_avg_sq.code"].dtype)
        assert codes == (torch.int8, torch.uint8)
        assert state[0]["exp_avg.scale"].shape == (75,)
        assert state[1]["exp_avg"].dtype == torch.float32
        # torch would take codes under the name of the slot for moments.
        with pytest.raises(KeyError, match="exp_avg"):
            stock.step()
    else:
        for slot in ("exp_avg", "exp_avg_sq"):
            assert state[0][slot].dtype == torch.bfloat16
        stock.step()
    exact = optimizer_of(wide)
    train(wide, exact)
    assert torch.allclose(model[0].weight, wide[0].weight, atol=5e-3)
    train(twin, optimizer_of(twin, state_dtype=state_dtype))
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    resumed = optimizer_of(twin, state_dtype=state_dtype)
    resumed.load_state_dict(torch.load(io.BytesIO(saved.getvalue())))
    train(model, optimizer)
    train(twin, resumed)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(stepd.StepdError, match=r"state\.convert"):
        exact.param_groups[0]["state_dtype"] = state_dtype
        train(wide, exact)


def test_a_loaded_state_dtype_that_replaces_another(client: stepd.Client) -> None:
    model = make_model()
    saved = RemoteOptimizer(model.parameters(), client).state_dict()
    wide = torch.optim.AdamW(model.parameters()).state_dict()
    optimizer = RemoteOptimizer(model.parameters(), client, state_dtype="BF16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(wide)
    assert optimizer.param_groups[0]["state_dtype"] == "BF16"
    sentence = "state_dtype: F32 of the loaded state replaces BF16"
    with pytest.warns(RuntimeWarning, match=sentence) as caught:
        optimizer.load_state_dict(saved)
    assert caught[0].filename == __file__


def test_two_schedules(client: stepd.Client) -> None:
    model = make_model()
    schedule = stepd.schedules.constant()
    optimizer = RemoteOptimizer(model.parameters(), client, schedule=schedule)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, 1)
    torch.optim.lr_scheduler.ConstantLR(optimizer)
    with pytest.warns(RuntimeWarning, match="the step multiplies both"):
        train(model, optimizer, 1)


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


def test_stale_master_copy_is_replaced(client: stepd.Client) -> None:
    weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    weight.grad = torch.ones(3, dtype=torch.bfloat16)
    settings: dict[str, Any] = {"lr": 0.1, "weight_decay": 0}
    mine = RemoteOptimizer([weight], client, master_weights=True, **settings)
    mine.step()
    # The copy lies between two bfloat16 values, so that rounding would change it.
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
    # With equal gradients each step has the size of lr.
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
def test_copies_continue_alike(server: Server, sharded: bool, twin: Any) -> None:
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
    with pytest.warns(UserWarning, match="no parameter has a gradient") as caught:
        optimizer.step()
    assert not optimizer.skipped
    assert caught[0].filename == __file__


def test_options_of_a_step(client: stepd.Client) -> None:
    model = make_model()
    other = copy.deepcopy(model)
    mine = RemoteOptimizer(
        model.named_parameters(),
        client,
        lr=1e-2,
        stats="tensor",
        clip={"max_norm": 0.1},
        loss_scale=4.0,
    )
    theirs = torch.optim.AdamW(other.parameters(), lr=1e-2)
    assert mine.last_result is None
    for _ in range(3):
        for each in (model, other):
            each.zero_grad()
            each(torch.ones(4, 6)).square().sum().backward()
        for param in model.parameters():
            param.grad = 4 * param.grad
        norm = torch.nn.utils.clip_grad_norm_(other.parameters(), 0.1)
        mine.step()
        theirs.step()
        stats = mine.last_result and mine.last_result.stats
        assert stats is not None and stats.tensors is not None and stats.clipped
        assert stats.grad_norm == pytest.approx(norm.item(), rel=1e-5)
        assert stats.tensors.keys() == dict(model.named_parameters()).keys()
    assert_close(model, other)
    mine.options["stats"] = None
    mine.step()
    assert mine.last_result is not None and mine.last_result.stats is None
    assert mine.last_result.lr == 1e-2 and mine.last_result.params == {}


def test_stochastic_rounding_and_replies_in_bfloat16(client: stepd.Client) -> None:
    steps = []
    options: list[dict[str, Any]] = [{}, {"stochastic_rounding": {"seed": 7}}]
    for settings in options:
        weight = torch.nn.Parameter(torch.ones(1000, dtype=torch.bfloat16))
        weight.grad = torch.ones(1000, dtype=torch.bfloat16)
        RemoteOptimizer([weight], client, "sgd", lr=1e-3, **settings).step()
        steps.append(weight.detach().clone())
    # The step is a quarter of the distance to the next bfloat16.
    assert torch.equal(steps[0], torch.ones(1000, dtype=torch.bfloat16))
    assert 0.1 < (steps[1] != 1).float().mean() < 0.4
    wide = torch.nn.Parameter(torch.ones(3))
    wide.grad = torch.ones(3)
    RemoteOptimizer([wide], client, "sgd", lr=0.1, reply={"params": "bf16"}).step()
    assert torch.equal(wide, torch.full((3,), 0.9).bfloat16().float())


def test_sends_handles_of_cached_results() -> None:
    with Server(STEPD_CACHE_MIB="16") as server:
        runs = []
        for reply in (None, {"cache": True}):
            sent: list[Any] = []

            class Recording(stepd.Client):
                def step(self, *args: Any, sent: Any = sent, **options: Any) -> Any:
                    sent.append(options.get("cached"))
                    return super().step(*args, **options)

            with Recording(server.url) as client:
                model = make_model()
                optimizer = RemoteOptimizer(model.parameters(), client, reply=reply)
                train(model, optimizer, 3)
                # After either change the server's cached copy is outdated.
                with torch.no_grad():
                    model[0].weight[0, 0] += 1
                train(model, optimizer, 1)
                model[0].weight.data[0, 0] += 1
                train(model, optimizer, 1)
                optimizer.state[model[2].weight]["exp_avg"].mul_(0.5)
                train(model, optimizer, 1)
                model[0].bias.requires_grad_(False)
                model[0].bias.grad = None
                train(model, optimizer, 2)
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
                train(model, optimizer, 1)
            runs.append(model)
        named = [one is not None for one in sent]
        # The first call is the constructor's check. All later calls are steps.
        assert named == [False] + [False, True, True] + [False] * 3 + [
            *(False, True, False)
        ]
        for a, b in zip(runs[0].parameters(), runs[1].parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("coalesced", [False, True])
def test_sparse_gradients_are_made_dense(client: stepd.Client, coalesced: bool) -> None:
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0.9}
    model = torch.nn.Embedding(10, 3, sparse=True)
    other = copy.deepcopy(model)
    mine = RemoteOptimizer(model.parameters(), client, "sgd", **settings)
    theirs = torch.optim.SGD(other.parameters(), **settings)
    for rows in ([1, 1, 4], [4, 2], [0]):
        for each, optimizer in ((model, mine), (other, theirs)):
            optimizer.zero_grad()
            each(torch.tensor(rows)).square().sum().backward()
            assert each.weight.grad is not None and each.weight.grad.is_sparse
            if coalesced:
                each.weight.grad = each.weight.grad.coalesce()
            optimizer.step()
    assert_close(model, other)


@pytest.mark.parametrize("name", ["__metadata__", "a\ud800", "a*", ""])
def test_any_parameter_name(client: stepd.Client, name: str) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    optimizer = RemoteOptimizer([(name, weight)], client, "sgd", lr=0.5)
    optimizer.step()
    assert torch.equal(weight, torch.full((3,), 0.5))


W = torch.nn.Parameter(torch.ones(3))

MISTAKES: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "client": ([W], {"client": 0.1}, TypeError, "client: expected a Client.*0.1"),
    "class": ([W], {"client": stepd.Client}, TypeError, "client: expected"),
    "async": (
        [W],
        {"client": stepd.AsyncClient("http://127.0.0.1:1")},
        TypeError,
        "AsyncClient, which needs an event loop",
    ),
    "url": ([W], {"client": "localhost:1"}, ValueError, "localhost:1"),
    "optimizer": ([W], {"name": {"name": "sgd"}}, TypeError, "name: expected"),
    "unknown": ([W], {"name": "adamv"}, stepd.ServerError, "adamw?"),
    "lr": ([W], {"lr": -1}, stepd.InvalidParams, "/lr: expected at least 0, found -1"),
    "text": ([W], {"lr": "1e-3"}, stepd.InvalidParams, "/lr: expected"),
    "betas": ([W], {"betas": 0.9}, stepd.InvalidParams, "/betas: expected"),
    "typo": ([W], {"learning_rate": 1}, TypeError, "no hyperparameter learning_rate"),
    "near": ([W], {"weight_decy": 1}, TypeError, "the nearest is weight_decay"),
    "groups": ([W], {"groups": []}, TypeError, "groups: expected none"),
    "group": (
        [{"params": [W]}, {"params": [torch.nn.Parameter(torch.ones(1))], "lr": -1}],
        {},
        stepd.InvalidParams,
        "/groups/1/optimizer/lr",
    ),
    "clip": ([W], {"clip": 1.0}, TypeError, "clip: expected a mapping"),
    "stats": ([W], {"stats": "all"}, stepd.InvalidParams, "/stats: expected"),
    "cached": ([W], {"cached": stepd.Cached("00")}, TypeError, "cached: expected none"),
    "reply": ([W], {"reply": "bf16"}, TypeError, "reply: expected a dict"),
    "part": ([W], {"reply": {"state": "none"}}, ValueError, "reply: expected state"),
    "word": ([W], {"reply": {"params": "f8"}}, stepd.InvalidParams, "/reply/params"),
    "empty": ([], {}, ValueError, "empty parameter list"),
    "module": (torch.nn.Linear(2, 2), {}, TypeError, "params: expected.*found Linear"),
    "None": (None, {}, TypeError, "^params: expected.*found None$"),
    "number": (5, {}, TypeError, "^params: expected.*found int$"),
    "bare": ([{"lr": 1}], {}, TypeError, "^group: expected.*params, found lr$"),
    "none in it": ([{"params": None}], {}, TypeError, "^params: expected.*found None"),
    "integers": (
        [torch.ones(3, dtype=torch.int32)],
        {},
        TypeError,
        "parameter 0: expected float16.*int32",
    ),
    "complex": (
        [("z", torch.ones(3, dtype=torch.complex64))],
        {},
        TypeError,
        "parameter z: expected real numbers.*view_as_real",
    ),
    "sparse": ([torch.eye(3).to_sparse()], {}, TypeError, "expected a dense tensor"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_raise_at_once(client: stepd.Client, mistake: str) -> None:
    params, settings, kind, sentence = MISTAKES[mistake]
    with pytest.raises(kind, match=sentence):
        RemoteOptimizer(params, **{"client": client, **settings})


def test_refused_group_leaves_no_trace(client: stepd.Client) -> None:
    optimizer = RemoteOptimizer([torch.nn.Parameter(torch.ones(3))], client)
    wrong: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"params": [torch.nn.Parameter(torch.ones(3))], "lr": -1}, ValueError),
        ({"params": [torch.ones(3, dtype=torch.complex64)]}, TypeError),
    ]
    for group, kind in wrong:
        with pytest.raises((kind, stepd.InvalidParams)):
            optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == 1


def test_mistakes_at_a_step(client: stepd.Client) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    adamw = RemoteOptimizer([weight], client)
    momentum = torch.optim.SGD([weight], momentum=0.9)
    momentum.step()
    before = copy.deepcopy(adamw.state_dict())
    with pytest.raises(ValueError, match="momentum_buffer, which adamw does not have"):
        adamw.load_state_dict(momentum.state_dict())
    other = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2, 2))])
    other.param_groups[0]["params"][0].grad = torch.ones(2, 2)
    other.step()
    with pytest.raises(ValueError, match=r"shape \[2, 2\] for a parameter of \[3\]"):
        adamw.load_state_dict(other.state_dict())
    assert adamw.state_dict() == before
    wrong: Any
    for wrong in ({"weight": torch.ones(3)}, None, [1]):
        with pytest.raises(ValueError, match="state_dict: expected what state_dict"):
            adamw.load_state_dict(wrong)
    with pytest.raises(TypeError, match="closure: expected a function, found float"):
        adamw.step(1.0)  # type: ignore[call-overload]
    adamw.options["clip"] = 1.0  # type: ignore[typeddict-item]
    with pytest.raises(TypeError, match="clip: expected a mapping"):
        adamw.step()
    empty = torch.nn.Parameter(torch.ones(3, device="meta"))
    empty.grad = torch.ones(3, device="meta")
    with pytest.raises(ValueError, match="device meta"):
        RemoteOptimizer([empty], client).step()
    assert torch.equal(weight.detach()[1:], weight.detach()[:-1])


def test_passes_on_server_warnings(client: stepd.Client) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.full((3,), 1e30)
    optimizer = RemoteOptimizer([weight], client)
    with pytest.warns(RuntimeWarning, match="squares of gradients") as caught:
        optimizer.step()
    assert caught[0].filename == __file__
    assert optimizer.last_result is not None and optimizer.last_result.warnings


def test_is_available_without_its_own_import() -> None:
    code = """
import sys, stepd
assert not {"torch", "jax", "optax", "aiohttp"} & set(sys.modules)
assert stepd.torch.RemoteOptimizer.__name__ == "RemoteOptimizer"
assert "torch" in sys.modules and "jax" not in sys.modules
assert callable(stepd.optax.remote)
assert not hasattr(stepd, "keras")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["torch", "optax"])
def test_names_the_missing_extra(name: str) -> None:
    code = f"import sys; sys.modules[{name!r}] = None; import stepd; stepd.{name}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f'needs {name}: pip install "stepd[{name}]"' in ended.stderr


def shared_pairs() -> dict[str, tuple[Any, Any]]:
    flat = torch.zeros(12)
    parts = torch.nn.Parameter(flat[:8]), torch.nn.Parameter(flat[4:])
    grid = torch.zeros(4, 3)
    crossing = torch.nn.Parameter(grid[:, :2]), torch.nn.Parameter(grid[:, 1:])
    weight = torch.nn.Parameter(torch.zeros(3))
    return {
        "whole": (weight, torch.nn.Parameter(weight.data)),
        "overlapping": parts,
        "crossing": crossing,
    }


@pytest.mark.parametrize("pair", shared_pairs().values(), ids=shared_pairs())
def test_overlapping_parameters_are_refused(
    client: stepd.Client, pair: tuple[Any, Any]
) -> None:
    sentence = "expected memory of its own, found that of parameter 0 of group 0"
    with pytest.raises(ValueError, match=sentence):
        RemoteOptimizer(list(pair), client, "sgd", lr=1.0)
    optimizer = RemoteOptimizer([pair[0]], client, "sgd", lr=1.0)
    with pytest.raises(ValueError, match="one update would be lost"):
        optimizer.add_param_group({"params": [pair[1]]})
    assert len(optimizer.param_groups) == 1


def test_disjoint_views_of_one_storage_are_stepped(client: stepd.Client) -> None:
    grid, flat = torch.zeros(4, 3), torch.zeros(12)
    apart = [grid[:, 0], grid[:, 1], grid[:, 2], flat[:6], flat[6:], flat[:0]]
    params = [torch.nn.Parameter(view) for view in apart]
    optimizer = RemoteOptimizer(params, client, "sgd", lr=1.0)
    for place, param in enumerate(params):
        param.grad = torch.full_like(param, -1.0 - place)
    optimizer.step()
    assert torch.equal(grid, torch.tensor([1.0, 2.0, 3.0]).expand(4, 3))
    assert torch.equal(flat, torch.tensor([4.0] * 6 + [5.0] * 6))


def mixed_groups(model: Any) -> list[dict[str, Any]]:
    matrices = [param for param in model.parameters() if param.ndim == 2]
    others = [param for param in model.parameters() if param.ndim != 2]
    sgd = {"params": matrices, "optimizer": "sgd", "lr": 0.05, "momentum": 0.9}
    return [sgd, {"params": others, "weight_decay": 0.2}]


def test_a_group_has_its_own_optimizer(client: stepd.Client) -> None:
    model = make_model()
    other = copy.deepcopy(model)
    mine = RemoteOptimizer(mixed_groups(model), client, "adamw", lr=0.02)
    assert mine.param_groups[0]["weight_decay"] == 0
    sgd, rest = mixed_groups(other)
    theirs = [
        torch.optim.SGD(sgd["params"], lr=0.05, momentum=0.9),
        torch.optim.AdamW(rest["params"], lr=0.02, weight_decay=0.2),
    ]
    train(model, mine, 3)
    saved = pickle.loads(pickle.dumps(mine.state_dict()))
    train(model, mine, 3)
    for steps in (3, 3):
        generator = torch.Generator().manual_seed(5)
        for _ in range(steps):
            x = torch.randn(32, 6, generator=generator)
            y = torch.stack([x.sum(1), x.prod(1)], 1)
            for one in theirs:
                one.zero_grad()
            torch.nn.functional.mse_loss(other(x), y).backward()
            for one in theirs:
                one.step()
    assert_close(model, other)
    slots = [set(mine.state[group["params"][0]]) for group in mine.param_groups]
    assert slots == [{"step", "momentum_buffer"}, {"step", "exp_avg", "exp_avg_sq"}]
    # The saved state continues in another optimizer with the same bits.
    again = make_model()
    resumed = RemoteOptimizer(mixed_groups(again), client, "adamw", lr=0.02)
    train(again, resumed, 3)
    resumed.load_state_dict(saved)
    train(again, resumed, 3)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert pickle.loads(pickle.dumps(resumed.state_dict())).keys() == saved.keys()


def test_a_group_with_an_optimizer_that_does_not_fit(client: stepd.Client) -> None:
    params = [torch.nn.Parameter(torch.ones(2))]
    for own, message in (
        (1, "group: optimizer: expected the name of one"),
        ({"name": "sgd", "betas": 1}, "group: sgd has no hyperparameter betas"),
    ):
        with pytest.raises(TypeError, match=message):
            RemoteOptimizer([{"params": params, "optimizer": own}], client)
    with pytest.raises(stepd.ServerError):
        RemoteOptimizer([{"params": params, "optimizer": "sdg"}], client)
    own = stepd.optimizers.sgd(lr=0.5)
    made = RemoteOptimizer([{"params": params, "optimizer": own}], client)
    assert (made.param_groups[0]["optimizer"], made.param_groups[0]["lr"]) == (
        "sgd",
        0.5,
    )
    params[0].grad = torch.ones(2)
    made.step()
    assert params[0].tolist() == [0.5, 0.5]
