# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Subjects from rasters: distances of masks, font symbols, and artwork in styles and in its plain look."""

import dataclasses

import numpy as np
import pytest

from uso_jax.common.errors import InputError
from uso_jax.data.drawings import glyphs
from uso_jax.data.drawings.artwork import subject_from_artwork
from uso_jax.data.drawings.canvas import Canvas, Pose
from uso_jax.data.drawings.look import PLAIN, STYLE_NAMES, DrawingStyle
from uso_jax.data.drawings.shapes import circle, distance_field, mask_shape
from uso_jax.data.drawings.styles import STYLES, render
from uso_jax.data.drawings.subjects import FIELD_REACH, FIELD_SIZE, SUBJECTS

FLAT = DrawingStyle("flat", (1.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0), "red", "black")


def disc(size=96, radius=30, x=40, y=50):
    rows, columns = np.mgrid[:size, :size]
    return np.hypot(columns - x, rows - y) <= radius


def artwork():
    """A yellow disc with a dark square a little above its middle, off the middle of the image."""
    image = np.zeros((96, 96, 4), np.uint8)
    image[disc()] = (250, 220, 60, 255)
    image[30:46, 32:48, :3] = (40, 20, 10)
    return image


@pytest.fixture(scope="module")
def subject():
    return subject_from_artwork(artwork(), "eye")


def test_distance_of_a_mask_is_that_of_the_shape():
    axis = np.linspace(-1.2, 1.2, 50)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    made = mask_shape(disc(400, 150, 200, 200), 200, 200, 150).distance(x, y)
    assert np.abs(made - circle(0, 0, 1).distance(x, y)).max() < 0.02


def test_distance_of_an_empty_and_a_full_mask():
    assert (distance_field(np.zeros((4, 6), bool)) > 4).all()
    field = distance_field(np.pad(np.ones((4, 4), bool), 1))
    assert (field[1:-1, 1:-1] < 0).all() and (field[0] > 0).all() and field.dtype == np.float32


def test_up_is_up():
    """A mask's first row is its top."""
    mask = np.zeros((40, 40), bool)
    mask[:10] = True
    distance = mask_shape(mask, 20, 20, 20).distance(np.array([0.0, 0.0]), np.array([0.8, -0.8]))
    assert distance[0] < 0 < distance[1]


def test_symbols_of_the_font():
    field = SUBJECTS["chess rook"].field
    assert field.shape == (FIELD_SIZE**2, 2) and field.dtype == np.float32 and np.isfinite(field).all()
    x, y = np.zeros(1), np.zeros(1)
    peace = (glyphs.glyph("☮"), glyphs.outline("☮"), glyphs.holes("☮"))
    assert [float(shape.distance(x + 0.35, y + 0.4)[0]) < 0 for shape in peace] == [False, True, True]
    with pytest.raises(InputError, match="no visible glyph"):
        glyphs.glyph(" ").distance(x, y)


def test_artwork_gives_body_and_detail(subject):
    """The opaque part fills the unit circle; the dark square is the detail."""
    axis = np.linspace(-FIELD_REACH, FIELD_REACH, FIELD_SIZE)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    body = subject.field[:, 0].reshape(x.shape)
    assert np.abs(body - (np.hypot(x, y) - 1.0))[np.hypot(x, y) > 0.3].max() < 0.05
    # Rows 30 to 45 and columns 32 to 47, seen from row 50 and column 40, in a circle of radius 31.
    detail = subject.field[:, 1].reshape(x.shape) < 0
    wanted = (x > -8.5 / 31) & (x < 7.5 / 31) & (y > 4.5 / 31) & (y < 20.5 / 31)
    assert (detail != wanted).mean() < 0.002
    assert (subject.fill, subject.ink, subject.phrase) == ("yellow", "black", "an eye")


def test_own_look_has_the_artwork_s_colours(subject):
    style = DrawingStyle.plain(np.random.default_rng(0), subject)
    image = render(subject, Pose(0.8), style, 64).astype(int)
    assert np.abs(image[40, 32] - (250, 220, 60)).max() < 6  # below the middle: the disc
    assert np.abs(image[21, 32] - (40, 20, 10)).max() < 6  # above: the square
    ground = (image[2, 2] / 255.0).tolist()
    assert np.abs(np.array(ground) - style.ground).max() < 0.3


@pytest.mark.parametrize("size", [16, 32, 64, 200])
def test_own_look_lies_where_the_distances_say(subject, size):
    """Alpha of the posed colours and coverage of the body agree, at sizes below and above that of the artwork."""
    canvas = Canvas(subject, Pose(0.7, 0.9, 0.1, -0.15), size)
    assert np.abs(canvas.artwork[:, 3] - canvas.cover(canvas.distances[0])).mean() < 0.015
    dark = canvas.artwork[:, 3] - canvas.artwork[:, 0]
    assert np.corrcoef(dark, canvas.cover(canvas.distances[1]))[0, 1] > 0.9


def test_artwork_in_every_style(subject):
    rng = np.random.default_rng(0)
    plain = DrawingStyle.plain(rng, subject)
    images = [render(subject, Pose(), dataclasses.replace(plain, name=name), 32) for name in STYLES]
    for name, image in zip(STYLE_NAMES, images, strict=False):
        assert np.abs(image.astype(int) - images[list(STYLES).index(PLAIN)]).mean() > 2.0, name
    assert not np.array_equal(render(subject, Pose(angle=0.5), FLAT, 32), render(subject, Pose(), FLAT, 32))


def test_artwork_without_details():
    image = np.zeros((40, 40, 4), np.uint8)
    image[disc(40, 15, 20, 20)] = (200, 30, 30, 255)
    plain = subject_from_artwork(image, "dot", phrase="the dot")
    assert (plain.fill, plain.ink, plain.phrase) == ("red", "red", "the dot")
    drawn = render(plain, Pose(), FLAT, 32)
    assert drawn[..., 0].max() == 255 and drawn[..., 1].max() == 0


def test_artwork_with_nothing_in_it():
    with pytest.raises(InputError, match=r"artwork 'air': only 0 of its 1600 pixels are opaque"):
        subject_from_artwork(np.zeros((40, 40, 4), np.uint8), "air")
