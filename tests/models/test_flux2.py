# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Properties of FLUX.2's networks beyond parity: full sizes, isolated references, and what they save."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from comparison import error
from golden_flux2 import MANIFESTS
from small_transformers import BATCH, FAMILIES, batch, network

from convert.tables import autoencoder, qwen3
from uso_jax import params
from uso_jax.models.autoencoder2 import AutoEncoder2, AutoEncoder2Config
from uso_jax.models.flux2 import PRESETS, Flux2, Flux2Config
from uso_jax.models.layers.joint_blocks import JointConfig
from uso_jax.models.qwen3 import PRESETS as QWEN3
from uso_jax.models.qwen3 import Qwen3Config, Qwen3Encoder
from uso_jax.weights.tables import flux2
from uso_jax.weights.tables.flux import PROJECTOR
from uso_jax.weights.tables.table import expand, to_flax, to_torch


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


# ---------------------------------------------------------------------------------------------- full size


@functools.cache
def shapes(name: str, lora_rank: int = 0):
    config = PRESETS[name].with_uso(lora_rank) if lora_rank else PRESETS[name]
    return params.shapes(lambda rngs: Flux2(config, rngs=rngs))


@pytest.mark.parametrize(
    "name, count", (("klein-4b", 3_875_544_576), ("klein-9b", 9_078_581_248), ("dev", 32_223_281_152))
)
def test_parameter_counts(name, count):
    assert params.count(shapes(name)) == count


def test_adapters_and_projector():
    whole = shapes("klein-4b", lora_rank=128)
    assert shapes("klein-4b").items() <= whole.items()
    adapters = {path: x for path, x in whole.items() if "/processor/" in path}
    projector = {path: x for path, x in whole.items() if path.startswith("feature_embedder/")}
    assert len(adapters) + len(projector) + len(shapes("klein-4b")) == len(whole)
    width, mlp, rank = 3072, 9216, 128
    double = 2 * rank * ((width + 3 * width) + (width + width))
    single = rank * ((width + 3 * width) + (width + mlp + width))
    assert params.count(adapters) == 5 * double + 20 * single
    assert (params.count(projector), len(expand(PROJECTOR, projector))) == (10_773_120, 18)


QWEN3_UNREAD = r"model\.layers\.(2[7-9]|3[0-5])\..*|model\.norm\.weight|lm_head\.weight"
AUTOENCODER = functools.cache(lambda: params.shapes(lambda rngs: AutoEncoder2(AutoEncoder2Config(), rngs=rngs)))
QWEN = functools.cache(lambda name: params.shapes(lambda rngs: Qwen3Encoder(QWEN3[name], rngs=rngs)))
FILES = (  # manifest, table, model's shapes, prefix of the table's names, keys that the model does not read
    *(
        (f"flux2-{name} ({names} names)", rows, functools.partial(shapes, name), "", "")
        for name in ("klein-4b", "klein-9b", "dev")
        for names, rows in (("original", flux2.TRANSFORMER), ("diffusers", flux2.TRANSFORMER_DIFFUSERS))
    ),
    *(
        (f"flux2 autoencoder ({names} names)", rows, AUTOENCODER, "", r"bn\.num_batches_tracked")
        for names, rows in (("original", autoencoder.AUTOENCODER2), ("diffusers", autoencoder.AUTOENCODER2_DIFFUSERS))
    ),
    *(
        (f"{name} (transformers names)", qwen3.ENCODER, functools.partial(QWEN, name), "model.", QWEN3_UNREAD)
        for name in QWEN3
    ),
)


@pytest.mark.parametrize("file, rows, shapes, prefix, unread", FILES, ids=[file[0] for file in FILES])
def test_checkpoint_manifest(file, rows, shapes, prefix, unread):
    want = {key: tuple(shape) for key, shape in MANIFESTS[file].items()}
    entries = expand(rows, shapes())
    got = {prefix + key: entry.shape for key, entry in entries.items()}
    left = {key for key in want if key not in got}
    assert {key for key in left if not re.fullmatch(unread, key)} == set()
    assert got == {key: shape for key, shape in want.items() if key not in left}
    # Every number of the model is filled once.
    filled = sum(piece_size(entry, piece) for entry in entries.values() for piece in entry.pieces)
    assert filled == params.count(shapes())


def piece_size(entry, piece) -> int:
    return (piece.stop - piece.start) * int(np.prod(entry.shape[1:], dtype=np.int64))


@pytest.mark.parametrize(
    "rows, make",
    (
        (flux2.TRANSFORMER, lambda rngs: Flux2(Flux2Config.tiny(lora_rank=0, projector=None), rngs=rngs)),
        (flux2.TRANSFORMER_DIFFUSERS, lambda rngs: Flux2(Flux2Config.tiny(lora_rank=0, projector=None), rngs=rngs)),
        (autoencoder.AUTOENCODER2, lambda rngs: AutoEncoder2(AutoEncoder2Config.tiny(), rngs=rngs)),
        (autoencoder.AUTOENCODER2_DIFFUSERS, lambda rngs: AutoEncoder2(AutoEncoder2Config.tiny(), rngs=rngs)),
        (qwen3.ENCODER, lambda rngs: Qwen3Encoder(Qwen3Config.tiny(), rngs=rngs)),
    ),
    ids=("transformer", "transformer-diffusers", "autoencoder", "autoencoder-diffusers", "qwen3"),
)
def test_tables_round_trip(rows, make):
    structs = params.shapes(make)
    rng = np.random.default_rng(0)
    drawn = {path: rng.standard_normal(x.shape).astype(np.float32) for path, x in structs.items()}
    back = to_flax(rows, structs, to_torch(rows, structs, drawn))
    assert back.keys() == drawn.keys()
    assert all(back[path].tobytes() == drawn[path].tobytes() for path in drawn)


