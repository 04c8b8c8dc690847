# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One sample over several devices: the tokens of the transformer split over the mesh's sequence axis."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from comparison import relative
from plain_attention import inputs, plain

from uso_jax import params
from uso_jax.common.errors import InputError
from uso_jax.models.attention.tpu import interpreted_splash
from uso_jax.models.components import placement_rules
from uso_jax.models.flux import Flux, FluxConfig
from uso_jax.models.flux2 import Flux2, Flux2Config
from uso_jax.models.layers.regions import NOWHERE, Regions
from uso_jax.parallel import sharding
from uso_jax.parallel.constraints import by_heads, by_tokens

# Neither 11 tokens of style and text nor 25 of target and content divide over devices; 8 heads do.
SIZES = dict(hidden_size=64, num_heads=8, context_in_dim=24, depth=1, depth_single_blocks=1)
MODELS = {
    "flux1": (Flux, FluxConfig.tiny(**SIZES, axes_dim=(2, 2, 4), vec_in_dim=16)),
    "flux2": (Flux2, Flux2Config.tiny(**SIZES, axes_dim=(2, 2, 2, 2), guidance_embed=True)),
}
SAMPLES, STYLE, TEXT, TARGET, CONTENT = 4, 6, 5, 15, 10
ONE = dict(data=1)
MESHES = (
    ("none", dict(sequence=8)),
    ("none", dict(data=2, sequence=2, tensor=2)),
    ("offload", dict(fsdp=2, sequence=4)),
)


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


def mesh_of(shape: dict[str, int]) -> jax.sharding.Mesh:
    return sharding.make_mesh(shape, jax.devices()[: math.prod(shape.values())])


@functools.cache
def numbers(family: str):
    """Draw parameters by their paths in a system, and a batch whose samples lack different conditions."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal((SAMPLES, *shape)).astype(np.float32)
    module, config = MODELS[family]
    shapes = params.shapes(lambda rngs: module(config, rngs=rngs))
    width = lambda path, shape: shape[-2] ** -0.5 if path.endswith("kernel") else 0.3
    drawn = {
        f"transformer/{path}": (width(path, s.shape) * rng.standard_normal(s.shape)).astype(np.float32)
        for path, s in shapes.items()
    }
    ids = lambda length: rng.integers(0, 9, (1, length, len(config.axes_dim))).astype(np.float32)
    batch = dict(
        img=draw(TARGET, config.in_channels),
        txt=draw(TEXT, config.context_in_dim),
        **({"y": draw(config.vec_in_dim)} if config.vec_in_dim else {}),
        timesteps=np.linspace(0.1, 0.9, SAMPLES, dtype=np.float32),
        guidance=np.full(SAMPLES, 4, np.float32),
        style=draw(STYLE, config.hidden_size),
        style_valid=rng.random((SAMPLES, STYLE)) < 0.7,
        ref_img=draw(CONTENT, config.in_channels),
        ref_valid=rng.random((SAMPLES, CONTENT)) < 0.7,
        ref_bias=draw(CONTENT),
    )
    if family == "flux2":  # two styles with regions; the second one also owns references
        owner = lambda length: np.repeat([[0, 1, 2]], SAMPLES, axis=0)[:, np.sort(rng.integers(0, 3, length))]
        batch |= dict(style_owner=owner(STYLE), ref_owner=owner(CONTENT), target=draw(TARGET, 2), others=draw(3, 2))
        batch["target"][:, :7, 0] = NOWHERE
    return drawn, batch, (ids(TARGET), ids(CONTENT))


@functools.cache
def run(family: str, remat: str, **shape: int):
    """Return velocity, loss and gradients of all parameters on a mesh, and the FLOPs per device."""
    module, config = MODELS[family]
    structure = params.ModelDef(lambda rngs: module(dataclasses.replace(config, remat=remat), rngs=rngs))
    drawn, batch, (ids, ref_ids) = numbers(family)

    def compute(drawn, batch):
        def loss(drawn):
            model = structure({path.removeprefix("transformer/"): value for path, value in drawn.items()})
            references = {name: value for name, value in batch.items() if name.startswith("ref_")}
            references["ref_ids"] = jnp.asarray(ref_ids)
            regions = Regions(batch["target"], batch["others"]) if family == "flux2" else None
            step = {name: value for name, value in batch.items() if name not in Regions._fields}
            # FLUX.2 reads the references twice: as tokens, and isolated.
            kept = model.keep(None, batch["guidance"], **references, regions=regions) if family == "flux2" else None
            step |= dict(img_ids=jnp.asarray(ids), ref_ids=references["ref_ids"], regions=regions, kept=kept)
            velocity = model(**step)
            return jnp.square(velocity - 1).mean(), velocity

        return jax.value_and_grad(loss, has_aux=True)(drawn)

    mesh = mesh_of(shape)
    shapes = {path: jax.ShapeDtypeStruct(value.shape, value.dtype) for path, value in drawn.items()}
    placed = jax.device_put(drawn, sharding.shardings(mesh, placement_rules(), shapes))
    with jax.set_mesh(mesh):
        batch = sharding.global_batch(mesh, batch)
        compiled = jax.jit(compute).lower(placed, batch).compile()
        (loss, velocity), gradients = compiled(placed, batch)
    return velocity, loss, gradients, compiled.cost_analysis()["flops"]


@pytest.mark.slow
@pytest.mark.parametrize("remat, shape", MESHES, ids=str)
@pytest.mark.parametrize("family", MODELS)
def test_eight_devices_equal_one(family, remat, shape):
    velocity, loss, gradients, flops = run(family, "none", **ONE)
    got, got_loss, got_gradients, got_flops = run(family, remat, **shape)
    assert relative(got, velocity) < 1e-5
    assert relative(got_loss, loss) < 1e-5
    moved = {path: gradient for path, gradient in gradients.items() if np.asarray(gradient).any()}
    assert set(gradients) - set(moved) == {path for path in gradients if "feature_embedder" in path}  # not run here
    errors = {path: relative(got_gradients[path], gradient) for path, gradient in moved.items()}
    assert {path: error for path, error in errors.items() if not error < 1e-5} == {}
    # The work is divided, but for filling, what belongs to no token, and what is computed again.
    assert got_flops < 0.25 * flops


def test_the_tpu_kernel_runs_on_each_device_s_heads():
    q, k, v, valid = (x[:1] for x in inputs(16, 24, heads=4, width=128))
    with jax.set_mesh(mesh_of(dict(sequence=2, tensor=2))):
        out = jax.jit(lambda *qkv: by_heads(interpreted_splash(*map(by_heads, qkv), valid)))(q, k, v)
        assert out.addressable_shards[0].data.shape == (1, 16, 1, 128)
        back = jax.jit(by_tokens)(out)
        assert back.addressable_shards[0].data.shape == (1, 8, 2, 128)
    np.testing.assert_allclose(back, plain(q, k, v, valid), atol=1e-5, rtol=0)


def test_meshes_that_make_no_sense():
    mesh = mesh_of(dict(sequence=4, tensor=2))
    sharding.check_heads(mesh, 24)
    with pytest.raises(InputError, match="12 attention heads do not divide by mesh axes sequence x tensor = 8"):
        sharding.check_heads(mesh, 12)
    sharding.check_heads(mesh_of(dict(tensor=8)), 12)  # as ever
    with pytest.raises(InputError, match="'rows' is no axis; axes are data, fsdp, sequence, tensor"):
        sharding.make_mesh(dict(rows=8))
