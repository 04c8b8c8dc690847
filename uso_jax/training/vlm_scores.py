# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Scores by a vision-language model, which is asked whether subject or style of an image are the references'.

    vlm_subject   0 to 1: the subject of the content image
    vlm_style     0 to 1: the style of the first style image
    vlm_prompt    0 to 1: what the prompt asks for

An answer that cannot be had or read is no score: its image leaves the group. Answers are cached, so a run that is
killed asks no question twice.
"""

import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypedDict

import jax
import numpy as np
from jaxtyping import UInt8

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.data.triplet import Triplet
from uso_jax.training.questions import HIGHEST, QUESTIONS
from uso_jax.training.stage import StageConfig
from uso_jax.vlm.client import Vlm, VlmError
from uso_jax.vlm.config import VlmConfig


class _Answer(TypedDict):
    score: float


def read_score(answer: str) -> float:
    """Parse a score, from 0 to 1, from an answer that may contain text around the JSON.

    Raises:
      ValueError: there is no object with a "score" from 0 to 10.
    """
    start, end = answer.find("{"), answer.rfind("}")
    if start < 0 or end < start:
        raise ValueError("no JSON")
    score = untrusted.json(answer[start : end + 1], _Answer, "the answer", remedy="no score")["score"]
    if not 0 <= score <= HIGHEST:
        raise ValueError(f"the score is {score!r}, not 0 to 10")
    return score / HIGHEST


class VlmScores:
    """Asks a model about generated images."""

    def __init__(self, config: VlmConfig, vlm: Vlm):
        self.config, self.vlm = config, vlm
        self._failures = 0  # consecutive

    @classmethod
    def opened(cls, stage: StageConfig, folder: pathlib.Path) -> "VlmScores":
        """Return what asks the model of a stage's policy; answers are kept in `folder`."""
        config, where = stage.policy.vlm, f"--config.stages.{stage.name}.policy.vlm"
        return cls(config, Vlm.configured(config, folder, jax.process_index(), where))

    def score(self, name: str, images: UInt8[np.ndarray, "n h w 3"], triplets: Sequence[Triplet]) -> list[float]:
        """Return the answers about images, each with what it was generated for; NaN where there is none.

        Raises:
          InputError: the model did not answer too many questions in a row, or refuses the key.
        """
        questions = [_question(name, image, triplet) for image, triplet in zip(images, triplets, strict=True)]
        with ThreadPoolExecutor(self.config.threads) as pool:
            return list(pool.map(self._ask, questions))

    def _ask(self, question: list[Any] | None) -> float:
        if question is None:
            return np.nan
        try:
            found = self.vlm.ask(question, read_score)
        except VlmError as error:
            if error.kind in ("timeout", "busy", "unreachable"):
                self._failures += 1
                if self._failures >= self.config.max_failures:
                    raise InputError(
                        f"the model did not answer {self._failures} questions in a row; last error: {error}. Answers so"
                        " far are kept: run the same command again when it is available"
                    ) from error
            return np.nan
        self._failures = 0
        return found


def _question(name: str, image: np.ndarray, triplet: Triplet) -> list[Any] | None:
    """Return the parts of a question, or None if the image has nothing to be compared with."""
    if name == "vlm_prompt":
        return [QUESTIONS[name].replace("{prompt}", triplet.prompt), image] if triplet.prompt else None
    reference = triplet.content if name == "vlm_subject" else next(iter(triplet.styles), None)
    return None if reference is None else [QUESTIONS[name], reference, image]
