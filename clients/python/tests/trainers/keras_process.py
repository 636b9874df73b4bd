"""Checks stepd.keras on the backend of KERAS_BACKEND: ``keras_process.py FOLDER``."""

from __future__ import annotations

import json
import os
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import stepd
from stepd.keras import RemoteOptimizer, use_client

BACKEND = keras.backend.backend()
URL = os.environ["STEPD_URL"]
CLIENT = stepd.Client(URL)
ADAM = {"name": "adam", "bias_correction": "step_size", "eps": 1e-7}
SAMPLES, BATCH = 48, 16

Make = Callable[[], Any]
PAIRS: dict[str, tuple[dict[str, Any], Make]] = {
    "Adam": ({**ADAM, "lr": 0.01}, lambda: keras.optimizers.Adam(0.01)),
    "AdamW": (
        {**ADAM, "name": "adamw", "lr": 0.01, "weight_decay": 0.004},
        lambda: keras.optimizers.AdamW(0.01, weight_decay=0.004),
    ),
    "SGD": ({"name": "sgd", "lr": 0.05}, lambda: keras.optimizers.SGD(0.05)),
    "SGD, Nesterov": (
        {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True},
        lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    ),
    "RMSprop": (
        {"name": "rmsprop", "lr": 1e-3, "alpha": 0.9, "eps": 0, "eps_root": 1e-7},
        lambda: keras.optimizers.RMSprop(1e-3),
    ),
    "Adafactor": (
        {"name": "adafactor", "lr": 0.1, "eps": [1e-15, 1e-3]},
        lambda: keras.optimizers.Adafactor(0.1),
    ),
    "Lion": ({"name": "lion", "lr": 1e-3}, lambda: keras.optimizers.Lion(1e-3)),
}


def model_of(optimizer: Any, **compiled: Any) -> Any:
    keras.utils.set_random_seed(7)
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(2)]
    )
    # XLA cannot call a server, so with TensorFlow both models run without it.
    compiled = {"jit_compile": BACKEND == "jax", **compiled}
    model.compile(optimizer, loss="mse", **compiled)
    return model


def data() -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((SAMPLES, 6), np.float32)
    return x, np.stack([x.sum(1), x.prod(1)], 1)


def fit(model: Any, epochs: int = 2) -> Any:
    x, y = data()
    model.fit(x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0)
    return model


def values_of(model: Any) -> list[Any]:
    return [keras.ops.convert_to_numpy(one) for one in model.trainable_variables]


def assert_close(one: Any, other: Any, what: str, atol: float = 2e-6) -> None:
    for a, b in zip(values_of(one), values_of(other), strict=True):
        assert np.abs(a - b).max() <= atol, f"{what}: {np.abs(a - b).max()}"


def assert_equal(one: Any, other: Any) -> None:
    assert_close(one, other, "equal", 0)


def remote(optimizer: dict[str, Any] | None = None, **more: Any) -> RemoteOptimizer:
    return RemoteOptimizer(CLIENT, optimizer or {**ADAM, "lr": 0.01}, **more)


def check_optimizers() -> None:
    start = model_of("sgd")
    for name, (settings, make) in PAIRS.items():
        model = fit(model_of(remote(settings)))
        assert_close(model, fit(model_of(make())), name)
        for a, b in zip(values_of(model), values_of(start), strict=True):
            assert np.abs(a - b).max() > 1e-4, name


def check_arguments_of_keras() -> None:
    cases: list[dict[str, Any]] = [
        {"clipnorm": 0.1, "use_ema": True, "ema_overwrite_frequency": 2},
        {"global_clipnorm": 0.1, "gradient_accumulation_steps": 3},
        {"clipvalue": 0.05, "loss_scale_factor": 8.0, "weight_decay": 0.1},
    ]
    for more in cases:
        mine = fit(model_of(remote(**more)))
        result = mine.optimizer.last_result
        assert result.step == 6 // more.get("gradient_accumulation_steps", 1)
        assert_close(
            mine, fit(model_of(keras.optimizers.Adam(0.01, **more))), str(more)
        )
    schedule = keras.optimizers.schedules.CosineDecay(0.02, 9)
    mine = fit(model_of(remote(ADAM, learning_rate=schedule)))
    assert_close(mine, fit(model_of(keras.optimizers.Adam(schedule))), "schedule")


