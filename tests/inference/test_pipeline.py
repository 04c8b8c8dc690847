# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The pipeline: every mode against torch, batches, strengths, and counts of compilations and encodings."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import oracle_pipeline as oracle
import pytest
import tiny
from oracle_pipeline import pixels

from uso_jax import weights
from uso_jax.common.errors import InputError
from uso_jax.inference.options import GenerationOptions
from uso_jax.inference.pipeline import USOPipeline
from uso_jax.models.attention.dispatch import attention
from uso_jax.models.attention.tpu import interpreted_splash
from uso_jax.parallel import sharding
from uso_jax.weights.pretrained import Pretrained
from uso_jax.weights.safetensors_store import read_extents

pytestmark = pytest.mark.slow  # compiles or runs whole programs

TALL, WIDE, SQUARE = (oracle.photo(1, 90, 130), oracle.photo(2, 61, 40), oracle.photo(3, 50, 50))
INK, FELT = oracle.photo(4, 70, 33), oracle.photo(5, 20, 20)
MODES = {
    "text": dict(prompt="a red fox in the snow"),
    "subject": dict(prompt="the fox sits", contents=[TALL]),
    "style": dict(prompt="a house", styles=[INK]),
    "style_subject_shifted": dict(prompt="the fox runs", contents=[WIDE], styles=[FELT]),
    "style_subject_preserved": dict(prompt="", contents=[WIDE], styles=[FELT]),
    "several_styles": dict(prompt="a cat", styles=[INK, FELT]),
    "several_contents": dict(prompt="the fox and the dog", contents=[TALL, WIDE, SQUARE], styles=[INK]),
}


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return oracle.write(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="module")
def pipe(directory):
    return oracle.open_pipeline(directory)


def difference(a, b) -> int:
    return int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max())


def noise(pipe, seed: int, tokens: int = 16) -> np.ndarray:
    return np.asarray(
        pipe.sampler.programs["noise"](np.full((pipe.sampler.data_shards, 2), divmod(seed, 2**32), np.uint32), tokens)
    )[:1]


# ---------------------------------------------------------------------------------------------------- torch


@pytest.mark.parametrize("mode", MODES)
def test_equals_an_independent_assembly(pipe, mode):
    arguments = MODES[mode]
    (got,) = pixels(pipe(**arguments, seed=7))
    arguments = dict(contents=[], styles=[]) | arguments
    want = oracle.image(noise(pipe, 7), **arguments)
    assert want.std() > 20
    assert difference(got, want) <= 2
    # Each reference has an effect: without it, or in another order, the image differs.
    for name in ("contents", "styles"):
        for less in ([arguments[name][1:]] if arguments[name] else []) + (
            [arguments[name][::-1]] if len(arguments[name]) > 1 and name == "contents" else []
        ):
            assert difference(got, oracle.image(noise(pipe, 7), **(arguments | {name: less}))) > 2


def test_other_sizes_steps_and_guidance(pipe):
    arguments = dict(prompt="a cat on the sea", width=40, height=24, guidance=2.0, num_steps=2)
    (got,) = pixels(pipe(**arguments, contents=[TALL], seed=2**32 - 1))
    want = oracle.image(noise(pipe, 2**32 - 1, 15), **arguments, contents=[TALL])
    assert got.shape == (24, 40, 3)
    assert difference(got, want) <= 2


# ---------------------------------------------------------------------------------------------------- batches


def test_a_batch_equals_single_images_whatever_their_conditions(pipe):
    requests = [pipe.request(**mode, options=GenerationOptions(seed=seed)) for seed, mode in enumerate(MODES.values())]
    together = pipe.generate(requests)
    for request, got in zip(requests, pixels(together), strict=True):
        assert difference(pixels(pipe.generate([request]))[0], got) <= 1
    # Absent references are masked, so three sizes of content are all that divides these seven.
    before = len(pipe.sampler.steps)
    pipe.generate(requests)
    assert len(pipe.sampler.steps) == before


def test_lists_are_one_for_each_image(pipe):
    result = pipe(["a fox", "a cat"], content=[TALL, None], styles=[[INK], [INK, FELT]], seed=[1, 2], guidance=2.0)
    assert [record["request"]["seed"] for record in result.records] == [1, 2]
    assert [len(record["request"]["styles"]) for record in result.records] == [1, 2]
    single = pipe("a cat", styles=[INK, FELT], seed=2, guidance=2.0)
    assert difference(pixels(result)[1], pixels(single)[0]) <= 1
    with pytest.raises(InputError, match="different lengths: prompt 2, seed 3"):
        pipe(["a", "b"], seed=[1, 2, 3])


def test_noise_depends_on_the_seed_alone(pipe):
    alone = noise(pipe, 5)
    batch = np.asarray(pipe.sampler.programs["noise"](np.asarray([[0, 9], [0, 5], [0, 7]], np.uint32), 16))
    np.testing.assert_array_equal(batch[1], alone[0])
    assert not np.allclose(batch[0], batch[1])
    key = jax.random.key(np.uint32(5), impl="threefry2x32")
    np.testing.assert_array_equal(alone[0], jax.random.normal(key, alone[0].shape))
    assert not np.allclose(noise(pipe, 2**32 + 5)[0], alone[0])  # the upper half of a seed counts


