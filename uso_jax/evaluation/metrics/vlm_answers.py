# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Parsers of a judge's answers. All return None if the answer cannot be parsed."""

import re
from typing import Any

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError


def read_score(reply: str, most: int = 10) -> int | None:
    """Parse an integer score from 0 to `most` out of JSON with "score", damaged JSON or a bare number."""
    text = reply.replace("\n", " ")
    start, end = text.find("{"), text.rfind("}")
    value: Any = None
    if 0 <= start < end:
        try:
            value = untrusted.json(text[start : end + 1], dict).get("score")
        except InputError:
            found = re.search(r"[\"']?score[\"']?\s*:\s*\[?\s*[\"']?(-?\d+(?:\.\d+)?)", text)
            value = found[1] if found else None
    elif re.fullmatch(r"\s*\d+\s*", text):
        value = text
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    try:
        number = float(value) if not isinstance(value, bool) else -1.0
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if number == int(number) and 0 <= number <= most else None


def read_pair(reply: str) -> tuple[float, float] | None:
    """Parse two numbers from 0 to 10 out of a list in brackets."""
    number = r"\s*(\d+(?:\.\d+)?)\s*"
    found = re.search(rf"\[{number},{number}\]", reply)
    pair = (float(found[1]), float(found[2])) if found else None
    return pair if pair is not None and max(pair) <= 10 else None


def read_yes(reply: str) -> bool | None:
    """Parse yes or no; None if both or neither occur."""
    words = set(re.findall(r"\b(?:yes|no)\b", reply.lower()))
    return words == {"yes"} if len(words) == 1 else None
