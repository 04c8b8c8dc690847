# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Scores that are no differentiable networks: functions, programs, questions to a model, exact measures of drawings.

A black box returns one number for each image, NaN for an image that it cannot score. A new one is a few lines:

    def sharpness(images, wanted):
        return [np.std(image) for image in images]

    black_boxes.add("sharpness", sharpness)

A name "command:PROGRAM ARGUMENTS" runs a program: a JSON line for each image, {"image": FILE, "prompt": TEXT,
"content": FILE or null, "styles": [FILE, ...]}, on its standard input, and one number a line on its standard output.
Files are PNG and deleted afterwards. Anything that is no number is NaN. vlm_subject, vlm_style and vlm_prompt are in
uso_jax.training.vlm_scores.

Shapes: n images, h w pixels.
"""

import json
import math
import pathlib
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from uso_jax.common.errors import InputError
from uso_jax.data.triplet import Triplet, TripletSource
from uso_jax.evaluation.metrics.counterfactual import TruthfulSource, errors, margin
from uso_jax.training.questions import QUESTIONS

Images = UInt8[np.ndarray, "n h w 3"]


@dataclass(frozen=True, eq=False)
class Wanted:
    """What an image was generated for, and where that comes from."""

    triplet: Triplet
    source: TripletSource


Ask = Callable[[str, Images, Sequence[Triplet]], Sequence[float]]
BlackBox = Callable[[Images, Sequence[Wanted]], Sequence[float]]
COMMAND = "command:"
_SECONDS = 600.0  # that a program may take for the images of a round

BLACK_BOXES: dict[str, BlackBox] = {}


def add(name: str, black_box: BlackBox) -> None:
    """Register a black box under a name, which configurations may then use."""
    BLACK_BOXES[name] = black_box


def is_known(name: str) -> bool:
    """Return whether a name is that of a black box, of a program or of a question to a model."""
    return name in BLACK_BOXES or name in QUESTIONS or name.startswith(COMMAND)


def score(name: str, images: Images, wanted: Sequence[Wanted], ask: Ask | None = None) -> Float[np.ndarray, " n"]:
    """Return a black box's scores of generated images, each with what it was generated for.

    `ask` answers questions to a model (`uso_jax.training.vlm_scores.VlmScores.score`).

    Raises:
      InputError: the program cannot be run, fails or takes too long, or the number of scores is not that of the images.
    """
    if name in QUESTIONS:
        found = ask(name, images, [one.triplet for one in wanted])
    else:
        found = BLACK_BOXES[name](images, wanted) if name in BLACK_BOXES else _run(name, images, wanted)
    found = np.asarray(list(found), np.float64)
    if found.shape != (len(images),):
        raise InputError(f"score {name!r} returned {len(found)} numbers for {len(images)} images")
    return np.where(np.isfinite(found), found, np.nan)


def _run(name: str, images: Images, wanted: Sequence[Wanted]) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        pairs = enumerate(zip(images, wanted, strict=True))
        lines = [_describe(pathlib.Path(folder), i, image, one.triplet) for i, (image, one) in pairs]
        try:
            command = shlex.split(name.removeprefix(COMMAND))
            text = "\n".join(lines) + "\n"
            done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=_SECONDS)
        except (OSError, ValueError) as error:
            raise InputError(f"score {name!r} cannot be run: {error}") from error
        except subprocess.TimeoutExpired as error:
            raise InputError(f"score {name!r} took longer than {_SECONDS:.0f} s for {len(images)} images") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise InputError(f"score {name!r} failed with exit code {done.returncode}: {last[:200]}")
    return [_number(line) for line in done.stdout.splitlines()]


def _describe(folder: pathlib.Path, number: int, image: np.ndarray, triplet: Triplet) -> str:
    """Write the images of one line and return the line."""

    def write(name: str, pixels: np.ndarray) -> str:
        file = folder / f"{number:05d}_{name}.png"
        Image.fromarray(pixels).save(file)
        return str(file)

    record = {"image": write("image", image), "prompt": triplet.prompt}
    record["content"] = None if triplet.content is None else write("content", triplet.content)
    record["styles"] = [write(f"style_{i}", style) for i, style in enumerate(triplet.styles)]
    return json.dumps(record)


def _number(line: str) -> float:
    try:
        return float(line)
    except ValueError:
        return math.nan


# ---------------------------------------------------------------------------------------------------- drawings


def _true_content(images: Images, wanted: Sequence[Wanted]) -> list[float]:
    return _margins(images, wanted, 0)


def _true_style(images: Images, wanted: Sequence[Wanted]) -> list[float]:
    return _margins(images, wanted, 1)


def _margins(images: Images, wanted: Sequence[Wanted], which: int) -> list[float]:
    drawn: dict[str, tuple[Images, Images]] = {}  # by triplet: the images of a group have the same candidates
    found = []
    for image, one in zip(images, wanted, strict=True):
        triplet = one.triplet
        if triplet.layout != "preserved" or not isinstance(one.source, TruthfulSource):
            raise InputError(f"{triplet.key}: exact scores need drawings with a preserved layout (preserved=1.0)")
        if triplet.key not in drawn:
            drawn[triplet.key] = one.source.counterfactuals(triplet)
        found.append(margin(errors(image, drawn[triplet.key][which])))
    return found


add("true_style", _true_style)  # nearest render among other styles: positive where the style is right
add("true_content", _true_content)  # the same among other subjects
