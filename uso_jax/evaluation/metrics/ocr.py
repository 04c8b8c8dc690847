# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Text rendering: whether OCR reads the requested lines.

OCR results come from a file that any reader can fill: {"<sha256 of the image file>": ["a line", ...], ...}. Sentence
accuracy is the fraction of requested lines that were read exactly. NED is 1 minus the edit distance relative to the
longer line. Requested and read lines are matched by the best assignment; white space and case are ignored.
Source: PosterMaker (arXiv 2504.06632) for both figures.
"""

import hashlib
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein
from scipy.optimize import linear_sum_assignment

from uso_jax.common import untrusted
from uso_jax.evaluation.gallery import Sample
from uso_jax.evaluation.metrics.base import Metric, Tools
from uso_jax.evaluation.score_log import Failed, Result


class Reader:
    """Lines read by OCR, by the SHA-256 of the image file."""

    def __init__(self, found: Mapping[str, Sequence[str]], identity: str):
        self.found, self.identity = found, identity

    @classmethod
    def read(cls, path: str | pathlib.Path) -> "Reader":
        """Load a JSON file of OCR results.

        Raises:
          InputError: the file is not readable or has another form.
        """
        gone = f"--texts {path} is not readable JSON: it does not exist"
        data = untrusted.text(pathlib.Path(path), f"--texts {path}", missing=gone)
        found = untrusted.json(data, dict[str, list[str]], f"--texts {path}", remedy="see docs/evaluate.md")
        return cls(found, hashlib.sha256(data.encode()).hexdigest()[:16])


def compare(wanted: Sequence[str], seen: Sequence[str]) -> dict[str, float]:
    """Return sentence accuracy ("sen_acc") and NED ("ned") of the lines that were read."""
    plain = lambda line: re.sub(r"\s+", "", line).casefold()
    wanted, seen = [plain(line) for line in wanted], [plain(line) for line in seen]
    near = np.array([[Levenshtein.normalized_similarity(a, b) for b in seen] for a in wanted]).reshape(len(wanted), -1)
    best = np.zeros(len(wanted))
    for row, column in zip(*linear_sum_assignment(-near), strict=True):
        best[row] = near[row, column]
    return {"sen_acc": float(np.mean(best == 1)), "ned": float(np.mean(best))}


class Reading:
    """Sentence accuracy and NED of an item's `text_lines`."""

    def __init__(self, metric: Metric, tools: Tools):
        self.reader = tools.need("reader", metric)
        self.identity = {"texts": self.reader.identity}

    def __call__(self, samples: Sequence[Sample]) -> list[Result]:
        return [self._one(sample) for sample in samples]

    def _one(self, sample: Sample) -> Result:
        if sample.sha256 not in self.reader.found:
            return Failed(f"texts: no entry for {sample.path}")
        return compare(sample.item.meta["text_lines"], self.reader.found[sample.sha256])
