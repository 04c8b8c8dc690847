# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Reading JSON-lines files and JSON objects; errors name the file and the line."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from uso_jax.common.errors import InputError


def read_json_lines(path: pathlib.Path, remedy: str) -> Iterator[tuple[int, dict]]:
    """Yield (line number from 1, object) for each non-empty line of a JSON-lines file.

    Raises:
      InputError: the file is missing (`remedy` says what to do), is not UTF-8, or a line is not a JSON object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; {remedy}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable UTF-8 text ({error}); fix the file") from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path} line {number} is not valid JSON ({error}); fix that line") from error
            yield number, require_object(values, f"{path} line {number}")


def require_object(value: Any, where: str) -> dict:
    """Return `value` if it is a JSON object.

    Raises:
      InputError: it is anything else; `where` names its place.
    """
    if not isinstance(value, dict):
        raise InputError(f"{where} must be a JSON object, not {type(value).__name__}")
    return value
