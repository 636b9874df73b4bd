"""The two processes of torch.distributed that test_distributed.py starts.

python two_processes.py RANK URL FOLDER

Each case runs in both processes, and saves its result or error to FOLDER/CASE.RANK.pt.
"""

from __future__ import annotations

import copy
import pathlib
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint.state_dict_loader as loader
import torch.distributed.checkpoint.state_dict_saver as saver
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Replicate, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from twins import backward, loss_of, make_model, train

import stepd
from stepd.torch import RemoteOptimizer, overlap_hook

Tensors = dict[str, torch.Tensor]

RATE: dict[str, Any] = {"lr": 1e-2}


def whole(model: torch.nn.Module) -> Tensors:
    """Return copies of all parameters, gathered from their shards."""
    return {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for name, p in model.named_parameters()
    }


class Run:
    """One process's part of each case."""

    def __init__(self, rank: int, url: str, folder: pathlib.Path) -> None:
        self.rank = rank
        self.folder = folder
        self.client = stepd.Client(url)
        self.mesh = init_device_mesh("cpu", (2,))

    def remote(self, model: torch.nn.Module, name: str = "adamw", **more: Any) -> Any:
        named = model.named_parameters()
        return RemoteOptimizer(named, self.client, name, **{**RATE, **more})

    def batches(self, steps: int, start: int = 0) -> range:
        """Return seeds for this process only."""
        return range(2 * start + self.rank, 2 * (start + steps) + self.rank, 2)

    def deep(self, seed: int = 3) -> Any:
        """Return a model with odd row counts. Process 2 lacks rows of some layers."""
        model = make_model(seed)
        for layer in (torch.nn.Linear(2, 1), torch.nn.Linear(1, 3)):
            model.append(layer)
        return model.append(torch.nn.Linear(3, 2))

    def sharded(self, seed: int = 3, **settings: Any) -> Any:
        model = self.deep(seed)
        for layer in (model[0], model[2]):
            fully_shard(layer, mesh=self.mesh, **settings)
        return fully_shard(model, mesh=self.mesh, **settings)

    def data_parallel(self) -> dict[str, Any]:
        """Run DistributedDataParallel: every process makes the same step."""
        results = []
        for make in (self.remote, self.adamw):
            model = make_model()
            wrapped = torch.nn.parallel.DistributedDataParallel(model)
            train(wrapped, make(model), self.batches(6))
            results.append(whole(model))
        return {"mine": results[0], "theirs": results[1]}

    def overlap(self) -> dict[str, Any]:
        """Let averaged buckets leave while backward runs."""
        results = []
        for overlap in (True, False):
            model = make_model()
            wrapped = torch.nn.parallel.DistributedDataParallel(model)
            optimizer = self.remote(model, overlap=overlap, bucket_cap_mb=1e-4)
            if overlap:
                wrapped.register_comm_hook(optimizer, overlap_hook)
            train(wrapped, optimizer, self.batches(6))
            results.append(whole(model))
        return {"mine": results[0], "theirs": results[1]}

    def adamw(self, model: torch.nn.Module) -> Any:
        return torch.optim.AdamW(model.named_parameters(), **RATE)

    def zero(self) -> dict[str, Any]:
        """Run ZeroRedundancyOptimizer: each process steps a part of the parameters."""
        results = []
        kinds: list[tuple[Any, dict[str, Any]]] = [
            (RemoteOptimizer, {"client": self.client}),
            (torch.optim.AdamW, {}),
        ]
        for kind, more in kinds:
            model = make_model()
            wrapped = torch.nn.parallel.DistributedDataParallel(model)
            optimizer: Any = ZeroRedundancyOptimizer(
                model.parameters(), kind, **more, **RATE
            )
            train(wrapped, optimizer, self.batches(6))
            results.append(whole(model))
        return {"mine": results[0], "theirs": results[1]}

    def fully_sharded(self) -> dict[str, Any]:
        """Compare fully_shard with torch, and with a step of whole tensors."""
        model, other = self.sharded(), self.sharded()
        mine, theirs = self.remote(model), self.adamw(other)
        single = self.deep()
        one = self.remote(single)
        for seed in self.batches(6):
            for each, optimizer in ((model, mine), (other, theirs)):
                optimizer.zero_grad()
                backward(loss_of(each, seed))
                torch.nn.utils.clip_grad_norm_(each.parameters(), 0.5)
            for a, b in zip(model.parameters(), single.parameters(), strict=True):
                assert a.grad is not None
                b.grad = a.grad.full_tensor()
            for optimizer in (mine, theirs, one):
                optimizer.step()
        slot = mine.state[model[0].weight]["exp_avg"]
        return {
            "mine": whole(model),
            "theirs": whole(other),
            "single": whole(single),
            "slot": slot.full_tensor(),
            "single_slot": one.state[single[0].weight]["exp_avg"],
            "placements": repr(slot.placements),
            "expected_placements": repr(model[0].weight.placements),
        }

    def other_placements(self) -> dict[str, Any]:
        """Use unsharded gradients for sharded parameters, and gathered slots."""
        model, single = self.sharded(), self.deep()
        mine, one = self.remote(model), self.remote(single)
        for seed in range(3):
            loss = loss_of(single, seed)
            single.zero_grad()
            backward(loss)
            for a, b in zip(model.parameters(), single.parameters(), strict=True):
                a.grad = distribute_tensor(b.grad, self.mesh, [Replicate()])
                for slot in ("exp_avg", "exp_avg_sq"):
                    if seed == 2:
                        gathered = mine.state[a][slot].redistribute(
                            placements=[Replicate()]
                        )
                        mine.state[a][slot] = gathered
            mine.step()
            one.step()
        return {"mine": whole(model), "single": whole(single)}

    def mixed_precision(self) -> dict[str, Any]:
        """Use gradients in bfloat16, reduced in float32."""
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
        results = []
        for make in (self.remote, self.adamw):
            model = self.sharded(mp_policy=policy)
            train(model, make(model), self.batches(4))
            results.append(whole(model))
        return {"mine": results[0], "theirs": results[1]}

    def tensor_parallel(self) -> dict[str, Any]:
        """Split weights by columns and by rows. Both keep one bias whole."""
        models = []
        for make in (self.remote, self.adamw):
            model = parallelize_module(
                make_model(),
                self.mesh,
                {"0": ColwiseParallel(), "2": RowwiseParallel()},
            )
            optimizer = make(model)
            # Both processes use the same batch, because the model itself is split.
            train(model, optimizer, 6)
            models.append(whole(model))
        return {"mine": models[0], "theirs": models[1]}

    def checkpoint(self) -> dict[str, Any]:
        """Use torch.distributed.checkpoint: save, load into a new model, continue."""
        model = self.sharded()
        optimizer = self.remote(model, "nadam")
        train(model, optimizer, self.batches(3))
        saved = get_state_dict(model, optimizer)
        place = str(self.folder / "checkpoint")
        saver.save({"model": saved[0], "optimizer": saved[1]}, checkpoint_id=place)
        train(model, optimizer, self.batches(3, start=3))

        again = self.sharded(seed=4)
        resumed = self.remote(again, "nadam", lr=1.0)
        state = get_state_dict(again, resumed)
        loader.load({"model": state[0], "optimizer": state[1]}, checkpoint_id=place)
        set_state_dict(
            again, resumed, model_state_dict=state[0], optim_state_dict=state[1]
        )
        rate = resumed.param_groups[0]["lr"]
        train(again, resumed, self.batches(3, start=3))
        return {"straight": whole(model), "resumed": whole(again), "lr": rate}

    def checkpoint_of_torch(self) -> dict[str, Any]:
        """Continue a sharded run of torch's AdamW with stepd, and vice versa."""
        model = self.sharded()
        theirs = self.adamw(model)
        train(model, theirs, self.batches(3))
        options = StateDictOptions(full_state_dict=True)
        saved = copy.deepcopy(get_state_dict(model, theirs, options=options))
        results = []
        for make in (self.remote, self.adamw):
            again = self.sharded(seed=4)
            optimizer = make(again)
            state: Any = copy.deepcopy(saved[1])
            # torch rejects hyperparameters that its optimizer does not have.
            known = optimizer.param_groups[0].keys()
            for group in state.get("param_groups", []):
                for key in group.keys() - known:
                    del group[key]
            set_state_dict(
                again,
                optimizer,
                model_state_dict=copy.deepcopy(saved[0]),
                optim_state_dict=state,
                options=options,
            )
            train(again, optimizer, self.batches(3, start=3))
            full: Any = get_optimizer_state_dict(again, optimizer, options=options)
            moments: Any = full["state"]["0.weight"] if self.rank == 0 else {}
            results.append((whole(again), moments))
        return {
            "mine": results[0][0],
            "theirs": results[1][0],
            "my_moments": results[0][1],
            "their_moments": results[1][1],
        }

    def refusals(self) -> dict[str, Any]:
        """Check that options which need whole tensors raise, even if set later."""
        model = self.sharded()
        sentences = {}
        cases: dict[str, dict[str, Any]] = {
            "lamb": {"name": "lamb"},
            "lars": {"name": "lars"},
            "muon": {"name": "muon"},
            "adafactor": {"name": "adafactor"},
            "caution": {"name": "lion", "caution": True},
            "clip": {"clip": {"max_norm": 1.0}},
            "stats": {"stats": "global"},
            "skip": {"non_finite": "skip"},
        }
        for case, settings in cases.items():
            try:
                self.remote(model, **settings)
            except ValueError as error:
                sentences[case] = str(error)
        optimizer = self.remote(model, clip={"max_value": 0.1})
        train(model, optimizer, self.batches(1))
        optimizer.options["clip"] = {"max_norm": 1.0}
        before = whole(model)
        try:
            optimizer.step()
        except ValueError as error:
            sentences["later"] = str(error)
        # A plain slot of a sharded parameter cannot be distinguished from a shard.
        optimizer.options["clip"] = None
        weight = model[0].weight
        optimizer.state[weight]["exp_avg"] = torch.zeros(weight.shape)
        try:
            optimizer.step()
        except ValueError as error:
            sentences["slot"] = str(error)
        return {"sentences": sentences, "before": before, "after": whole(model)}


CASES: list[Callable[[Run], dict[str, Any]]] = [
    Run.data_parallel,
    Run.overlap,
    Run.zero,
    Run.fully_sharded,
    Run.other_placements,
    Run.mixed_precision,
    Run.tensor_parallel,
    Run.checkpoint,
    Run.checkpoint_of_torch,
    Run.refusals,
]


def main(rank: int, url: str, folder: pathlib.Path) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    run = Run(rank, url, folder)
    for case in CASES:
        try:
            found = case(run)
        except Exception:
            found = {"error": traceback.format_exc()}
        torch.save(found, folder / f"{case.__name__}.{rank}.pt")
        # A process that continues after a failure would block the other's collectives.
        if "error" in found:
            raise SystemExit(1)
    run.client.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3]))
