# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Where two JSON values differ, in words."""

from collections.abc import Iterator
from typing import Any


def differences(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted path, value in a, value in b) of every difference; a value that is missing is None."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            yield from differences(a.get(key), b.get(key), f"{path}.{key}" if path else key)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f"{path}[{i}]")
    elif a != b:
        yield path, a, b


def first_differences(a: Any, b: Any, words: tuple[str, str] = ("was", "is")) -> str:
    """Return up to three differences as "PATH was 1, is 2; ...", with these words, or "" without any."""
    found = [f"{path} {words[0]} {_short(x)}, {words[1]} {_short(y)}" for path, x, y in differences(a, b)]
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
