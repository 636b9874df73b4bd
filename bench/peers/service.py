"""The service of stepd as one would write it in Python: service.py FORM THREADS

It uses FastAPI, uvicorn with uvloop and httptools, ormsgpack, and torch's fused AdamW.
It accepts stepd's calls and returns stepd's replies. FORM is `functional`, which calls
torch's fused function, or `object`, which creates a torch.optim.AdamW for each call.
Both forms save time: they validate nothing, use the gradient without a copy, and copy
parameters and state once, into memory that is updated in place and sent.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import warnings
from collections.abc import Callable
from typing import Any

import ormsgpack
import torch
import uvicorn
from fastapi import FastAPI, Request, Response

Tensors = dict[str, torch.Tensor]
Update = Callable[[dict[str, Any], Tensors, Tensors, Tensors], None]

DTYPES = {"F32": torch.float32, "I64": torch.int64}

# torch warns that the gradient's memory is read-only. The service never writes to that
# memory.
warnings.filterwarnings("ignore", message="The given buffer is not writable")


def tensors_of(file: bytes | bytearray) -> Tensors:
    """Return views of the tensors in a safetensors file, without copies."""
    (length,) = struct.unpack_from("<Q", file)
    header = json.loads(file[8 : 8 + length])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        dtype = DTYPES[entry["dtype"]]
        found[name] = torch.frombuffer(
            file,
            dtype=dtype,
            offset=8 + length + start,
            count=(end - start) // dtype.itemsize,
        )
    return found


def functional(
    optimizer: dict[str, Any], params: Tensors, grads: Tensors, state: Tensors
) -> None:
    names = list(params)
    steps = [state[f"step/{name}"] for name in names]
    for step in steps:
        step += 1
    torch._fused_adamw_(
        [params[name] for name in names],
        [grads[name] for name in names],
        [state[f"exp_avg/{name}"] for name in names],
        [state[f"exp_avg_sq/{name}"] for name in names],
        [],
        [step.float()[0] for step in steps],
        lr=optimizer["lr"],
        beta1=0.9,
        beta2=0.999,
        weight_decay=0.01,
        eps=1e-8,
        amsgrad=False,
        maximize=False,
    )


def through_object(
    optimizer: dict[str, Any], params: Tensors, grads: Tensors, state: Tensors
) -> None:
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in params.items()}
    stepper = torch.optim.AdamW(
        parameters.values(), lr=optimizer["lr"], weight_decay=0.01, fused=True
    )
    for name, parameter in parameters.items():
        parameter.grad = grads[name]
        stepper.state[parameter] = {
            "step": state[f"step/{name}"].float()[0],
            "exp_avg": state[f"exp_avg/{name}"],
            "exp_avg_sq": state[f"exp_avg_sq/{name}"],
        }
    stepper.step()
    for name in parameters:
        state[f"step/{name}"] += 1


FORMS: dict[str, Update] = {"functional": functional, "object": through_object}


def application(update: Update) -> FastAPI:
    app = FastAPI()

    @app.post("/rpc")
    async def rpc(request: Request) -> Response:
        call = ormsgpack.unpackb(await request.body())
        fields = call["params"]
        params, state = bytearray(fields["params"]), bytearray(fields["state"])
        optimizer, slots = fields["optimizer"], tensors_of(state)
        update(optimizer, tensors_of(params), tensors_of(fields["grads"]), slots)
        result = {
            "params": params,
            "state": state,
            "step": max(
                int(step) for name, step in slots.items() if name.startswith("step/")
            ),
            "lr": optimizer["lr"],
            "skipped": False,
        }
        reply = {"jsonrpc": "2.0", "result": result, "id": call["id"]}
        return Response(ormsgpack.packb(reply), media_type="application/vnd.msgpack")

    return app


class AnnouncingServer(uvicorn.Server):
    """Prints the server's address once the server listens."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        assert sockets is not None
        port = sockets[0].getsockname()[1]
        print(f"fastapi listens on http://127.0.0.1:{port}", flush=True)


def main() -> None:
    form, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        application(FORMS[form]),
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
        lifespan="off",
        # The default of 5 s is too short, because a large round of the other contenders
        # takes longer.
        timeout_keep_alive=600,
    )
    AnnouncingServer(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
