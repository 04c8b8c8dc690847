# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Image preprocessing against transformers' PIL processors, and its differentiable version against that."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from uso_jax.images import preprocess
from uso_jax.images.preprocess import Preprocess
from uso_jax.models.uso import to_float

# DINO's code resizes as DINOv2's published processor does; transformers' file for DINO squashes instead.
IMAGENET = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
PROCESSORS = {
    "SIGLIP": lambda: SiglipImageProcessorPil(size={"height": 384, "width": 384}),
    "CLIP": CLIPImageProcessorPil,
    "DINOV2": lambda: BitImageProcessorPil(size={"shortest_edge": 256}, **IMAGENET),
}
SIZES = [(224, 224), (301, 457), (701, 333), (97, 64), (256, 1023)]  # (height, width)


def pixels(height: int, width: int) -> np.ndarray:
    """Paint soft colours with hard white and black edges: clouds, a disc and a bar."""
    rng = np.random.default_rng(height * width)
    clouds = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(clouds).resize((width, height), Image.Resampling.BICUBIC))
    y, x = np.mgrid[:height, :width]
    image[np.hypot(y - 0.4 * height, x - 0.5 * width) < 0.2 * min(height, width)] = 255
    image[int(0.7 * height) : int(0.75 * height)] = 0
    return image


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PROCESSORS)
def test_host(name, size):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for image in (pixels(*size), noise):
        want = PROCESSORS[name]()(image, return_tensors="np", input_data_format="channels_last").pixel_values[0]
        got = getattr(preprocess, name).host(image)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, want.transpose(1, 2, 0))


TORCHVISION = {"DINO": (256, "DINOV2"), "CSD": (224, "CLIP"), "IMAGE_REWARD": (224, "CLIP")}


@pytest.mark.parametrize("size", [*SIZES, (640, 427), (427, 640), (225, 227)])
@pytest.mark.parametrize("name", TORCHVISION)
def test_crops_of_torchvision(name, size):
    """Compare with torchvision's Resize and CenterCrop, which rounds half a margin to a whole, ties to even."""
    short, alike = TORCHVISION[name]
    image, chosen = pixels(*size), getattr(preprocess, name)
    height, width = (short if side == min(size) else int(short * side / min(size)) for side in size)
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    top, left = (round((side - 224) / 2.0) for side in (height, width))
    cut = resized[top : top + 224, left : left + 224].astype(np.float64) * (1 / 255)
    want = (cut.astype(np.float32) - np.asarray(chosen.mean, np.float32)) / np.asarray(chosen.std, np.float32)
    np.testing.assert_array_equal(chosen.host(image), want)
    # One pixel beside transformers' where a margin leaves 3 when divided by 4, and the same elsewhere.
    moved = any((side - 224) % 4 == 3 for side in (height, width))
    assert moved != np.array_equal(chosen.host(image), getattr(preprocess, alike).host(image))


@pytest.mark.parametrize("size", SIZES[1:4])
@pytest.mark.parametrize("name", PROCESSORS)
def test_device(name, size):
    chosen, image = getattr(preprocess, name), pixels(*size)
    want = chosen.host(image) * np.asarray(chosen.std)
    got = np.asarray(jax.jit(chosen.device)(to_float(jnp.asarray(image)))) * np.asarray(chosen.std)
    difference = np.abs(got - want)
    # PIL rounds to a byte after either pass, and the second one mixes the errors of the first.
    assert difference.mean() < 0.5 / 255
    # Pillow 13 takes the vertical pass of tall images first, and so clips other overshoots of a few hard edges.
    assert difference.max() < (1.5 if size[0] < 2 * size[1] else 16) / 255


def test_device_keeps_leading_axes():
    small = dataclasses.replace(preprocess.CLIP, size=8, short_side=12)
    images = jax.random.uniform(jax.random.key(0), (2, 3, 24, 31, 3), minval=-1)
    got = jax.jit(small.device)(images)
    assert got.shape == (2, 3, 8, 8, 3)
    np.testing.assert_allclose(got[1, 2], jax.jit(small.device)(images[1, 2]), atol=1e-6)


def test_device_clips_what_no_image_holds():
    small = dataclasses.replace(preprocess.SIGLIP, size=8)
    images = 2 * jax.random.normal(jax.random.key(0), (16, 16, 3))
    device = jax.jit(small.device)
    np.testing.assert_array_equal(device(images), device(jnp.clip(images, -1, 1)))
    assert jnp.abs(device(images)).max() <= 1


def test_gradients_reach_every_kept_pixel():
    small = dataclasses.replace(preprocess.CLIP, size=8, short_side=8)
    images = jax.random.uniform(jax.random.key(0), (16, 48, 3), minval=-0.5, maxval=0.5)
    weights = jax.random.normal(jax.random.key(1), (8, 8, 3))
    loss = jax.jit(lambda x: (small.device(x) * weights).sum())
    grad = np.asarray(jax.jit(jax.grad(loss))(images))
    assert np.isfinite(grad).all()
    assert (grad[:, 16:32] != 0).all() and (grad[:, :12] == 0).all() and (grad[:, 36:] == 0).all()
    direction = 1e-2 * np.random.default_rng(2).normal(size=images.shape).astype(np.float32)
    np.testing.assert_allclose(
        loss(images + direction) - loss(images - direction), 2 * (grad * direction).sum(), rtol=1e-3
    )


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="short_side 200 is smaller than the crop of 224"):
        Preprocess(224, 200, *(preprocess.CLIP.mean, preprocess.CLIP.std))