def check_save_and_load(folder: pathlib.Path) -> None:
    settings = {**ADAM, "lr": 0.01, "amsgrad": True}
    whole = fit(model_of(remote(settings)), epochs=4)
    half = fit(model_of(RemoteOptimizer(stepd.Client(URL, "secret"), settings)), 2)
    half.save(folder / "model.keras")
    config = half.optimizer.get_config()
    assert config["client"] == URL and "secret" not in json.dumps(config)
    with use_client(CLIENT):
        loaded = keras.models.load_model(folder / "model.keras")
    assert loaded.optimizer.client is CLIENT
    if BACKEND == "tensorflow":
        loaded.jit_compile = False
    assert_equal(fit(loaded, 2), whole)
    assert len({one.path for one in loaded.optimizer.variables}) == len(
        loaded.optimizer.variables
    )


def check_groups_and_options() -> None:
    frozen = [{"tensors": ["*bias"], "optimizer": {"lr": 0}}]
    start, model = model_of("sgd"), model_of(remote(groups=frozen))
    fit(model)
    before, after = values_of(start), values_of(model)
    assert np.array_equal(before[1], after[1]) and not np.array_equal(
        before[0], after[0]
    )
    skips = remote(non_finite="skip")
    model = model_of(skips)
    x, y = data()
    model.train_on_batch(x, y * np.nan)
    assert skips.last_result is not None and skips.last_result.skipped
    assert_equal(model, start)
    # The product of nadam's momenta is a float64 scalar.
    nadam = {"name": "nadam", "lr": 0.01}
    assert_close(fit(model_of(remote(nadam))), fit(model_of(remote(nadam))), "nadam", 0)


def check_mixed_precision() -> None:
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        mine, start = model_of(remote()), model_of("sgd")
        theirs = model_of(keras.optimizers.Adam(0.01))
        assert isinstance(mine.optimizer, keras.optimizers.LossScaleOptimizer)
        assert_close(fit(mine), fit(theirs), "mixed_float16")
        assert not np.array_equal(values_of(mine)[0], values_of(start)[0])
    finally:
        keras.mixed_precision.set_global_policy("float32")


def check_refusals() -> None:
    refused: list[tuple[Callable[[], Any], str]] = [
        (lambda: RemoteOptimizer(CLIENT, "adam"), "optimizer: expected a dict"),  # type: ignore[arg-type]
        (
            lambda: RemoteOptimizer(CLIENT, {"name": "adam", "lr": 1.0}, 0.1),
            "learning_rate: expected none",
        ),
        (lambda: RemoteOptimizer(3, ADAM), "client: expected"),  # type: ignore[arg-type]
        (lambda: fit(model_of(remote({"name": "adamm"}))), "adamm"),
        (lambda: fit(model_of(remote({"name": "adam", "eps": -1}))), "eps"),
        (
            lambda: fit(model_of(remote(groups=[{"tensors": ["nothing"]}]))),
            "groups: expected the path",
        ),
    ]
    for call, text in refused:
        try:
            call()
        except Exception as error:
            assert text in str(error), f"{text}: {error}"
        else:
            raise AssertionError(f"{text}: nothing was raised")


def check_gradient_tape() -> None:
    import tensorflow as tf

    def train(optimizer: Any) -> Any:
        w = tf.Variable([[1.0], [2.0]])
        unused = tf.Variable(3.0)

        @tf.function  # type: ignore[untyped-decorator]
        def step(x: Any) -> None:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((tf.matmul(x, w) - 1.0) ** 2)
            optimizer.apply_gradients([(tape.gradient(loss, w), w)])

        optimizer.build([w, unused])
        for seed in range(5):
            step(tf.random.stateless_normal((4, 2), [seed, 1]))
        assert float(unused.numpy()) == 3.0
        return w.numpy()

    mine, theirs = train(remote()), train(keras.optimizers.Adam(0.01))
    assert np.abs(mine - theirs).max() <= 2e-6


def check_documentation(folder: pathlib.Path) -> None:
    page = pathlib.Path(__file__).parents[4] / "docs/keras.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    os.chdir(folder)
    for block in blocks:
        if BACKEND == "tensorflow" or "tensorflow" not in block:
            exec(block.replace("http://127.0.0.1:8080", URL), names)


def main(folder: pathlib.Path) -> None:
    check_optimizers()
    check_arguments_of_keras()
    check_save_and_load(folder)
    check_groups_and_options()
    check_mixed_precision()
    check_refusals()
    check_documentation(folder)
    if BACKEND == "tensorflow":
        check_gradient_tape()
    print(f"{BACKEND}: all checks passed")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
