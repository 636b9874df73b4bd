"""Small models, and checks that two runs agree."""

from __future__ import annotations

from typing import Any

import torch

#: torch fuses some multiplications with additions in float32, and stepd never does.
#: After the few dozen steps of these tests, weights differ by about ten units in the
#: last place.
CLOSE = {"rtol": 5e-5, "atol": 5e-7}


def make_model(seed: int = 3) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)
    )


def batch(seed: int, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(size, 6, generator=torch.Generator().manual_seed(seed))
    return x, torch.stack([x.sum(1), x.prod(1)], 1)


def loss_of(model: Any, seed: int) -> torch.Tensor:
    x, y = batch(seed)
    return torch.nn.functional.mse_loss(model(x), y)


def backward(loss: Any) -> None:
    """Call ``loss.backward()``, which torch leaves untyped."""
    loss.backward()


def train(model: Any, optimizer: Any, steps: range | int, scheduler: Any = None) -> Any:
    """Take steps, each with its own batch, and return the last loss."""
    loss: Any = None
    for seed in range(steps) if isinstance(steps, int) else steps:
        optimizer.zero_grad()
        loss = loss_of(model, seed)
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return loss


def assert_close(one: Any, other: Any, **tolerance: float) -> None:
    """Check that two models' parameters, or two mappings of tensors, agree."""
    a, b = (
        each if isinstance(each, dict) else each.state_dict() for each in (one, other)
    )
    assert a.keys() == b.keys() and a
    limits: Any = tolerance or CLOSE
    for name in a:
        try:
            torch.testing.assert_close(a[name], b[name], **limits)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


def assert_equal(one: Any, other: Any) -> None:
    """Check that two models or mappings are bit-identical."""
    assert_close(one, other, rtol=0, atol=0)


def assert_moved(one: Any, other: Any) -> None:
    """Check that training changed every parameter; else agreement proves nothing."""
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        assert not torch.equal(a, b), name
