"""Tests Lightning's Trainer with RemoteOptimizer and with torch's optimizer."""

from __future__ import annotations

import copy
import pathlib
from typing import Any

import lightning
import pytest
import torch
from twins import assert_close, assert_equal, assert_moved, batch, make_model

import stepd
from stepd.torch import RemoteOptimizer


class Module(lightning.LightningModule):  # type: ignore[misc]
    """A small model; ``make`` creates its optimizer."""

    def __init__(self, make: Any, automatic: bool = True) -> None:
        super().__init__()
        self.model = make_model()
        self.make = make
        self.automatic_optimization = automatic

    def training_step(self, entry: Any, place: int) -> Any:
        x, y = entry
        loss = torch.nn.functional.mse_loss(self.model(x), y)
        if not self.automatic_optimization:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = self.make(self.model)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def fit(
    module: Module,
    folder: pathlib.Path,
    steps: int = 6,
    resume: Any = None,
    **more: Any,
) -> Any:
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        **more,
    )
    data = torch.utils.data.TensorDataset(*batch(0, size=64))
    trainer.fit(module, torch.utils.data.DataLoader(data, 8), ckpt_path=resume)
    return trainer


@pytest.fixture
def makers(client: stepd.Client) -> list[Any]:
    return [
        lambda model: RemoteOptimizer(model.named_parameters(), client, lr=1e-2),
        lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2),
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_clip_val": 0.1},
        {"accumulate_grad_batches": 2, "max_epochs": 2},
        {"precision": "bf16-mixed"},
    ],
    ids=["plain", "clip", "accumulate", "mixed"],
)
def test_fit(makers: Any, tmp_path: pathlib.Path, settings: dict[str, Any]) -> None:
    modules = [Module(make) for make in makers]
    start = copy.deepcopy(modules[0].model)
    for module in modules:
        fit(module, tmp_path, **settings)
    # In mixed precision a difference in the last bit may round to another bfloat16.
    loose = {"rtol": 1e-2, "atol": 1e-3} if "precision" in settings else {}
    assert_close(modules[0].model, modules[1].model, **loose)
    assert_moved(modules[0].model, start)


def test_manual_optimization(makers: Any, tmp_path: pathlib.Path) -> None:
    modules = [Module(make, automatic=False) for make in makers]
    for module in modules:
        fit(module, tmp_path)
    assert_close(modules[0].model, modules[1].model)


def test_resumes_to_the_same_bits(makers: Any, tmp_path: pathlib.Path) -> None:
    straight = Module(makers[0])
    fit(straight, tmp_path, steps=6)
    half = Module(makers[0])
    trainer = fit(half, tmp_path, steps=3)
    place = tmp_path / "half.ckpt"
    trainer.save_checkpoint(place)
    again = Module(makers[0])
    fit(again, tmp_path, steps=6, resume=place)
    # Lightning restarts the epoch, so the batches differ from an uninterrupted run.
    twin = Module(makers[1])
    fit(twin, tmp_path, steps=6, resume=place)
    assert_close(again.model, twin.model)
    second = Module(makers[0])
    fit(second, tmp_path, steps=6, resume=place)
    assert_equal(again.model, second.model)
    assert_moved(again.model, half.model)
