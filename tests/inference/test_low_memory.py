# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Generation in little memory: networks that wait on the host, kernels that stay quantised, images in tiles."""

import itertools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import oracle_pipeline as oracle
import pytest
import tiny
from flax import nnx
from oracle_pipeline import open_pipeline as load
from oracle_pipeline import pixels

from uso_jax import mini, weights
from uso_jax.common.errors import InputError
from uso_jax.models import tiled_decoding
from uso_jax.models.autoencoder import AutoEncoder
from uso_jax.models.layers import scan
from uso_jax.models.layers.linear import Linear
from uso_jax.params import ModelDef
from uso_jax.weights import quantization
from uso_jax.weights.manifest_text import format_struct
from uso_jax.weights.quantized_kernels import check_products, join
from uso_jax.weights.writer import Writer

pytestmark = pytest.mark.slow  # compiles or runs whole programs

WANTED = dict(prompt="a fox", contents=[oracle.photo(1, 90, 130)], styles=[oracle.photo(4, 70, 33)], seed=3)


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return oracle.write(tmp_path_factory.mktemp("weights") / "tiny")


def size(arrays) -> int:
    return sum(x.nbytes for x in arrays)


# ---------------------------------------------------------------------------------------------------- offload


def test_only_the_network_at_work_lies_on_the_device(directory, monkeypatch):
    plain = load(directory)
    whole = {name: size(part.values()) for name, part in plain.sampler._parts.items()}
    want = pixels(plain(**WANTED))
    del plain
    pipe = load(directory, offload=True)
    others = {id(x) for x in jax.live_arrays()}
    seen: dict[str, int] = {}

    def measured(name, function):
        def call(*arguments):
            live = [x for x in jax.live_arrays() if id(x) not in others and x.sharding.memory_kind == "device"]
            seen[name] = max(seen.get(name, 0), size(live))
            return function(*arguments)

        return call

    sampler = pipe.sampler
    for name in ("features", "encode", "text", "style", "decode"):
        monkeypatch.setitem(sampler.programs, name, measured(name, sampler.programs[name]))
    step = sampler._step
    monkeypatch.setattr(sampler, "_step", lambda *arguments: measured("step", step(*arguments)))
    for _ in range(2):
        np.testing.assert_array_equal(pixels(pipe(**WANTED)), want)
    small = 2**17  # tokens and latents; the smallest network has more
    for name, part in {
        "features": "siglip", "encode": "autoencoder", "text": "text", "style": "transformer",
        "step": "transformer", "decode": "autoencoder",
    }.items():  # fmt: skip
        assert whole[part] <= seen[name] < whole[part] + small, name
    assert max(seen.values()) < 0.75 * sum(whole.values())
    on_host = [x for part in sampler._parts.values() for x in part.values()]
    assert {x.sharding.memory_kind for x in on_host} == {"pinned_host"}


# ---------------------------------------------------------------------------------------------------- quantised


def quantised(source, directory, mode):
    """Copy weights with the large kernels of transformer and T5 quantised."""
    shutil.copytree(source, directory)
    for component in ("transformer", "t5"):
        arrays = {path: np.asarray(x) for path, x in weights.read(source, component).items()}
        structs = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in arrays.items()}
        chosen = quantization.choose(component, structs)
        assert chosen
        stored = structs | {k: v for path, s in chosen.items() for k, v in quantization.stored(path, s, mode).items()}
        shutil.rmtree(directory / component)
        with Writer(directory, component, stored) as writer:
            for path, value in arrays.items():
                if path in chosen:
                    value, scales = quantization.quantise(value, mode)
                    writer.write(quantization.scale_path(path), 0, scales)
                writer.write(path, 0, value)
            manifest = {name: weights.manifest(source, component)[name] for name in ("config", "dtype", "parameters")}
            parameters = {path: format_struct(struct) for path, struct in chosen.items()}
            writer.finish(manifest | {"quantization": {"mode": mode, "parameters": parameters}})
    return directory


@pytest.mark.parametrize("mode", quantization.FORMATS)
def test_quantised_kernels_stay_so_and_draw_the_same(directory, tmp_path, monkeypatch, mode):
    monkeypatch.setattr(quantization, "SMALLEST", 2**8)
    monkeypatch.setattr(quantization, "GROUP", 16)
    pipe = load(quantised(directory, tmp_path / "weights", mode))
    part = pipe.sampler._parts["transformer"]
    dtype = np.int8 if mode == "int4" else quantization.FORMATS[mode][0]
    path = "transformer/single_blocks/linear1_mlp/kernel"
    assert part[path].dtype == dtype and part[quantization.scale_path(path)].dtype == np.float32
    assert any(x.dtype == dtype for x in pipe.sampler._parts["text"].values())
    got = pixels(pipe(**WANTED))
    whole = load(directory, merge=False)
    for component in ("transformer", "t5"):  # the same numbers, multiplied before
        prefix = "text/t5/" if component == "t5" else "transformer/"
        shapes = weights.shapes(tmp_path / "weights", component)
        values = weights.load(tmp_path / "weights", component, shapes)
        place = whole.sampler._parts[prefix.split("/")[0]]
        place.update({prefix + path: jax.device_put(x, place[prefix + path].sharding) for path, x in values.items()})
    assert np.abs(pixels(whole(**WANTED)) - got).max() <= 1
    assert np.abs(pixels(load(directory)(**WANTED)) - got).max() > 1