@pytest.mark.parametrize(
    "make, message",
    (
        (lambda: Flux2Config(axes_dim=(32, 32, 32)), "must add up to the head width, 128"),
        (lambda: Qwen3Config(num_key_value_heads=7), "is not divisible by num_key_value_heads 7"),
        (lambda: Qwen3Config(hidden_states=(9, 28)), r"hidden_states \(9, 28\) must be from 0 to 27"),
    ),
)
def test_config_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---------------------------------------------------------------------------------------------- isolated references


@functools.cache
def isolated(family: str):
    """Run a step with isolated references and style tokens; return the velocity and the gradients of its square."""

    @jax.jit
    def run(references):
        step, model = batch(family)[0], network(family)
        ids = batch(family)[1]["ref_ids"]
        valid = {name: batch(family)[1][name] for name in ("ref_valid", "style_valid")}

        def loss(references):
            kept = model.keep(step["y"], step["guidance"], ref_ids=ids, **references, **valid)
            velocity = model(**step, kept=kept)
            return jnp.square(velocity).sum(), (velocity, kept)

        gradients, (velocity, kept) = jax.grad(loss, has_aux=True)(references)
        return velocity, gradients, kept

    network(family)
    return run({name: batch(family)[1][name] for name in ("ref_img", "style")})


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_kept_references_equal_those_of_every_step(family):
    step, model = batch(family)[0], network(family)
    got = jax.jit(lambda kept: model(**step, kept=kept))(isolated(family)[2])
    assert error(got, isolated(family)[0]) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_absent_references_are_as_if_omitted(family):
    step, model = batch(family)[0], network(family)
    velocity, gradients, _ = isolated(family)
    plain = jax.jit(lambda step: model(**step))(step)
    assert error(velocity[2], plain[2]) < 1e-5
    assert error(velocity[0], plain[0]) > 0.1 and error(velocity[1], plain[1]) > 0.1
    for name, valid in (("ref_img", "ref_valid"), ("style", "style_valid")):
        valid = np.asarray(batch(family)[1][valid])
        np.testing.assert_array_equal(np.asarray(gradients[name])[~valid], 0)
        assert (np.abs(np.asarray(gradients[name])[valid]).max(axis=-1) > 0).all()


def test_references_see_each_other_only():
    """Compare three samples with equal first references: beside a second one, beside a masked one, and another."""
    step, model = batch("flux2")[0], network("flux2")
    tokens, ids = batch("flux2")[1]["ref_img"], batch("flux2")[1]["ref_ids"]
    tokens = tokens.at[:, :4].set(tokens[:1, :4])
    valid = jnp.asarray([[True] * 7, [True] * 4 + [False] * 3, [True] * 4 + [False] * 3])

    @jax.jit
    def run(tokens):
        kept = model.keep(ref_img=tokens, ref_ids=ids, ref_valid=valid)
        return kept, model(**step, kept=kept)

    kept, velocity = run(tokens)
    assert kept.double.keys.shape == kept.single.values.shape == (2, BATCH, 7, 2, 16)
    first = kept.single.keys[:, :, :4]
    assert error(first[:, 1], first[:, 2]) < 1e-6 and error(first[:, 0], first[:, 1]) > 0.1
    again = jax.jit(lambda kept: model(**step, kept=kept))(kept)
    assert error(again, velocity) < 1e-6  # kept once equals computed in the step
    with pytest.raises(ValueError, match="nothing to keep"):
        model.keep()
    with pytest.raises(ValueError, match="ref_img and ref_ids"):
        model.keep(ref_img=tokens)


def flops(config: JointConfig, tokens: int, keys: int) -> int:
    """Count the products of a double and a single block for one sample: linear layers and attention."""
    d, m = config.hidden_size, config.mlp_size
    double = 4 * d * d + 3 * d * m  # by token: qkv, proj, gated MLP
    single = 3 * d * d + 2 * d * m + (d + m) * d
    return 2 * tokens * (double + single) + 2 * 4 * tokens * keys * d


def test_isolated_references_save_flops():
    """Compare with counts by hand. A loop counts once, so each stack has one block."""
    sizes = dict(depth=1, depth_single_blocks=1, hidden_size=64, axes_dim=(8,) * 4)
    c = Flux2Config.tiny(lora_rank=0, projector=None, attention="xla", **sizes)
    structure = params.ModelDef(lambda rngs: Flux2(c, rngs=rngs))
    struct = lambda *shape: jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    target, text, refs = 64, 16, 128
    step = dict(
        img=struct(target, c.in_channels), img_ids=struct(target, 4), txt=struct(text, c.context_in_dim),
        timesteps=jax.ShapeDtypeStruct((1,), jnp.float32),
    )  # fmt: skip
    references = dict(ref_img=struct(refs, c.in_channels), ref_ids=struct(refs, 4))
    keep = lambda weights, references: structure(weights).keep(**references)
    kept = jax.eval_shape(keep, structure.shapes, references)

    def count(function, *arguments) -> float:
        return jax.jit(function).lower(structure.shapes, *arguments).cost_analysis()["flops"]

    plain = count(lambda weights, step, more: structure(weights)(**step, **more), step, references)
    later = count(lambda weights, step, kept: structure(weights)(**step, kept=kept), step, kept)
    first = count(keep, references)
    own, everything = target + text, target + text + refs
    embedded = 2 * refs * c.in_channels * c.hidden_size
    saved = flops(c, everything, everything) - flops(c, own, everything) + embedded
    assert plain - later == pytest.approx(saved, rel=0.1)
    assert first == pytest.approx(flops(c, refs, refs) + embedded, rel=0.1)
    assert later < 0.45 * plain
