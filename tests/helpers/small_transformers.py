# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Transformers of both families that run in milliseconds, and the arguments of a step."""

import functools

import jax.numpy as jnp
import numpy as np

from uso_jax import flow, params
from uso_jax.models.flux import Flux, FluxConfig
from uso_jax.models.flux2 import Flux2, Flux2Config

GRID, REF_GRIDS, BATCH = (2, 3), ((2, 2), (1, 3)), 3
FAMILIES = {"flux1": (Flux, FluxConfig.tiny()), "flux2": (Flux2, Flux2Config.tiny())}
IDS = {"flux1": (flow.position_ids, flow.reference_ids), "flux2": (flow.layered_ids, flow.layered_reference_ids)}


@functools.cache
def structure(family: str) -> params.ModelDef:
    module, config = FAMILIES[family]
    return params.ModelDef(lambda rngs: module(config, rngs=rngs))


def drawn(family: str) -> params.Params:
    """Return numbers for all parameters, adapters included."""
    rng = np.random.default_rng(0)
    std = lambda path, x: x.shape[-2] ** -0.5 if path.endswith("kernel") else 0.3
    found = {path: std(path, x) * rng.standard_normal(x.shape) for path, x in structure(family).shapes.items()}
    return {path: jnp.asarray(x, jnp.float32) for path, x in found.items()}


@functools.cache
def network(family: str):
    """Return a model with these parameters."""
    return structure(family)(drawn(family))


@functools.cache
def batch(family: str):
    """Return a step's arguments, and those of references."""
    c, rng = FAMILIES[family][1], np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.standard_normal((BATCH, *shape)), jnp.float32)
    ids, reference_ids = IDS[family]
    vec, guidance = (draw(c.vec_in_dim), jnp.linspace(1.0, 4.0, BATCH)) if family == "flux1" else (None, None)
    step = dict(
        img=draw(6, c.in_channels), img_ids=ids(*GRID)[None], txt=draw(5, c.context_in_dim),
        timesteps=jnp.linspace(0.1, 0.9, BATCH), y=vec, guidance=guidance,
    )  # fmt: skip
    references = dict(
        ref_img=draw(7, c.in_channels), ref_ids=jnp.concatenate(reference_ids(GRID, REF_GRIDS))[None],
        ref_valid=jnp.asarray([[True] * 7, [True] * 4 + [False] * 3, [False] * 7]),
        style=draw(6, c.hidden_size), style_valid=jnp.asarray([[True] * 6, [False] * 6, [False] * 6]),
    )  # fmt: skip
    return step, references
