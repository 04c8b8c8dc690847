# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Golden tensors measured on the original torch implementation, and the models that hold their weights.

`USO_GOLDEN` may name another directory in the same layout; every size comes from its config.json.
"""

import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from convert.tables.autoencoder import AUTOENCODER
from convert.tables.siglip import VISION
from uso_jax import flow
from uso_jax.models.autoencoder import AutoEncoder, AutoEncoderConfig
from uso_jax.models.flux import Flux, FluxConfig
from uso_jax.models.projector import ProjectorConfig
from uso_jax.models.siglip import SiglipConfig, SiglipVision
from uso_jax.params import ModelDef
from uso_jax.weights.tables.flux import LORA, PROJECTOR, TRANSFORMER
from uso_jax.weights.tables.table import to_flax

DIR = pathlib.Path(os.environ.get("USO_GOLDEN", pathlib.Path(__file__).parents[1] / "golden"))
CONFIG = json.loads((DIR / "config.json").read_text())
MANIFESTS = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "checkpoint_manifests.json").read_text())
HAS_AUTOENCODER = "autoencoder" in CONFIG and (DIR / "ae_tiny.safetensors").exists()
CASES = {  # case: (content references, style references)
    "t2i": ((), ()),
    "subject": ((0,), ()),
    "style": ((), (0,)),
    "style_subject": ((0,), (0,)),
    "multi_style": ((), (0, 1)),
    "multi_ref_multi_style": ((0, 1), (0, 1)),
}


@functools.cache
def arrays() -> dict[str, np.ndarray]:
    with np.load(DIR / "upstream_tiny.npz", allow_pickle=False) as file:
        return dict(file)


@functools.cache
def tensors(name: str) -> dict[str, np.ndarray]:
    return load_file(DIR / f"{name}_tiny.safetensors")


def nhwc(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x.transpose(0, 2, 3, 1))


def flux_config(**changes) -> FluxConfig:
    projector = ProjectorConfig(**{k: tuple(v) if k == "layers" else v for k, v in CONFIG["projector"].items()})
    sizes = {k: tuple(v) if isinstance(v, list) else v for k, v in CONFIG["flux"].items()}
    lora = {"lora_rank": CONFIG["lora"]["rank"], "lora_scale": CONFIG["lora"]["scale"]}
    return FluxConfig(**(sizes | lora | dict(projector=projector, dtype="float32", remat="none") | changes))


def flux_params(weights: dict | None = None, rows=TRANSFORMER + LORA + PROJECTOR) -> dict[str, jax.Array]:
    weights = weights or tensors("flux") | tensors("dit_lora") | tensors("projector")
    structure = ModelDef(lambda rngs: Flux(flux_config(), rngs=rngs))
    return {k: jnp.asarray(v) for k, v in to_flax(rows, structure.shapes, weights.items()).items()}


def load(make, rows, weights):
    structure = ModelDef(make)
    return structure({k: jnp.asarray(v) for k, v in to_flax(rows, structure.shapes, weights.items()).items()})


def flux(weights: dict | None = None, **changes) -> Flux:
    return ModelDef(lambda rngs: Flux(flux_config(**changes), rngs=rngs))(flux_params(weights))


def siglip() -> SiglipVision:
    return load(lambda rngs: SiglipVision(SiglipConfig(**CONFIG["siglip"]), rngs=rngs), VISION, tensors("siglip"))


def autoencoder() -> AutoEncoder:
    sizes = {k: tuple(v) if isinstance(v, list) else v for k, v in CONFIG["autoencoder"].items() if k != "resolution"}
    return load(lambda rngs: AutoEncoder(AutoEncoderConfig(**sizes), rngs=rngs), AUTOENCODER, tensors("ae"))


def token_grid(latent: np.ndarray) -> tuple[int, int]:
    return latent.shape[2] // 2, latent.shape[3] // 2


def style_features(index: int, tower: SiglipVision) -> jax.Array:
    layers = tuple(CONFIG["projector"]["layers"])
    return tower(nhwc(arrays()[f"style_pixels_{index}"]), hidden_states=layers).hidden_states[:, None]


def velocity(model: Flux, case: str, x=None, t=None, guidance=None, features=None) -> jax.Array:
    """Run the transformer on a golden case; `features` are the SigLIP features by style index."""
    g, sampling = arrays(), CONFIG["sampling"]
    contents, styles = CASES[case]
    grid = token_grid(g["noise"])
    x = flow.pack(nhwc(g["noise"])) if x is None else x
    conditions = {}
    if styles:
        features = features or {i: style_features(i, siglip()) for i in styles}
        conditions["style"] = model.feature_embedder(jnp.concatenate([features[i] for i in styles], axis=1))
    if contents:
        latents = [g[f"ref_latent_{i}"] for i in contents]
        ids = flow.reference_ids(grid, [token_grid(latent) for latent in latents])
        conditions["ref_img"] = jnp.concatenate([flow.pack(nhwc(latent)) for latent in latents], axis=1)
        conditions["ref_ids"] = jnp.concatenate(ids)[None]
    scalar = lambda value: jnp.full((1,), value, jnp.float32)
    return model(
        x,
        flow.position_ids(*grid)[None],
        jnp.asarray(g["txt"]),
        scalar(sampling["t"]) if t is None else t,
        jnp.asarray(g["vec"]),
        scalar(sampling["guidance"] if guidance is None else guidance) if CONFIG["flux"]["guidance_embed"] else None,
        **conditions,
    )
