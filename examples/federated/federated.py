"""Federated averaging in Flower, with stepd for the server step.

Flower's simulation runs eight clients. In each round every client trains the model on
its own digits by SGD and returns it. A strategy of stepd.flower combines the returned
models and takes the server step, in five runs with five optimizers.
"""

from __future__ import annotations

import argparse
import logging
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable

# Flower reads its variable during the import, and Ray reads its variables at the start.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from clients import CLIENTS, accuracy, client_app, from_record, init, to_record
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

import stepd
from stepd import flower

Strategy = Callable[..., flower.StepdStrategy]

#: The learning rates are the best of those in the README.
STRATEGIES: dict[str, tuple[Strategy, dict[str, float]]] = {
    "fed_avg": (flower.fed_avg, {}),
    "fed_avgm": (
        flower.fed_avgm,
        {"server_learning_rate": 0.5, "server_momentum": 0.9},
    ),
    "fed_adagrad": (flower.fed_adagrad, {"eta": 0.1}),
    "fed_adam": (flower.fed_adam, {"eta": 0.1}),
    "fed_yogi": (flower.fed_yogi, {"eta": 0.1}),
}


def evaluate(_: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"accuracy": accuracy(from_record(arrays))})


def run(
    grid: Grid, strategy: flower.StepdStrategy, seed: int, rounds: int
) -> dict[int, float]:
    """Run the rounds that a strategy lacks, and return the accuracy after each."""
    before = strategy.round
    result = strategy.start(
        grid=grid,
        initial_arrays=strategy.arrays or to_record(init(seed)),
        num_rounds=rounds - before,
        train_config=ConfigRecord({"seed": seed}),
        evaluate_fn=evaluate,
    )
    return {
        before + number: float(metrics["accuracy"])
        for number, metrics in result.evaluate_metrics_serverapp.items()
    }


def start_ray(folder: str) -> None:
    """Start Ray for Flower's simulation. A busy machine may need several tries."""
    for tries in range(1, 6):
        try:
            ray.init(
                num_cpus=2,
                include_dashboard=False,
                # The smallest object store suffices for eight small clients.
                object_store_memory=80 * 2**20,
                logging_level=logging.ERROR,
                # The clients' processes import clients.py.
                runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}},
                _temp_dir=folder,
            )
            return
        except Exception:
            ray.shutdown()
            if tries == 5:
                raise


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
        "--rounds", type=int, default=30, help="rounds of each run (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of data and model")
    parser.add_argument(
        "--strategies",
        default=",".join(STRATEGIES),
        help="the strategies to run (%(default)s)",
    )
    parser.add_argument(
        "--folder",
        type=pathlib.Path,
        help="keeps each run's parameters, state and round; a second call goes on",
    )
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds: expected at least 1, found {arguments.rounds}")
    for name in arguments.strategies.split(","):
        if name not in STRATEGIES:
            known = ", ".join(STRATEGIES)
            parser.error(f"--strategies: expected some of {known}, found {name}")
    return arguments


def print_table(found: dict[str, dict[int, float]], rounds: int) -> None:
    shown = sorted({max(1, rounds * part // 6) for part in (1, 2, 4, 6)})
    print(f"{CLIENTS} clients; test accuracy in %")
    columns = "".join(f"{f'round {number}':>10}" for number in shown)
    print(f"{'strategy':<12}{columns}{'rounds to 90 %':>16}")
    for name, reached in found.items():
        cells = "".join(
            f"{100 * reached[n]:>10.1f}" if n in reached else f"{'-':>10}"
            for n in shown
        )
        there = [number for number, value in sorted(reached.items()) if value >= 0.9]
        print(f"{name:<12}{cells}{there[0] if there else '-':>16}")


def main() -> int:
    arguments = read_arguments()
    server_app = ServerApp()
    found: dict[str, dict[int, float]] = {}

    @server_app.main()  # type: ignore[untyped-decorator]
    def serve(grid: Grid, context: Context) -> None:
        with stepd.Client(arguments.url) as client:
            for name in arguments.strategies.split(","):
                made, settings = STRATEGIES[name]
                folder = arguments.folder and arguments.folder / name
                strategy = made(
                    client,
                    path=folder,
                    min_available_nodes=CLIENTS,
                    fraction_evaluate=0.0,
                    **settings,
                )
                found[name] = run(grid, strategy, arguments.seed, arguments.rounds)
                print(f"{name}: {strategy.round} rounds", file=sys.stderr)

    logging.getLogger("flwr").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as own:
        start_ray(own)
        resources = {"client_resources": {"num_cpus": 1}}
        try:
            run_simulation(server_app, client_app, CLIENTS, backend_config=resources)
        finally:
            ray.shutdown()
    print_table(found, arguments.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
