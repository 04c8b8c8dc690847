# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Mutation tests of the parity tests: each passes on the real code and fails by far with a plausible mistake."""

import functools
import re

import golden_files as golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import BLOCK, DENOISED, ENCODER, NORM, VELOCITY, error
from golden_files import CONFIG, arrays, nhwc, tensors
from oracle_torch import block_outputs, norm_outputs, norms

from uso_jax import flow
from uso_jax.common.errors import InputError
from uso_jax.models import autoencoder, flux, joint_transformer, projector, siglip
from uso_jax.models.layers import joint_blocks
from uso_jax.params import ModelDef
from uso_jax.weights.tables.flux import LORA, PROJECTOR, TRANSFORMER
from uso_jax.weights.tables.table import to_flax

pytestmark = pytest.mark.slow  # compiles or runs whole programs

CASE = "style_subject"
ROWS = TRANSFORMER + LORA + PROJECTOR
LAYERS = tuple(CONFIG["projector"]["layers"])

# ------------------------------------------- checks: a parity test's error as a multiple of its tolerance


@functools.cache
def structure(**changes):
    return ModelDef(lambda rngs: flux.Flux(golden.flux_config(**changes), rngs=rngs))


def model(rows=ROWS, edit=None, **changes):
    weights = tensors("flux") | tensors("dit_lora") | tensors("projector")
    weights |= {key: edit[1](x) for key, x in weights.items() if edit and re.fullmatch(edit[0], key)}
    empty = structure(**changes)
    return empty({path: jnp.asarray(x) for path, x in to_flax(rows, empty.shapes, weights.items()).items()})


def run(model, **inputs):
    features = jnp.asarray(np.stack([arrays()[f"siglip_hidden_{layer}"] for layer in LAYERS], axis=1))
    return golden.velocity(model, CASE, features={0: features[:, None]}, **inputs)


# Op by op: all mistakes share the compiled operations, where a jitted scan would be compiled anew for each.
@jax.disable_jit()
def velocity(**mistake):
    return error(run(model(**mistake)), arrays()[f"velocity_{CASE}"]) / VELOCITY


@jax.disable_jit()
def denoised(shift="upstream"):
    g, sampling, network = arrays(), CONFIG["sampling"], model()
    times = flow.schedule(sampling["denoise_steps"], sampling["height"], sampling["width"], shift)
    step = lambda x, t: run(network, x=x, t=t)
    tokens = flow.integrate(step, flow.pack(nhwc(g["noise"])), jnp.asarray(times, jnp.float32))
    return error(flow.unpack(tokens, *golden.token_grid(g["noise"])), nhwc(g[f"denoised_{CASE}"])) / DENOISED


def encoded():
    return (
        error(golden.autoencoder().encode(nhwc(arrays()["ae_image"])), nhwc(arrays()["ae_latent_mean_scaled"]))
        / ENCODER
    )


def hidden(layers=LAYERS):
    got = golden.siglip()(nhwc(arrays()["style_pixels_0"]), hidden_states=layers).hidden_states
    return error(got[:, 0], arrays()[f"siglip_hidden_{LAYERS[0]}"]) / ENCODER


def block(name):
    return error(*block_outputs(name, 1e-2, 0)) / BLOCK


def norm(name):
    return error(*norm_outputs(name, 1e-3)) / NORM


# ------------------------------------- mistakes: patch something, or give a check's arguments, or both


def swap(a, b):
    """Swap two words in the torch names of the table."""
    exchange = lambda name: name.replace(a, "@").replace(b, a).replace("@", b)
    return lambda patch: dict(rows=tuple((exchange(t), f, k) for t, f, k in ROWS))


def reorder(key, parts, order):
    """Split the tensors of `key` along the first axis and reorder the parts."""
    edit = lambda x: np.concatenate([np.split(x, parts)[i] for i in order])
    return lambda patch: dict(edit=(key, edit))


def given(**arguments):
    return lambda patch: arguments


def replace(target, name, wrap):
    """Patch a function by `wrap(function)`, where it is looked up."""
    return lambda patch: patch.setattr(target, name, wrap(getattr(target, name)))


def epsilon(name, value):
    return lambda patch: [patch.setattr(module, "epsilon", value) for module in norms(name)] and None


def linear1_cut_wrongly(patch):
    return dict(rows=tuple((t, f[::-1] if t.endswith("linear1") else f, k) for t, f, k in ROWS))


def change_ids(change):
    """Change the ids of all tokens, [style | txt | img | ref], before the rotation angles are taken."""
    return replace(joint_transformer, "rotary_embedding", lambda real: lambda ids, *sizes: real(change(ids), *sizes))


double_block, single_block = functools.partial(block, "double_blocks"), functools.partial(block, "single_blocks")
NUM_STYLE = 3 * CONFIG["projector"]["style_tokens"]
NUM_TEXT = NUM_STYLE + arrays()["txt"].shape[1]
other_epsilon = lambda x, mod: ((1 + mod.scale) * joint_blocks.layer_norm(x, 1e-5) + mod.shift).astype(x.dtype)
erf = lambda real: functools.partial(jax.nn.gelu, approximate=False)
halves = lambda x: jnp.concatenate([x[..., 0::2], x[..., 1::2]], axis=-1)
neighbours = lambda x: jnp.stack(jnp.split(x, 2, axis=-1), axis=-1).reshape(x.shape)

