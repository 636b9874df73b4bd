"""Fine-tune a small network with adapters; stepd does every optimizer step.

First, torch's own AdamW trains the network on handwritten digits. The network stands
for a model that was trained elsewhere. The script then turns the images by 90 degrees
and freezes the network's weights. The biases, and low-rank adapters beside the
weights (LoRA), learn to read the turned images. Only these few parameters travel to the
server.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from tqdm import tqdm

from stepd.torch import RemoteOptimizer

Images = tuple[Tensor, Tensor]
Groups = list[dict[str, Any]]

GOAL = 0.90
SEED = 7
BATCH = 64
HIDDEN = 256
RANK = 8
PRETRAINING_EPOCHS = 15


class Adapted(nn.Module):
    """A linear layer with a frozen weight, plus a product of two thin matrices.

    The layer computes W + up @ down (Hu et al., 2021,
    https://arxiv.org/abs/2106.09685). up is zero at first, so the layer starts
    unchanged.
    """

    def __init__(self, layer: nn.Linear, generator: torch.Generator) -> None:
        super().__init__()
        self.layer = layer
        layer.weight.requires_grad = False
        down = torch.randn(RANK, layer.in_features, generator=generator)
        self.down = nn.Parameter(down / layer.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        adapted: Tensor = self.layer(x) + x @ self.down.T @ self.up.T
        return adapted


def digits() -> tuple[Images, Images]:
    """Return images of 8 x 8 pixels and their labels: training set, test set."""
    images, labels = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 8, 8),
        torch.tensor(labels),
        test_size=0.2,
        stratify=labels,
        random_state=SEED,
    )
    return (x_train, y_train), (x_test, y_test)


def turned(data: Images) -> Images:
    return data[0].rot90(dims=(1, 2)), data[1]


def accuracy(model: nn.Module, data: Images) -> float:
    with torch.no_grad():
        return float((model(data[0]).argmax(dim=1) == data[1]).float().mean())


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Images,
    epoch: int,
    after_step: Callable[[float], None],
) -> None:
    """Yield complete batches for one epoch; the epoch's number decides their order."""
    generator = torch.Generator().manual_seed(SEED + epoch)
    order = torch.randperm(len(data[0]), generator=generator)
    for batch in order[: len(order) // BATCH * BATCH].reshape(-1, BATCH):
        optimizer.zero_grad()
        loss = cross_entropy(model(data[0][batch]), data[1][batch])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        after_step(loss.item())


def pretrained(data: Images) -> nn.Sequential:
    torch.manual_seed(SEED)
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, 10),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(PRETRAINING_EPOCHS):
        train_epoch(model, optimizer, data, epoch, lambda loss: None)
    return model


def adapted(base: nn.Sequential) -> nn.Sequential:
    generator = torch.Generator().manual_seed(SEED)
    return nn.Sequential(
        *(
            Adapted(part, generator) if isinstance(part, nn.Linear) else part
            for part in base
        )
    )


def groups_of(model: nn.Module) -> Groups:
    """Return parameter groups: adapters, and biases with a lower rate and no decay."""
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    biases = [(n, p) for n, p in trained if n.endswith("bias")]
    adapters = [(n, p) for n, p in trained if not n.endswith("bias")]
    return [
        {"params": adapters, "lr": 2e-2, "weight_decay": 0.01},
        {"params": biases, "lr": 1e-2, "weight_decay": 0.0},
    ]


def digest_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """Return the SHA-256 of every bit of the model and of the optimizer's state."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    for slots in optimizer.state_dict()["state"].values():
        for name in sorted(slots):
            digest.update(slots[name].numpy().tobytes())
    return digest.hexdigest()


class Run:
    """A run that can be saved after any epoch and resumed with the same bits."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        data: Images,
        epochs: int,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.data = data
        self.epochs = epochs
        self.epoch = 0
        self.batches = len(data[0]) // BATCH
        self.scheduler: LRScheduler = CosineAnnealingLR(
            optimizer, T_max=epochs * self.batches
        )

    def save(self, path: pathlib.Path) -> None:
        partial = path.with_suffix(".partial")
        checkpoint = {
            "epoch": self.epoch,
            "epochs": self.epochs,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }
        torch.save(checkpoint, partial)
        os.replace(partial, path)

    def load(self, path: pathlib.Path) -> None:
        if not path.exists():
            raise SystemExit(f"--resume: expected a checkpoint, found no {path}")
        checkpoint = torch.load(path, weights_only=True)
        if checkpoint["epochs"] != self.epochs:
            raise SystemExit(
                f"--epochs: expected {checkpoint['epochs']} as in {path}, "
                f"found {self.epochs}"
            )
        self.epoch = checkpoint["epoch"]
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.scheduler.load_state_dict(checkpoint["scheduler"])

    def train(self, name: str, until: int, checkpoint: pathlib.Path | None) -> None:
        steps = (until - self.epoch) * self.batches
        with tqdm(total=steps, desc=name, unit="step") as bar:

            def after_step(loss: float) -> None:
                self.scheduler.step()
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                bar.update()

            while self.epoch < until:
                order = PRETRAINING_EPOCHS + self.epoch
                train_epoch(self.model, self.optimizer, self.data, order, after_step)
                self.epoch += 1
                if checkpoint is not None:
                    self.save(checkpoint)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--url",
        default=os.environ.get("STEPD_URL", "http://127.0.0.1:8080"),
        help="where stepd listens (%(default)s)",
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=15,
        help="passes over the turned images (%(default)s)",
    )
    parser.add_argument(
        "--checkpoint",
        type=pathlib.Path,
        help="file to save the run to after each epoch",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint"
    )
    parser.add_argument(
        "--stop-after", type=int, help="end after this epoch, as if killed there"
    )
    arguments = parser.parse_args()
    for name in ("epochs", "stop_after"):
        count = getattr(arguments, name)
        if count is not None and count < 1:
            option = name.replace("_", "-")
            parser.error(f"--{option}: expected at least 1, found {count}")
    if arguments.resume and arguments.checkpoint is None:
        parser.error("--resume needs a --checkpoint")
    return arguments