def test_sizes_far_beyond_the_training_are_noted(pipe, caplog):
    width, height = pipe.pretrained.defaults.width, pipe.pretrained.defaults.height
    far = pipe.request("a", options=GenerationOptions(width=8 * width, height=4 * height))
    assert [note for note in far.notes if "compiling may take minutes" in note]
    assert not pipe.request("a", options=GenerationOptions(width=4 * width, height=4 * height)).notes


@pytest.mark.parametrize("shape", [dict(data=8), dict(data=2, fsdp=2, tensor=2), dict(fsdp=4, sequence=2)], ids=str)
def test_eight_devices_draw_what_one_draws(pipe, directory, shape):
    many = USOPipeline.from_weights(directory, mesh=sharding.make_mesh(shape), compilation_cache=False)
    arguments = dict(prompt="a fox", contents=[TALL], styles=[INK], seed=[1, 2, 3])  # filled up to whole batches
    np.testing.assert_array_equal(noise(many, 5), noise(pipe, 5))
    assert difference(pixels(many(**arguments)), pixels(pipe(**arguments))) <= 1


# ---------------------------------------------------------------------------------------------------- programs


def test_one_program_for_all_values(pipe):
    pipe("a fox", contents=[TALL], styles=[INK], seed=1)
    before = dict(pipe.sampler.steps)
    others = dict(seed=2, num_steps=5, guidance=1.5, shift="flux", pe="w")
    pipe("", contents=[oracle.photo(8, 90, 130)], styles=[FELT], **others)
    assert pipe.sampler.steps == before
    said = []
    progress = lambda *report: said.append(report)
    pipe("a fox", contents=[TALL], styles=[INK], style_strength=0.5, progress=progress)
    after = dict(pipe.sampler.steps)
    assert len(after) == len(before) + 1
    assert [what for what, *_ in said].count("Compiling (first image of this size)") == 1
    stages = ["Encoding references", "Encoding text", "Compiling (first image of this size)", "Sampling", "Decoding"]
    assert list(dict.fromkeys(what for what, *_ in said)) == stages
    assert said[-2:] == [(what, oracle.STEPS, oracle.STEPS) for what in ("Sampling", "Decoding")]
    pipe("a fox", contents=[TALL], styles=[INK], style_strength=2.0, content_strength=0.25)
    assert pipe.sampler.steps == after


def test_each_reference_is_encoded_once_a_call(pipe, monkeypatch):
    counts = {"features": 0, "latents": 0}
    for name in counts:
        original = getattr(pipe.sampler, name)

        def counted(image, original=original, name=name):
            counts[name] += 1
            return original(image)

        monkeypatch.setattr(pipe.sampler, name, counted)
    pipe(["a fox", "a cat", "a dog"], contents=[TALL], styles=[INK, FELT], num_steps=4)
    assert counts == {"features": 2, "latents": 1}
    # A step cannot encode anything: it receives no parameters of an encoder.
    assert {path.split("/")[0] for path in pipe.sampler._parts["transformer"]} == {"transformer"}


# ---------------------------------------------------------------------------------------------------- strengths


@pytest.mark.parametrize("kind", ("style", "content"))
def test_strengths(pipe, kind):
    draw = lambda **more: pixels(pipe(**(dict(prompt="a fox", contents=[TALL], styles=[INK], seed=3) | more)))[0]
    one, absent = draw(), draw(**{"styles" if kind == "style" else "contents": []})
    name = f"{kind}_strength"
    assert difference(draw(**{name: 1.0}), one) == 0
    assert difference(draw(**{name: 1.0001}), one) <= 1
    assert difference(draw(**{name: 0.0}), absent) <= 1
    assert difference(draw(**{name: 1e-6}), absent) <= 1
    assert difference(draw(**{name: 3.0}), one) > 2


@pytest.mark.parametrize("kernel", (attention, interpreted_splash), ids=("xla", "splash"))
def test_a_bias_multiplies_weights_in_every_kernel(kernel):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((2, length, 1, 128)), jnp.float32) for length in (9, 140, 140))
    valid = jnp.asarray(rng.random((2, 140)) < 0.7)
    factors = jnp.asarray(rng.uniform(0.1, 5, (2, 140)), jnp.float32)
    weights = jnp.exp(jnp.einsum("blnk,bsnk->bnls", q, k) / 128**0.5) * (factors * valid)[:, None, None]
    want = jnp.einsum("bnls,bsnk->blnk", weights / weights.sum(axis=-1, keepdims=True), v)
    np.testing.assert_allclose(kernel(q, k, v, valid, jnp.log(factors)), want, atol=1e-5, rtol=0)


