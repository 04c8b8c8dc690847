# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Golden tensors of FLUX.2, measured on the original torch implementation, and the models that hold their weights.

`USO_GOLDEN_FLUX2` may name another directory in the same layout; every size comes from its config.json.
"""

import functools
import itertools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from golden_files import load
from safetensors.numpy import load_file

from convert.tables.autoencoder import AUTOENCODER2
from uso_jax import flow
from uso_jax.models.autoencoder2 import AutoEncoder2, AutoEncoder2Config
from uso_jax.models.flux2 import Flux2, Flux2Config
from uso_jax.models.joint_transformer import Kept
from uso_jax.weights.tables.flux2 import TRANSFORMER

_HERE = pathlib.Path(__file__).parents[1] / "golden" / "flux2"
DIR = pathlib.Path(os.environ.get("USO_GOLDEN_FLUX2", _HERE))
CONFIG = json.loads((DIR / "config.json").read_text())
MANIFESTS = json.loads((_HERE / "checkpoint_manifests.json").read_text())
HAS_AUTOENCODER = "autoencoder" in CONFIG and (DIR / "flux2_ae_tiny.safetensors").exists()
CASES = {"t2i": 0, "one_ref": 1, "two_refs": 2}  # number of references
MODELS = ("klein", "dev")


@functools.cache
def arrays() -> dict[str, np.ndarray]:
    with np.load(DIR / "flux2_tiny.npz", allow_pickle=False) as file:
        return dict(file)


@functools.cache
def tensors(name: str) -> dict[str, np.ndarray]:
    found = load_file(DIR / f"flux2_{name}_tiny.safetensors")
    return {key: value for key, value in found.items() if not key.endswith("num_batches_tracked")}


def _sizes(section: str) -> dict:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in CONFIG[section].items() if k != "resolution"}


def config(name: str, **changes) -> Flux2Config:
    run = dict(guidance_embed=name == "dev", dtype="float32", remat="none")
    return Flux2Config(**(_sizes("flux2") | run | changes))


def transformer(name: str, rows=TRANSFORMER, weights: dict | None = None, **changes) -> Flux2:
    return load(lambda rngs: Flux2(config(name, **changes), rngs=rngs), rows, weights or tensors(name))


def autoencoder(weights: dict | None = None) -> AutoEncoder2:
    config = AutoEncoder2Config(**_sizes("autoencoder"))
    return load(lambda rngs: AutoEncoder2(config, rngs=rngs), AUTOENCODER2, weights or tensors("ae"))


def grid(latent: np.ndarray) -> tuple[int, int]:
    """Return the rows and columns of a golden latent, which is cut into patches already."""
    return latent.shape[2:]


def references(count: int) -> dict[str, jax.Array]:
    """Return the first references as the transformer's arguments."""
    if not count:
        return {}
    g = arrays()
    ids = flow.layered_reference_ids(grid(g["noise"]), [grid(g[f"ref_latent_{i}"]) for i in range(count)])
    tokens = jnp.concatenate([jnp.asarray(g[f"ref_tokens_{i}"]) for i in range(count)], axis=1)
    return {"ref_img": tokens, "ref_ids": jnp.concatenate(ids)[None]}


def guidance(model: Flux2) -> jax.Array | None:
    value = CONFIG["sampling"]["guidance"]
    return jnp.full((2,), value, jnp.float32) if model.config.guidance_embed else None


def keep(model: Flux2, count: int) -> Kept:
    return model.keep(None, guidance(model), **references(count))


def velocity(model: Flux2, x=None, t=None, txt=None, **conditions) -> jax.Array:
    """Run the transformer on the golden inputs, or on others, with `references` or `kept` as conditions."""
    g = arrays()
    return model(
        jnp.asarray(g["img_tokens"]) if x is None else x,
        flow.layered_ids(*grid(g["noise"]))[None],
        jnp.asarray(g["txt"]) if txt is None else txt,
        jnp.asarray(CONFIG["sampling"]["t"], jnp.float32) if t is None else t,
        None,
        guidance(model),
        **conditions,
    )


def denoise(step) -> jax.Array:
    """Integrate `step(x, t)` over the golden times."""
    x = jnp.asarray(arrays()["img_tokens"])
    times = jnp.asarray(arrays()["denoise_timesteps"], jnp.float32)
    for t, s in itertools.pairwise(times):
        t, s = jnp.broadcast_to(t, (2,)), jnp.broadcast_to(s, (2,))
        x = flow.euler_step(x, step(x, t), t, s)
    return x
