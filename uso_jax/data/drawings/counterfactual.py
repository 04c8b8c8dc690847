# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Counterfactual drawings: the same drawing with another subject or style, and other drawings in the same style.

Shapes: m subjects, k styles, n drawings, h w pixels.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import UInt8

from uso_jax.data.drawings.canvas import Pose
from uso_jax.data.drawings.look import PLAIN, STYLE_NAMES, DrawingStyle
from uso_jax.data.drawings.styles import render
from uso_jax.data.drawings.subjects import Subject

NUM_STYLES = 24  # including the true one


def other_subjects(
    subject: Subject, others: Iterable[Subject], meta: dict, size: int
) -> UInt8[np.ndarray, "m {size} {size} 3"]:
    """Draw the subject and then each other subject in the pose and style of `meta`."""
    drawn = [subject, *(other for other in others if other.name != subject.name)]
    return np.stack([render(one, meta["pose"], meta["style"], size) for one in drawn])


def other_styles(subject: Subject, meta: dict, key: str, size: int) -> UInt8[np.ndarray, "k {size} {size} 3"]:
    """Draw the subject in its style and then in `alternatives` to it, in the pose of `meta`."""
    return np.stack([render(subject, meta["pose"], style, size) for style in alternatives(meta["style"], key)])


def alternatives(true: DrawingStyle, key: str) -> list[DrawingStyle]:
    """Return the style and NUM_STYLES - 1 others: equal shares of another name, other colours, and both.

    `key` seeds the choice.
    """
    rng = np.random.default_rng(list(key.encode()))
    names = [name for name in STYLE_NAMES if name != true.name]
    styles = [true]
    while len(styles) < NUM_STYLES:
        name = names[rng.integers(len(names))]
        kind = len(styles) % 3
        if kind == 0:
            styles.append(dataclasses.replace(true, name=name))
            continue
        own = kind == 1 and true.name != PLAIN
        other = DrawingStyle.draw(rng, (true.name if own else name,), heldout=bool(rng.integers(2)))
        if (other.fill_name, other.ground_name) != (true.fill_name, true.ground_name):
            styles.append(other)
    return styles


def drawings(
    styles: Sequence[tuple[DrawingStyle, Sequence[Subject]]], count: int, size: int, rng: np.random.Generator
) -> list[UInt8[np.ndarray, "n {size} {size} 3"]]:
    """Draw `count` random subjects in random poses for each (style, subjects) pair."""
    draw = lambda style, one: render(one, Pose.draw(rng), style, size)
    return [
        np.stack([draw(style, subjects[i]) for i in rng.choice(len(subjects), count)]) for style, subjects in styles
    ]