def test_products_in_8_bits(directory, tmp_path, monkeypatch):
    monkeypatch.setattr(quantization, "SMALLEST", 2**8)
    stored = quantised(directory, tmp_path / "weights", "int8")
    plain, quick = load(stored), load(stored, quantize_activations=True)
    assert "quantize_activations" not in plain.context and quick.context["quantize_activations"] is True
    a, b = (pixels(pipe(**WANTED)).astype(int) for pipe in (plain, quick))
    assert 0 < np.abs(a - b).mean() < 3  # grey levels
    adapter = oracle.write(tmp_path / "other") / "lora"
    quick.load_adapter(adapter.parent, strength=0.5)
    assert quick.sampler.system.quantize_activations and quick.context["quantize_activations"] is True
    with pytest.raises(InputError, match="in int8 or fp8, and this one is not quantised; import the weights with --qu"):
        load(directory, quantize_activations=True)
    with pytest.raises(InputError, match="and this one is in int4"):
        check_products("int4", "cpu", "cpu")
    check_products("int8", "tpu", "TPU v5 lite"), check_products("fp8", "tpu", "TPU7x")
    with pytest.raises(InputError, match="TPU v6 lite has no products in fp8; import the weights with --quantize int8"):
        check_products("fp8", "tpu", "TPU v6 lite")
    with pytest.raises(InputError, match="TPU7x has no products in int8; import the weights with --quantize fp8"):
        check_products("int8", "tpu", "TPU7x")


def test_a_stack_is_never_whole():
    """The program's temporaries are those of a layer, not of all."""
    depth, width = 24, 256
    make = lambda rngs: Linear(width, width, use_bias=False, rngs=rngs)
    graph, state = nnx.split(nnx.eval_shape(lambda: scan.stack(make, depth, nnx.Rngs(0))))

    def apply(params, x):
        ((path, leaf),) = nnx.to_flat_state(state)
        blocks = nnx.merge(graph, nnx.from_flat_state([(path, leaf.replace(join(params)["kernel"]))]))
        return scan.scan(blocks, lambda block, x: jnp.tanh(block(x)), x)

    kernel = jax.ShapeDtypeStruct((depth, width, width), jnp.int8)
    params = {"kernel": kernel, "kernel_scale": jax.ShapeDtypeStruct((depth, 1, width), jnp.float32)}
    compiled = jax.jit(apply).lower(params, jax.ShapeDtypeStruct((4, width), jnp.float32)).compile()
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes < 1.1 * kernel.size
    assert memory.temp_size_in_bytes < 3 * 4 * width * width  # one layer in float32, and its copies


# ---------------------------------------------------------------------------------------------------- tiles


def test_tiles_cover_and_blend():
    for length in (8, 9, 15, 16, 31, 100):
        places = tiled_decoding.tile_starts(length, 8, 2)
        assert places[0] == 0 and places[-1] == max(length - 8, 0)
        assert all(0 < b - a <= 6 for a, b in itertools.pairwise(places))
    z = jnp.asarray(np.random.default_rng(0).random((2, 21, 13, 3)), jnp.float32)
    larger = lambda z: jnp.repeat(jnp.repeat(z, 4, axis=1), 4, axis=2)  # sees no neighbours, so tiles equal the whole
    np.testing.assert_allclose(jax.jit(lambda z: tiled_decoding.decode_tiled(larger, z, 8))(z), larger(z), atol=1e-6)


def test_tiles_begin_with_a_patch():
    """Numbers that depend on the place in a patch of 2 x 2, as FLUX.2's batch norm, are the same in every tile."""
    for length in range(8, 60, 2):
        places = tiled_decoding.tile_starts(length, 8, 2, cell=2)
        assert all(place % 2 == 0 for place in places) and places[-1] == length - 8
        assert all(0 < after - before <= 8 for before, after in itertools.pairwise(places))
    z = jnp.zeros((1, 18, 26, 1))
    columns = lambda z: 2 * (jnp.arange(z.shape[2]) % 2)[None, None, :, None]
    place = lambda z: z + (jnp.arange(z.shape[1]) % 2)[None, :, None, None] + columns(z)
    np.testing.assert_allclose(tiled_decoding.decode_tiled(place, z, 8, cell=2), place(z), atol=1e-6)


def test_tiles_of_a_smooth_image_equal_the_whole():
    """The autoencoder is mini's, because a smooth image needs trained weights; tiles are 96 of 128 pixels."""
    structure = ModelDef(lambda rngs: AutoEncoder(weights.config(mini.WEIGHTS, "autoencoder"), rngs=rngs))
    model = structure(weights.load(mini.WEIGHTS, "autoencoder", structure.shapes))
    y, x = 4 * np.pi * np.mgrid[:128, :128] / 128
    image = np.stack([0.6 * np.sin(x + i) * np.cos(y - i) for i in range(3)], axis=-1)
    z = model.encode(jnp.asarray(image[None], jnp.float32))
    whole, tiled = model.decode(z), tiled_decoding.decode_tiled(model.decode, z, 24)
    difference = 127.5 * jnp.abs(tiled - whole)
    assert whole.std() > 0.2
    assert difference.mean() < 2 and difference.max() < 12  # grey levels


def test_the_pipeline_decodes_in_tiles(directory):
    plain, tiled = load(directory), load(directory, tile=64)
    arguments = dict(prompt="a fox", width=96, height=72, seed=3)
    assert "tile" not in plain.context and tiled.context["tile"] == 64
    a, b = pixels(plain(**arguments)), pixels(tiled(**arguments))
    assert a.shape == b.shape == (1, 72, 96, 3)
    assert np.abs(a - b).mean() < 12  # random weights, so nothing is smooth
    small = dict(prompt="a fox", seed=3)
    np.testing.assert_array_equal(pixels(plain(**small)), pixels(tiled(**small)))
    with pytest.raises(InputError, match="tile must be a multiple of 8 and at least 64 pixels, not 60"):
        load(directory, tile=60)