def main() -> int:
    arguments = read_arguments()
    epochs: int = arguments.epochs
    # torch uses one thread. More threads would change the order of sums, and would not
    # speed up such a small network.
    torch.set_num_threads(1)
    train, test = digits()
    base = pretrained(train)
    print(f"accuracy of the base on upright digits {accuracy(base, test):.2%}")
    train, test = turned(train), turned(test)
    before = accuracy(base, test)

    model = adapted(base)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    groups = groups_of(model)
    travels = sum(p.numel() for group in groups for _, p in group["params"])
    whole = sum(p.numel() for p in model.parameters())
    print(f"{travels} of {whole} parameters are trained")
    remote = RemoteOptimizer(groups, arguments.url, "adamw")
    run = Run(model, remote, train, epochs)
    if arguments.resume:
        run.load(arguments.checkpoint)
        print(f"resumed after epoch {run.epoch}")
    until = min(epochs, arguments.stop_after or epochs)
    run.train("stepd", until, arguments.checkpoint)
    after = accuracy(model, test)
    print(f"sha256 of model and state {digest_of(model, remote)}")
    if until < epochs:
        print(f"stopped after epoch {run.epoch}")
        return 0

    found = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(start)
    own = torch.optim.AdamW(groups_of(model))
    Run(model, own, train, epochs).train("torch", epochs, None)
    difference = max(
        float((found[name] - tensor).abs().max())
        for name, tensor in model.state_dict().items()
    )
    print("accuracy on turned digits   before    after")
    print(f"AdamW of stepd             {before:7.2%}  {after:7.2%}")
    print(f"AdamW of torch             {before:7.2%}  {accuracy(model, test):7.2%}")
    print(f"largest difference of a parameter {difference:.1e}")
    return 0 if after > GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
