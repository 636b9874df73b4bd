"""Tests transformers' Trainer, accelerate and PEFT on models built from a config."""

from __future__ import annotations

import copy
import pathlib
from typing import Any

import accelerate
import peft
import pytest
import torch
import transformers
from twins import assert_close, assert_equal, assert_moved, backward

import stepd
from stepd.torch import RemoteOptimizer

VOCABULARY = 40


def make_model() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
    )
    return transformers.LlamaForCausalLM(config)


class Sequences(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Sequences that count up from a start, which a model learns quickly."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        tokens = (place + torch.arange(8)) % VOCABULARY
        return {"input_ids": tokens, "labels": tokens}


def trainer(
    model: Any, folder: pathlib.Path, optimizer: Any = None, **more: Any
) -> transformers.Trainer:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "warmup_steps": 2,
        "max_grad_norm": 0.5,
        "gradient_accumulation_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "seed": 1,
        "disable_tqdm": True,
        **more,
    }
    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(**settings),
        train_dataset=Sequences(),
        optimizer_cls_and_kwargs=optimizer,
    )


@pytest.fixture
def mine(client: stepd.Client) -> tuple[Any, dict[str, Any]]:
    """Return the class and arguments of the optimizer that the Trainer creates."""
    return RemoteOptimizer, {"client": client, "lr": 1e-2}


THEIRS: Any = (torch.optim.AdamW, {"lr": 1e-2})


def losses(done: transformers.Trainer) -> list[float]:
    return [entry["loss"] for entry in done.state.log_history if "loss" in entry]


def test_trainer(mine: Any, tmp_path: pathlib.Path) -> None:
    start = make_model()
    model, other = copy.deepcopy(start), copy.deepcopy(start)
    runs = [trainer(model, tmp_path, mine), trainer(other, tmp_path, THEIRS)]
    for run in runs:
        run.train()
    assert_close(model, other, rtol=1e-4, atol=1e-5)
    assert_moved(model, start)
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-4)
    assert losses(runs[0])[-1] < losses(runs[0])[0]
    optimizer = runs[0].optimizer
    groups = getattr(optimizer, "optimizer", optimizer).param_groups
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}


def test_trainer_takes_an_optimizer(
    client: stepd.Client, tmp_path: pathlib.Path
) -> None:
    models = []
    for kind in ("mine", "theirs"):
        model = make_model()
        optimizer: Any = (
            RemoteOptimizer(model.parameters(), client, lr=1e-2)
            if kind == "mine"
            else torch.optim.AdamW(model.parameters(), lr=1e-2)
        )
        scheduler = transformers.get_cosine_schedule_with_warmup(optimizer, 2, 6)
        run = trainer(model, tmp_path)
        run.optimizer, run.lr_scheduler = optimizer, scheduler
        run.train()
        models.append(model)
    assert_close(*models, rtol=1e-4, atol=1e-5)


def test_trainer_resumes_to_the_same_bits(mine: Any, tmp_path: pathlib.Path) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    model = make_model()
    trainer(model, tmp_path, mine, **saving).train()
    resumed = make_model()
    place = str(tmp_path / "checkpoint-3")
    trainer(resumed, tmp_path, mine, **saving).train(resume_from_checkpoint=place)
    assert_equal(resumed, model)
    # torch's AdamW loads the same checkpoint.
    other = make_model()
    trainer(other, tmp_path, THEIRS, **saving).train(resume_from_checkpoint=place)
    assert_close(other, model, rtol=1e-4, atol=1e-5)


def test_accelerate(client: stepd.Client, tmp_path: pathlib.Path) -> None:
    runs = []
    for kind in ("mine", "theirs"):
        torch.manual_seed(0)
        model = make_model()
        optimizer: Any = (
            RemoteOptimizer(model.parameters(), client, lr=1e-2, stats="global")
            if kind == "mine"
            else torch.optim.AdamW(model.parameters(), lr=1e-2)
        )
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        loader = torch.utils.data.DataLoader(Sequences(), batch_size=4)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4)
        model, optimizer, loader, schedule = accelerator.prepare(
            model, optimizer, loader, schedule
        )
        for place, entry in enumerate(loader):
            with accelerator.accumulate(model):
                loss = model(**entry).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            if place == 3:
                folder = tmp_path / kind
                accelerator.save_state(str(folder))
        assert float(norm) > 0
        if kind == "mine":
            assert optimizer.optimizer.last_result.stats.grad_norm == pytest.approx(
                min(float(norm), 0.5), rel=1e-3
            )
        runs.append((model, optimizer, accelerator))
    models = [model for model, _, _ in runs]
    assert_close(*models, rtol=1e-4, atol=1e-5)
    model, optimizer, accelerator = runs[0]
    accelerator.load_state(str(tmp_path / "mine"))
    assert int(optimizer.optimizer.state[next(model.parameters())]["step"]) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora(mine: Any, tmp_path: pathlib.Path, dtype: torch.dtype) -> None:
    def adapted() -> Any:
        model = make_model().to(dtype)
        config = peft.LoraConfig(
            r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.0
        )
        torch.manual_seed(2)
        return peft.get_peft_model(model, config)

    start, model, other = adapted(), adapted(), adapted()
    runs = [trainer(model, tmp_path, mine), trainer(other, tmp_path, THEIRS)]
    for run in runs:
        run.train()
    assert_close(model, other, rtol=1e-4, atol=1e-5)
    changed = {
        name
        for (name, a), b in zip(
            model.named_parameters(), start.parameters(), strict=True
        )
        if not torch.equal(a, b)
    }
    assert changed and all("lora_" in name for name in changed)
    # Only the adapters have a state, so only the adapters were sent.
    optimizer: Any = runs[0].optimizer
    remote = getattr(optimizer, "optimizer", optimizer)
    assert len(remote.state) == len(changed)
    model.save_pretrained(str(tmp_path / "adapter"))
    base = make_model().to(dtype)
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    tokens = torch.arange(8)[None]
    torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits)


def test_a_classifier_by_hand(client: stepd.Client) -> None:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config)
    other = copy.deepcopy(model)
    optimizers: list[Any] = [
        RemoteOptimizer(model.named_parameters(), client, "adam", lr=1e-3),
        torch.optim.Adam(other.parameters(), lr=1e-3),
    ]
    tokens = torch.arange(24).reshape(4, 6)
    for each, optimizer in zip((model, other), optimizers, strict=True):
        for _ in range(4):
            optimizer.zero_grad()
            backward(each(tokens, labels=torch.tensor([0, 1, 0, 1])).loss)
            optimizer.step()
    # The gradient of a key's bias is only noise, from which Adam makes steps of lr.
    for name, theirs in other.named_parameters():
        ours = model.get_parameter(name)
        atol = 1e-2 if name.endswith("key.bias") else 1e-5
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=atol)
