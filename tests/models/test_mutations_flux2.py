# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Mutation tests of FLUX.2's parity tests: each passes on the real code and fails by far with a plausible mistake."""

import functools
import re

import golden_flux2 as golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import ENCODER, VELOCITY, error
from golden_files import nhwc
from golden_flux2 import arrays
from oracle_flux2 import QWEN3, autoencoder_pair, load_qwen3, torch_qwen3
from oracle_torch import normal

from uso_jax import flow
from uso_jax.models import autoencoder2, flux2, qwen3
from uso_jax.models.layers import joint_blocks
from uso_jax.weights.tables.flux2 import TRANSFORMER

pytestmark = pytest.mark.slow  # runs whole networks, op by op

# ------------------------------------------- checks: a parity test's error as a multiple of its tolerance


def model(name="klein", edit=None, rows=TRANSFORMER, **changes):
    weights = dict(golden.tensors(name))
    weights |= {key: edit[1](x) for key, x in weights.items() if edit and re.fullmatch(edit[0], key)}
    return golden.transformer(name, rows, weights, **changes)


# Op by op: all mistakes share the compiled operations, where a jitted scan would be compiled anew for each.
@jax.disable_jit()
def velocity(name="klein", **mistake):
    got = golden.velocity(model(name, **mistake), **golden.references(2))
    return error(got, arrays()[f"{name}_velocity_two_refs"]) / VELOCITY


@jax.disable_jit()
def isolated(plain=False):
    network, first = model(), jnp.full((2,), arrays()["denoise_timesteps"][0], jnp.float32)
    conditions = golden.references(2) if plain else {"kept": golden.keep(network, 2)}
    got = golden.velocity(network, t=first, **conditions)
    return error(got, arrays()["klein_kv_velocity_first_2_refs"]) / VELOCITY


def encoded():
    """Return the error of latents against diffusers' batch norm, which has small variances."""
    ours, theirs = autoencoder_pair()
    raw = normal(0, 1, 4, 4, 6)
    mean = theirs.bn.running_mean.numpy().reshape(4, 2, 2)
    deviation = np.sqrt(theirs.bn.running_var.numpy() + theirs.config.batch_norm_eps).reshape(4, 2, 2)
    want = (raw - np.tile(mean, (1, 2, 3))) / np.tile(deviation, (1, 2, 3))
    return error(ours.bn.normalise(nhwc(raw)), nhwc(want)) / ENCODER


def text(**changes):
    import torch

    ids = np.random.default_rng(0).integers(0, QWEN3.vocab_size, (2, 12)).astype(np.int32)
    valid = np.arange(12)[None] < np.asarray([12, 7])[:, None]
    with torch.no_grad():
        states = torch_qwen3()(
            torch.tensor(ids).long(), torch.tensor(valid).long(), output_hidden_states=True
        ).hidden_states
    want = torch.cat([states[i] for i in QWEN3.hidden_states], dim=-1).numpy()
    got = load_qwen3(**changes)(jnp.asarray(ids), jnp.asarray(valid))
    return error(got[valid], want[valid]) / ENCODER


def schedule():
    got = flow.empirical_schedule(50, 4096)
    return float(np.abs(got - arrays()["schedule_50_4096"]).max() / 1e-6)


# ------------------------------------- mistakes: patch something, or give a check's arguments, or both


def reorder(key, parts, order):
    """Split the tensors of `key` along the first axis and reorder the parts."""
    edit = lambda x: np.concatenate([np.split(x, parts)[i] for i in order])
    return lambda patch: dict(edit=(key, edit))


def given(**arguments):
    return lambda patch: arguments


def replace(target, name, wrap):
    """Patch a function by `wrap(function)`, where it is looked up."""
    return lambda patch: patch.setattr(target, name, wrap(getattr(target, name)))


def swap(a, b):
    """Swap two words in the torch names of the table."""
    exchange = lambda name: name.replace(a, "@").replace(b, a).replace("@", b)
    return lambda patch: dict(rows=tuple((exchange(t), f, k) for t, f, k in TRANSFORMER))