MISTAKES = {
    # tables
    "query and key norms swapped": (velocity, swap("query_norm", "key_norm")),
    "image and text adapters swapped": (velocity, swap("lora1", "lora2")),
    "image and text modulations swapped": (velocity, swap("img_mod", "txt_mod")),
    "projector levels reversed": (velocity, swap("high", "low")),
    "mlp before qkv in linear1": (velocity, linear1_cut_wrongly),
    "k, q, v instead of q, k, v": (velocity, reorder(r".*\.qkv\.(weight|bias)", 3, (1, 0, 2))),
    "scale before shift in the last layer": (velocity, reorder(r"final_layer\.adaLN.*", 2, (1, 0))),
    "scale before shift in single blocks": (velocity, reorder(r".*\.modulation\.lin.*", 3, (1, 0, 2))),
    "no adapter on linear2": (velocity, given(edit=(r".*\.proj_lora\.up\.weight", np.zeros_like))),
    "adapters at half strength": (velocity, given(lora_scale=0.5)),
    # conditioning
    "guidance ignored": (velocity, given(edit=(r"guidance_in\.out_layer.*", np.zeros_like))),
    "times not multiplied by 1000": (velocity, replace(flux, "timestep_embedding", lambda f: lambda t: f(t / 1000))),
    "sines before cosines": (
        velocity,
        replace(flux, "timestep_embedding", lambda f: lambda t: jnp.roll(f(t), 128, -1)),
    ),
    "references one position too near": (
        velocity,
        replace(flow, "reference_ids", lambda f: lambda grid, refs: f(tuple(n - 1 for n in grid), refs)),
    ),
    "references along rows only": (velocity, replace(flow, "reference_ids", lambda f: functools.partial(f, mode="h"))),
    # rotation
    "another theta": (velocity, given(theta=1000)),
    "rotation backwards": (
        velocity,
        replace(joint_blocks, "rotate", lambda f: lambda x, pe: f(x, pe.at[..., 1].multiply(-1))),
    ),
    "halves rotated instead of neighbours": (
        velocity,
        replace(joint_blocks, "rotate", lambda f: lambda x, pe: halves(f(neighbours(x), pe))),
    ),
    "ids of image before those of text": (velocity, change_ids(lambda ids: jnp.roll(ids, -NUM_TEXT, axis=1))),
    "style tokens numbered": (
        velocity,
        change_ids(lambda ids: ids.at[:, :NUM_STYLE, 1].set(jnp.arange(float(NUM_STYLE)))),
    ),
    # formulas
    # Through the whole golden model, the two kinds of gelu differ by 1.8 tolerances; a block alone tells them apart.
    "exact gelu in double blocks": (double_block, replace(joint_blocks, "gelu_tanh", erf)),
    "exact gelu in single blocks": (single_block, replace(joint_blocks, "gelu_tanh", erf)),
    "exact gelu in SigLIP": (hidden, replace(siglip, "gelu_tanh", erf)),
    "epsilon of modulated norms": (
        double_block,
        replace(joint_blocks, "modulate", lambda _: other_epsilon),  # traces of the real one are kept
    ),
    "epsilon of query and key norms": (functools.partial(norm, "query_key"), epsilon("query_key", 1e-5)),
    "epsilon of the projector's norms": (functools.partial(norm, "projector"), epsilon("projector", 1e-6)),
    "epsilon of SigLIP's norms": (functools.partial(norm, "siglip"), epsilon("siglip", 1e-5)),
    "epsilon of group norms": (functools.partial(norm, "group"), epsilon("group", 1e-5)),
    # data paths
    "true shift instead of upstream's": (denoised, given(shift="flux")),
    "channels fastest in a token": (
        velocity,
        replace(
            flow, "pack", lambda f: lambda x: f(x).reshape(*f(x).shape[:2], -1, 4).swapaxes(2, 3).reshape(f(x).shape)
        ),
    ),
    "hidden states counted without the embedding": (hidden, given(layers=tuple(layer - 1 for layer in LAYERS[:2]))),
    "autoencoder pads on the other side": (
        encoded,
        replace(
            autoencoder,
            "_conv",
            lambda f: (
                lambda *sizes, **options: f(
                    *sizes, **(options | ({"padding": ((1, 0), (1, 0))} if "padding" in options else {}))
                )
            ),
        ),
    ),
    "latents shifted after scaling": (
        encoded,
        replace(
            autoencoder.AutoEncoder,
            "encode",
            lambda f: lambda self, x: f(self, x) + (self.config.scale_factor - 1) * self.config.shift_factor,
        ),
    ),
}


@functools.cache
def untouched(check):
    return check()


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name, monkeypatch):
    check, make = MISTAKES[name]
    if check is encoded and not golden.HAS_AUTOENCODER:
        pytest.skip("this golden directory has no autoencoder")
    assert untouched(check) < 1
    assert check(**(make(monkeypatch) or {})) > 3


def test_order_of_style_tokens_cannot_matter(monkeypatch):
    """Check the order of style and text tokens, which no mistake above changes: they share weights and ids."""
    real = projector.HierarchicalProjector.__call__
    monkeypatch.setattr(
        projector.HierarchicalProjector, "__call__", lambda self, features: real(self, features)[:, ::-1]
    )
    assert velocity() < 1


@pytest.mark.parametrize("half", ["up", "down"])
def test_transposed_adapters_are_refused(half):
    # Their shape gives them away before any number is compared.
    with pytest.raises(InputError, match="of wrong shape"):
        model(edit=(rf".*processor.*{half}\.weight", lambda x: x.T))
