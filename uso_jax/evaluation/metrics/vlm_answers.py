# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A vision-language model as judge: what it is asked, what it answered, and how an answer is read.

A judge is anything that is called as (images, prompt) and gives text, or raises NoAnswer; `name` is its model's.
Answers are kept in a file that only grows, by a digest of model, prompt, images and round, so nothing is asked twice,
and a run can be repeated without the model. The texts are this project's own wording of each benchmark's published
rubric; --judge_prompts replaces them, by name, with others.
"""

import json
import re
from typing import Any

# ---------------------------------------------------------------------------------------------------- reading answers


def read_score(reply: str, most: int = 10) -> int | None:
    """Read a whole number from 0 to `most` from JSON with a score, damaged JSON or a bare number; None without one."""
    text = reply.replace("\n", " ")
    start, end = text.find("{"), text.rfind("}")
    value: Any = None
    if 0 <= start < end:
        try:
            value = json.loads(text[start : end + 1]).get("score")
        except (ValueError, RecursionError):
            found = re.search(r"[\"']?score[\"']?\s*:\s*\[?\s*[\"']?(-?\d+(?:\.\d+)?)", text)
            value = found[1] if found else None
    elif re.fullmatch(r"\s*\d+\s*", text):
        value = text
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    try:
        number = float(value) if not isinstance(value, bool) else -1.0
    except (TypeError, ValueError):
        return None
    return int(number) if number == int(number) and 0 <= number <= most else None


def read_pair(reply: str) -> tuple[float, float] | None:
    """Read two numbers from 0 to 10 out of a list in brackets."""
    number = r"\s*(\d+(?:\.\d+)?)\s*"
    found = re.search(rf"\[{number},{number}\]", reply)
    pair = (float(found[1]), float(found[2])) if found else None
    return pair if pair is not None and max(pair) <= 10 else None


def read_yes(reply: str) -> bool | None:
    """Read yes or no; None where both or neither are said."""
    words = set(re.findall(r"\b(?:yes|no)\b", reply.lower()))
    return words == {"yes"} if len(words) == 1 else None
