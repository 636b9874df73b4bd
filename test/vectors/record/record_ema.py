"""Records the averages of torch's AveragedModel over steps of SGD, in float32."""

from typing import Any

import torch
from recording import write
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

STEPS = 12
ELEMENTS = 19
DECAYS = [0.999, 0.9, 0.25]
SEED = 11


def _case(decay: float) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(SEED)
    model = torch.nn.ParameterList([torch.randn(ELEMENTS, generator=generator)])
    start = model[0].tolist()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    grads, averages = [], []
    for _ in range(STEPS):
        model[0].grad = torch.randn(ELEMENTS, generator=generator)
        optimizer.step()
        averaged.update_parameters(model)
        grads.append(model[0].grad.tolist())
        averages.append(averaged.module[0].tolist())
    return {"decay": decay, "start": start, "grads": grads, "averages": averages}


if __name__ == "__main__":
    write(
        {
            "ema/averaged_model.json": lambda: {
                "format": "stepd-oracle-ema/1",
                "source": {"package": "torch", "version": torch.__version__},
                "cases": [_case(decay) for decay in DECAYS],
            }
        }
    )
