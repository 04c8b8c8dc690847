# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The examples of the page, with references that the program draws, and what the built-in weights can do."""

import pathlib

from PIL import Image

from uso_jax.data.drawings.canvas import Pose
from uso_jax.data.drawings.look import DrawingStyle
from uso_jax.data.drawings.styles import render
from uso_jax.data.drawings.subjects import SUBJECTS

COLUMNS = ("prompt", "content", "style", "extra", "seed")  # after the task; names of the form's controls


# The built-in weights draw what a content image shows; from text or a style alone they draw its colours.
_ABOUT = """
**mini is a small model for trying the program out.** It was trained on drawings only: 96 simple subjects, such as
fish, mushrooms and hearts, in 28 drawing styles, at 64 x 64 pixels. It redraws the subject of a **content
image**, also in the style of a style image. It cannot draw photos, people, writing or scenes, and from text alone it
draws colours but no recognisable subject. For such images load USO's own weights with `--weights DIR`.
"""


def about(weights: str) -> str:
    """Return what built-in weights can do, as Markdown; "" for other weights."""
    return _ABOUT if weights == "mini" else ""


def write_examples(folder: pathlib.Path, weights: str) -> list[list]:
    """Draw the references into a folder.

    Args:
      folder: created if it does not exist.
      weights: name of the weights; those that are built in get examples of what they can do.

    Returns:
      rows of the task and the values of `COLUMNS`.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def file(subject: str, style: DrawingStyle) -> str:
        path = folder / f"{subject}_{style.name}.png"
        Image.fromarray(render(SUBJECTS[subject], Pose(0.75), style, 256)).save(path)
        return str(path)

    blue, red, cream, black = (0.16, 0.36, 0.8), (0.85, 0.2, 0.2), (0.98, 0.94, 0.84), (0.1, 0.1, 0.12)
    look = lambda name, fill, ground, *names: DrawingStyle(name, fill, ground, black, *names)
    fish = file("fish", look("plain", blue, cream, "blue", "cream"))
    mushroom = file("mushroom", look("plain", red, cream, "red", "cream"))
    if weights == "mini":  # styles that it knows
        sticker = file("heart", look("sticker", (0.95, 0.5, 0.1), (0.98, 0.9, 0.2), "orange", "yellow"))
        relief = file("star", look("emboss", (0.2, 0.6, 0.3), cream, "green", "cream"))
        glow = file("leaf", look("glow", black, (0.3, 0.15, 0.1), "black", "brown"))
        return [
            ["subject", "a fish", fish, None, None, 1],
            ["subject", "a mushroom", mushroom, None, None, 2],
            ["subject, other colours", "", mushroom, None, None, 1],
            ["style + subject, layout kept", "", fish, sticker, None, 1],
            ["style + subject, layout kept", "", mushroom, relief, None, 5],
            ["several styles", "", mushroom, relief, glow, 7],
        ]
    dots = file("heart", look("halftone", red, cream, "red", "cream"))
    lines = file("star", look("engraving", black, cream, "black", "cream"))
    glass = file("leaf", look("stained glass", (0.2, 0.6, 0.3), cream, "green", "cream"))
    return [
        ["text", "a picture of a fish", None, None, None, 1],
        ["subject", "a mushroom in another place", mushroom, None, None, 2],
        ["style", "a picture of a cat", None, dots, None, 3],
        ["style", "a drawing of a house", None, glass, None, 4],
        ["style + subject, layout kept", "", fish, lines, None, 5],
        ["style + subject, new layout", "a fish in another place", fish, dots, None, 6],
        ["several styles", "a picture of a tree", None, lines, glass, 7],
    ]
