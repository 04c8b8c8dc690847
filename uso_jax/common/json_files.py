# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""JSON objects and JSON-lines files with errors that name the file and the line."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from uso_jax.common.errors import InputError


def read_json_lines(path: pathlib.Path, remedy: str) -> Iterator[tuple[int, dict]]:
    """Give the objects of a file with one JSON object a line, by the number of their line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; {remedy}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable text ({error}); correct it") from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path} line {number} is not JSON ({error}); correct it") from error
            yield number, require_object(values, f"{path} line {number}")


def require_object(value: Any, where: str) -> dict:
    """Refuse JSON that is not an object."""
    if not isinstance(value, dict):
        raise InputError(f"{where} must be a JSON object, not {type(value).__name__}")
    return value
