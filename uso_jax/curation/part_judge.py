# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Step "judge": score the subject part by part with a vision-language model, as UNO's filter does.

Source: arXiv 2504.02160, appendix, which USO follows. The model names the parts of the subject, compares them and
scores each from 0 to 4; the candidate's score is their mean. The prompt is worded by this project, since USO's is not
published, and allows the style to differ, which it does not in UNO's pairs. Only candidates that pass the network
scores are judged. An answer that cannot be parsed is a failure, never a score.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import TypedDict

from uso_jax.common import untrusted
from uso_jax.common.errors import BadExample, InputError
from uso_jax.curation import selection
from uso_jax.curation.config import CurationConfig
from uso_jax.curation.store import Folder, Made, Row
from uso_jax.vlm.client import Vlm, VlmError

MOST = 4.0
QUESTION = """\
The first image shows a subject, the second one is meant to show the same subject drawn in another style.
Work in three steps.
1. Describe the main subject of the first image and split it into its visible parts (two to six of them).
2. Compare each part with the same part in the second image: shape, proportions, markings, number.
3. Score each part with a whole number: 4 the same, 3 a small difference, 2 clearly different but alike, 1 hardly alike,
0 missing or something else.
Do not count differences of drawing style, medium, colour palette, background, pose, viewpoint, size or position, and no
things that were added beside the subject.
Answer with JSON alone: {"parts": {"name of the part": score, ...}}"""


class _Answer(TypedDict):
    parts: dict[str, float]


def read_parts(answer: str) -> dict[str, float]:
    """Parse the scores by part from an answer, which may contain text around the JSON.

    Raises:
      ValueError: there is no object with "parts", or a score is not a number from 0 to 4.
    """
    start, end = answer.find("{"), answer.rfind("}")
    if start < 0 or end < start:
        raise ValueError("no JSON")
    scores = untrusted.json(answer[start : end + 1], _Answer, "the answer", remedy="no scores by part")["parts"]
    if not scores:
        raise ValueError("no part is scored")
    for name, value in scores.items():
        if not 0 <= value <= MOST:
            raise ValueError(f"{name} is scored {value!r}, not 0 to 4")
    return scores


class PartsJudge:
    """The worker of the step "judge"."""

    def __init__(self, config: CurationConfig, vlm: Vlm):
        self.keep, self.vlm = config.keep, vlm
        self.threads, self.max_failures = config.vlm.threads, config.vlm.max_failures
        self.settings = {"model": config.vlm.model, "question": QUESTION}
        self._failures = 0  # consecutive

    def is_wanted(self, scores: Row) -> bool:
        """Return whether a candidate passes the current thresholds of the network scores."""
        return "failed" not in scores and selection.fails(scores, self.keep, selection.NETWORKS) is None

    def again(self, folder: Folder, retry: bool):
        """Return a predicate of rows to judge again: those that pass by now and, if `retry`, those that failed."""

        def again(row: Row) -> bool:
            if "waiting" in row:
                scores = folder.rows("score", folder.shard_of(row["number"]))[row["number"]]
                return self.is_wanted(scores)
            return retry and "failed" in row

        return again

    def make_shard(self, folder: Folder, shard: int) -> Made:
        """Judge one shard. Returns one row per candidate, and no images. Earlier answers come from the cache.

        Raises:
          InputError: the model did not answer too many questions in a row.
        """
        captions, scores = folder.rows("captions", shard), folder.rows("score", shard)

        def judge(number: int) -> Row:
            if not self.is_wanted(scores[number]):
                return {"number": number, "waiting": selection.fails(scores[number], self.keep, selection.NETWORKS)}
            try:
                images = [folder.place("destylize", number).decode(), folder.target(captions[number]).decode()]
                parts = self.vlm.ask([QUESTION, *images], read_parts)
            except VlmError as error:
                self._count(error)
                return {"number": number, "failed": f"{error.kind}: {error}"}
            except BadExample as error:
                return {"number": number, "failed": f"unreadable: {error}"}
            self._failures = 0
            return {"number": number, "judge": round(sum(parts.values()) / len(parts), 5), "parts": parts}

        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(judge, scores)), {}

    def _count(self, error: VlmError) -> None:
        """Count consecutive failures to reach the model, and raise after too many of them."""
        if error.kind in ("timeout", "busy", "unreachable"):
            self._failures += 1
            if self._failures >= self.max_failures:
                raise InputError(
                    f"the model did not answer {self._failures} questions in a row; last error: {error}. Answers so far"
                    " are kept: run the same command again when it is available."
                )
