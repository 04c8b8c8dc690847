# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The examples of the page, one or more per task, with references that the program draws."""

import pathlib

from PIL import Image

from uso_jax.data.drawings.canvas import Pose
from uso_jax.data.drawings.look import DrawingStyle
from uso_jax.data.drawings.styles import render
from uso_jax.data.drawings.subjects import SUBJECTS

COLUMNS = ("prompt", "content", "style", "extra", "seed")  # after the task; names of the form's controls


def write_examples(folder: pathlib.Path) -> list[list]:
    """Draw the references into a folder. Return rows of the task and the values of `COLUMNS`."""

    def file(subject: str, style: DrawingStyle) -> str:
        path = folder / f"{subject}_{style.name}.png"
        Image.fromarray(render(SUBJECTS[subject], Pose(0.75), style, 256)).save(path)
        return str(path)

    blue, red, cream, black = (0.16, 0.36, 0.8), (0.85, 0.2, 0.2), (0.98, 0.94, 0.84), (0.1, 0.1, 0.12)
    look = lambda name, fill, ground, *names: DrawingStyle(name, fill, ground, black, *names)
    fish = file("fish", look("plain", blue, cream, "blue", "cream"))
    mushroom = file("mushroom", look("plain", red, cream, "red", "cream"))
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