def linear1_cut_wrongly(patch):
    return dict(rows=tuple((t, f[::-1] if t.endswith("linear1") else f, k) for t, f, k in TRANSFORMER))


def unrotated(pe, out, own):
    """Turn the keys back."""
    return out, own._replace(keys=joint_blocks.rotate(own.keys, pe.at[..., 1].multiply(-1)))


def gate_second(real):
    return lambda x: jnp.split(x, 2, axis=-1)[0] * jax.nn.silu(jnp.split(x, 2, axis=-1)[1])


def between_layers(distance):
    """Put references `distance` apart along t."""
    wrap = lambda real: lambda target, references: [flow.layered_ids(*s, distance) for s in references]
    return replace(flow, "layered_reference_ids", wrap)


def transposed_cells(real):
    return lambda self, statistic: real(self, statistic).swapaxes(3, 4)


MISTAKES = {
    # modulation
    "scale before shift in single blocks": (velocity, reorder(r"single_stream_modulation.*", 3, (1, 0, 2))),
    "scale before shift in double blocks": (velocity, reorder(r"double_stream_.*_img.*", 6, (1, 0, 2, 4, 3, 5))),
    "gate before shift in single blocks": (velocity, reorder(r"single_stream_modulation.*", 3, (2, 1, 0))),
    "modulation of the MLP before that of attention": (
        velocity,
        reorder(r"double_stream_modulation_.*", 6, (3, 4, 5, 0, 1, 2)),
    ),
    "image and text modulations swapped": (velocity, swap("modulation_img", "modulation_txt")),
    "scale before shift in the last layer": (velocity, reorder(r"final_layer\.adaLN.*", 2, (1, 0))),
    # blocks
    "second half gates": (velocity, replace(joint_blocks, "swiglu", gate_second)),
    "mlp before qkv in linear1": (velocity, linear1_cut_wrongly),
    "query and key norms swapped": (velocity, swap("query_norm", "key_norm")),
    "guidance ignored": (
        functools.partial(velocity, "dev"),
        given(edit=(r"guidance_in\.out_layer.*", np.zeros_like)),
    ),
    # positions
    "another theta": (velocity, given(theta=10_000)),
    "references in layer 1": (velocity, between_layers(1)),
    "references in one layer": (velocity, between_layers(10)),
    "text not numbered": (velocity, replace(flux2.Flux2, "text_ids", lambda _: lambda self, length: None)),
    "text numbered along w": (
        velocity,
        replace(flux2.Flux2, "text_ids", lambda f: lambda self, length: f(self, length)[..., [0, 1, 3, 2]]),
    ),
    # isolated references
    "references modulated at the step's time": (
        isolated,
        replace(flux2.Flux2, "vector", lambda f: lambda self, t, y, g: f(self, jnp.ones_like(t), y, g)),
    ),
    "references not isolated": (isolated, given(plain=True)),
    "keys kept before the rotation": (
        isolated,
        replace(joint_blocks.Joint, "attend", lambda f: lambda self, *rest: unrotated(self.pe, *f(self, *rest))),
    ),
    # the other networks
    "epsilon of the batch norm": (encoded, lambda patch: patch.setattr(autoencoder2, "_EPSILON", 1e-5)),
    "rows and columns of a patch swapped": (encoded, replace(autoencoder2.BatchNorm, "_grid", transposed_cells)),
    "hidden states counted without the embedding": (text, given(hidden_states=(0, 2, 4))),
    "neighbours rotated instead of halves": (
        text,
        replace(
            qwen3,
            "rotate_halves",
            lambda f: lambda x, theta: f(x.reshape(*x.shape[:-1], -1, 2).swapaxes(-1, -2).reshape(x.shape), theta),
        ),
    ),
    "another theta in Qwen3": (text, given(rope_theta=10_000.0)),
    "mu of 200 steps": (schedule, replace(flow, "empirical_mu", lambda f: lambda tokens, steps: f(tokens, 200))),
}


@functools.cache
def untouched(check):
    return check()


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name, monkeypatch):
    check, make = MISTAKES[name]
    assert untouched(check) < 1
    assert check(**(make(monkeypatch) or {})) > 3
