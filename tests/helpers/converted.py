# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Converted weights: a tiny transformer of diffusers, its outputs and ours, and comparisons of files."""

import functools
import json

import diffusers
import jax.numpy as jnp
import numpy as np
import torch
from safetensors.numpy import load_file

from uso_jax import weights
from uso_jax.models.components import split_transformer
from uso_jax.params import ModelDef

TOLERANCE = 2e-4  # of the output's standard deviation
FLUX = dict(
    patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
    joint_attention_dim=20, pooled_projection_dim=12, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
)  # fmt: skip


def redraw(model: torch.nn.Module) -> torch.nn.Module:
    """Draw every parameter anew: at initial values scales are 1 and biases 0, and mistakes do not show."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        fan_in = value[0].numel() if value.ndim > 1 else 1
        value.data = (
            1 + 0.3 * noise if "norm" in name and value.ndim == 1 and "weight" in name else noise * 0.7 * fan_in**-0.5
        )
    return model.eval()


def config_file(tmp_path, sections) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(sections))
    return str(path)


def load(directory, component, make, **changes):
    config = weights.config(directory, component, **changes)
    structure = ModelDef(lambda rngs: make(config, rngs=rngs))
    parts = split_transformer(structure.shapes) if component == "transformer" else {component: structure.shapes}
    return structure({k: v for name, shapes in parts.items() for k, v in weights.load(directory, name, shapes).items()})


def equal(path, want: dict):
    got = load_file(path)
    assert got.keys() == want.keys()
    for key in want:
        assert got[key].dtype == want[key].dtype and got[key].tobytes() == want[key].tobytes(), key


def state(model) -> dict[str, np.ndarray]:
    return {key: value.detach().numpy() for key, value in model.state_dict().items()}


@functools.cache
def torch_flux():
    return redraw(diffusers.FluxTransformer2DModel(**FLUX))


def flux_inputs():
    rng = np.random.default_rng(0)
    return {
        "img": rng.normal(size=(1, 6, 16)), "txt": rng.normal(size=(1, 5, 20)), "y": rng.normal(size=(1, 12)),
        "t": np.array([0.7]), "guidance": np.array([3.5]),
        "ids": np.stack([np.zeros(6), np.arange(6) // 3, np.arange(6) % 3], -1),
    }  # fmt: skip


def run_torch_flux(model):
    x = {name: torch.tensor(value, dtype=torch.float32) for name, value in flux_inputs().items()}
    with torch.no_grad():
        return model(
            hidden_states=x["img"], encoder_hidden_states=x["txt"], pooled_projections=x["y"], timestep=x["t"],
            guidance=x["guidance"], img_ids=x["ids"], txt_ids=torch.zeros(5, 3),
        ).sample  # fmt: skip


def run_flux(model):
    x = {name: jnp.asarray(value, jnp.float32) for name, value in flux_inputs().items()}
    return model(x["img"], x["ids"][None], x["txt"], x["t"], x["y"], x["guidance"])
