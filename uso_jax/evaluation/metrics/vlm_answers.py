# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Readers of a judge's replies. Each returns a figure's value, or None if the reply cannot be read.

A reader has two rules: the strict one accepts what the text asked for, such as numbers in their range; the official one
accepts what the benchmark's own code does.
"""

import math
import re
from typing import Any

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.evaluation.protocol import Reader

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"


def read_score(reply: str, most: float | int = 10) -> float | None:
    """Return the score from 0 to `most` of JSON with "score", of damaged JSON or of a bare number; halves count."""
    value = _score(reply)
    return value if value is not None and 0 <= value <= most else None


def read_any_score(reply: str, most: int = 10) -> float | None:
    """Return a score as the code of OmniContext and SconeEval does: the range holds for bare whole numbers only."""
    value = _score(reply)
    if "{" not in reply:
        return value if value is not None and value == int(value) and 0 <= value <= most else None
    return value if value is not None and value >= 0 else None  # a root of it is taken


def _score(reply: str) -> float | None:
    text = reply.replace("\n", " ")
    start, end = text.find("{"), text.rfind("}")
    value: Any = None
    if 0 <= start < end:
        try:
            value = untrusted.json(text[start : end + 1], dict).get("score")
        except InputError:
            found = re.search(rf"[\"']?score[\"']?\s*:\s*\[?\s*[\"']?({_NUMBER})", text)
            value = found[1] if found else None
    elif re.fullmatch(rf"\s*{_NUMBER}\s*", text):
        value = text
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def read_pair(reply: str, most: float | int = 10) -> float | None:
    """Return the geometric mean of the first list of two numbers in brackets."""
    found = re.search(r"\[\s*([\d.]+)\s*,\s*([\d.]+)\s*\]", reply)
    try:
        first, second = map(float, found.groups()) if found else (math.nan, math.nan)
    except ValueError:  # such as 8.5.1
        return None
    return math.sqrt(first * second) if max(first, second) <= most else None


def read_yes(reply: str) -> float | None:
    """Return 1 for yes and 0 for no; None if both or neither occur."""
    words = set(re.findall(r"\b(?:yes|no)\b", reply.lower()))
    return float(words == {"yes"}) if len(words) == 1 else None


def read_any_yes(reply: str) -> float | None:
    """Return 1 for yes and 0 for no as MICo-Bench's code does: parts of words count if there is no such word."""
    if (found := read_yes(reply)) is not None:
        return found
    yes, no = ("yes" in reply.lower()), ("no" in reply.lower())
    return float(yes) if yes != no else None


def read_digit(reply: str) -> float | None:
    """Return 1 or 0; None if both or neither occur."""
    found = set(re.findall(r"\b[01]\b", reply))
    return float(found.pop()) if len(found) == 1 else None


def read_first_digit(reply: str) -> float | None:
    """Return the first 1 or 0 that stands alone, as SconeEval's code does."""
    found = re.search(r"\b[01]\b", reply)
    return float(found[0]) if found else None


def read_named_score(reply: str, most: float | int = 4) -> float | None:
    """Return the only number after "Score:", from 0 to `most`."""
    found = re.findall(rf"[sS]core:\s*[a-zA-Z]*\s*({_NUMBER})", reply)
    return float(found[0]) if len(found) == 1 and 0 <= float(found[0]) <= most else None


def read_whole_named_score(reply: str) -> float | None:
    """Return the only number after "Score:" as DreamBench++'s code does: without decimals, of any size."""
    found = re.findall(r"[sS]core:\s*[a-zA-Z]*\s*(\d+)", reply)
    return float(found[0]) if len(found) == 1 else None


def _quarter(value: float | None) -> float | None:
    return None if value is None else value / 4


SCORE = Reader("score of 10 in JSON", read_score, read_any_score)
PAIR = Reader("root of two of 10", read_pair, lambda reply: read_pair(reply, math.inf))
YES = Reader("yes or no", read_yes, read_any_yes)
DIGIT = Reader("1 or 0", read_digit, read_first_digit)
FOUR = Reader(
    "score of 4 in JSON", lambda reply: _quarter(read_score(reply, 4)), lambda r: _quarter(read_any_score(r, 4))
)
NAMED_FOUR = Reader(
    "Score: of 4", lambda reply: _quarter(read_named_score(reply)), lambda r: _quarter(read_whole_named_score(r))
)