def test_one_strength_a_style(pipe):
    both = dict(prompt="a fox", styles=[INK, FELT], seed=3)
    got = pixels(pipe(**both, style_strength=[1.0, 0.0]))
    assert difference(got, pixels(pipe("a fox", styles=[INK], seed=3))) <= 1
    # Twice the same style weighs as much as once at twice the strength.
    twice = pixels(pipe("a fox", styles=[INK, INK], seed=3))
    assert difference(twice, pixels(pipe("a fox", styles=[INK], style_strength=2.0, seed=3))) <= 1
    with pytest.raises(InputError, match="3 numbers for 2 styles"):
        pipe(**both, style_strength=[1.0, 2.0, 3.0])


# ---------------------------------------------------------------------------------------------------- weights


def test_a_record_is_json_and_says_all(pipe):
    record = json.loads(json.dumps(pipe("a fox", content=TALL, width=39, seed=3).records[0]))
    assert record["request"]["width"] == 32 and record["request"]["shift"] == "upstream"
    assert record["notes"] == ["width 39 is not a multiple of 8: 32 is used"]
    assert record["content_sizes"] == [[16, 32]]
    assert set(record["weights"]["components"]) == {
        "transformer", "lora", "projector", "autoencoder", "siglip", "t5", "clip",
    }  # fmt: skip
    assert len(record["request"]["contents"][0]["sha256"]) == 64


def test_a_record_tells_other_numbers(directory, pipe, tmp_path):
    """The fingerprint samples the beginning, middle and end of every parameter."""
    shutil.copytree(directory, tmp_path / "copy")
    same = lambda: Pretrained.open(tmp_path / "copy").fingerprints
    assert same() == pipe.pretrained.fingerprints
    for component, parameter in (("transformer", "img_in/bias"), ("t5", "shared/embedding")):
        folder = tmp_path / "copy" / component
        extent = read_extents(folder, weights.manifest(tmp_path / "copy", component)["tensors"])[parameter]
        file, middle = extent.file, extent.start + extent.size // 2
        numbers = bytearray(file.read_bytes())
        numbers[middle] ^= 1
        file.write_bytes(numbers)
        differ = {name for name, value in same().items() if value != pipe.pretrained.fingerprints[name]}
        assert differ == {component}
        numbers[middle] ^= 1
        file.write_bytes(numbers)


def test_weights_without_references(directory, tmp_path):
    for name in ("transformer", "autoencoder", "t5", "clip", "tokenizer_t5", "tokenizer_clip", "pipeline.json"):
        (tmp_path / name).symlink_to(directory / name)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    plain = USOPipeline.from_weights(tmp_path, mesh=mesh, compilation_cache=False)
    assert plain("a fox").images[0].size == (32, 32)
    with pytest.raises(InputError, match="has no projector"):
        plain("a fox", styles=[INK])


def test_styles_need_one_network_only(directory, pipe):
    tower = oracle.open_pipeline(directory, only=["siglip"])
    assert {name for name, part in tower.sampler._parts.items() if part} == {"siglip"}
    np.testing.assert_array_equal(tower.encode_style([INK]).features, pipe.encode_style([INK]).features)
    with pytest.raises(InputError, match="the text was not loaded"):
        tower("a fox")


def test_keep_size(pipe):
    image = pipe("in felt style", content=TALL, keep_size=True).images[0]
    assert image.size == (16, 32)


def test_a_long_prompt_is_cut_and_said(pipe):
    fits, longer = "a fox in the snow", "a fox in the snow runs"
    assert pipe(fits).records[0]["notes"] == []
    assert pipe(longer).records[0]["notes"] == ["the prompt is longer than 6 tokens and was truncated"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(prompt=" "), "nothing to generate"),
        (dict(prompt="a", num_steps=0), "num_steps must be a whole number from 1"),
        (dict(prompt="a", seed=-1), "seed must be a whole number from 0"),
        (dict(prompt="a", width=3), "width must be a whole number from 8"),
        (dict(prompt="a", guidance=float("nan")), "guidance must be a number"),
        (dict(prompt="a", style_strength=-1.0, styles=[INK]), "style_strength must be a number"),
        (dict(prompt="a", pe="x"), "pe must be one of d, h, w, o, not 'x'"),
        (dict(prompt="a", styles=["no_such_style"]), "style 'no_such_style' is unknown"),
        (dict(prompt="a", content="absent.png"), "image 'absent.png' does not exist"),
        (dict(prompt="a", keep_size=True), "needs a content image"),
        (dict(prompt="a", content=INK, contents=[INK]), "not both"),
        (dict(prompt="a", content=oracle.photo(0, 400, 2)), "too narrow for a content image"),
    ],
)
def test_mistakes(pipe, arguments, message):
    with pytest.raises(InputError, match=message):
        pipe(**arguments)


def test_an_unknown_argument_is_refused(pipe):
    with pytest.raises(TypeError, match="unexpected keyword argument 'strengths'"):
        pipe("a", strengths=2)
