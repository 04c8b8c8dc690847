# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One training step of a tiny model from drawn parameters, on one device or eight."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny

from uso_jax.data.loader import batches
from uso_jax.data.sources import open_source
from uso_jax.models.components import placement_rules
from uso_jax.models.uso import USO
from uso_jax.parallel import sharding
from uso_jax.training import step as train
from uso_jax.training.validation import pipeline_options


@functools.cache
def system() -> USO:
    return USO(tiny.config("joint").system)


@functools.cache
def numbers() -> dict[str, np.ndarray]:
    """Draw every parameter: initially all norm scales are 1, and LoRA's `up` is 0, which leaves `down` no gradient."""
    rng = np.random.default_rng(0)
    inputs = lambda shape: math.prod(shape[:3]) if len(shape) == 4 else shape[-2]  # of a convolution, or a dense layer
    width = lambda path, shape: inputs(shape) ** -0.5 if path.endswith("kernel") else 0.3
    drawn = {
        path: rng.normal(0, width(path, shape.shape), shape.shape).astype(np.float32)
        for path, shape in system().shapes.items()
    }
    # What no stage trains keeps its initial numbers: drawn wildly, it would only magnify rounding.
    frozen = tiny.drawn(system(), components=("autoencoder", "text"))
    return drawn | {path: np.asarray(value) for path, value in frozen.items()}


def params() -> dict[str, jax.Array]:
    return {path: jnp.asarray(value) for path, value in numbers().items()}


@functools.cache
def batch(name: str = "joint") -> dict[str, np.ndarray]:
    config = tiny.config(name)
    (stage,) = config.run_stages
    source = open_source(config.data.train, stage.data)
    return next(iter(batches(source, batch_size=8, seed=0, **pipeline_options(config, stage))))


def one_device():
    return sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])


def eight_devices():
    return sharding.make_mesh({"data": 1, "fsdp": 4, "tensor": 2})


def start(stage, mesh):
    """Return a stage's first state, and the frozen rest."""
    rates = stage.lr_multipliers(system().shapes)
    where = sharding.shardings(mesh, placement_rules(), system().shapes)
    placed = jax.device_put(numbers(), where)
    state = train.init_state(stage, rates, {path: placed[path] for path in rates}, where)
    return state, {path: value for path, value in placed.items() if path not in rates}


@functools.cache
def step(name: str = "joint", **changes):
    """Take one step from `numbers` on one device; give the state after it and its metrics."""
    (stage,) = tiny.config(name, **changes).run_stages
    state, frozen = start(stage, one_device())
    function = train.make_train_step(system(), stage, stage.lr_multipliers(system().shapes), seed=0)
    return jax.jit(function)(state, frozen, batch(name))


def adam(state: train.TrainState) -> optax.ScaleByAdamState:
    is_adam = lambda x: isinstance(x, optax.ScaleByAdamState)
    (found,) = filter(is_adam, jax.tree.leaves(state.opt_state, is_leaf=is_adam))
    return found
