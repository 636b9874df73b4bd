"""Takes one more round of examples/go-coordinator in Python.

resume_coordinator.py URL FOLDER DELTAS... takes the workers' deltas in order.
"""

import json
import pathlib
import sys

from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "clients/python/src"))

import stepd

url, folder, *workers = sys.argv[1:]
run = pathlib.Path(folder)
latest = json.loads((run / "latest.json").read_text())
params = load_file(run / latest["params"])
state = stepd.State.load(run / latest["state"])
updates = [(load_file(path), weight) for weight, path in enumerate(workers, 1)]
optimizer = {"name": "sgd", "lr": 0.7, "momentum": 0.9, "nesterov": True}
with stepd.Client(url) as client:
    reduce = {"updates": updates, "form": "deltas"}
    result = client.step(optimizer, params, None, state, reduce=reduce)
following = f"round-{latest['round'] + 1}"
save_file(result.params, run / f"{following}.params.safetensors")
result.state.save(run / f"{following}.state.safetensors")
