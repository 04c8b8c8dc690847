# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Kinds of generation options: which values each takes, and how a command-line flag is read."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from uso_jax.common.errors import InputError

Whole = int | np.integer  # options are kept as Python's numbers
Number = float | int | np.integer | np.floating
_MAX_MARGIN = 8192  # pixels


@dataclass(frozen=True)
class Kind:
    """A type of option.

    Attributes:
      check: (name, value) -> the value as it is kept; raises InputError.
      parse: reads the text of a command-line flag.
      choices: all allowed values, if they are few.
      several: the flag takes one value or more.
    """

    check: Callable[[str, Any], Any]
    parse: Callable[[str], Any]
    choices: tuple[str, ...] = ()
    several: bool = False


def whole(name: str, value: Any, low: int, high: int) -> int:
    """Check a whole number, which may be a scalar of numpy."""
    found = int(value) if isinstance(value, np.integer) else value
    if type(found) is not int or not low <= found <= high:
        raise InputError(f"{name} must be a whole number from {low} to {high}, not {value!r}")
    return found


def number(name: str, value: Any) -> float:
    """Check a number that is finite and not negative."""
    numeric = type(value) in (int, float) or isinstance(value, np.integer | np.floating)
    if not numeric or not 0 <= value < math.inf:
        raise InputError(f"{name} must be a number of at least 0, not {value!r}")
    return float(value)


def _one_or_more(name: str, value: Any) -> float | tuple[float, ...]:
    return (
        tuple(number(name, one) for one in value)
        if isinstance(value, list | tuple | np.ndarray)
        else number(name, value)
    )


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"{name} must be text, not {type(value).__name__}")
    return value


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} must be true or false, not {value!r}")
    return bool(value)


def _parse_boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError(text)  # argparse reports it with the flag's name
    return text.lower() in ("true", "1")


_parse_boolean.__name__ = "BOOL"  # argparse names the parser in its message
BOOLEAN = Kind(_boolean, _parse_boolean)
TEXT = Kind(_text, str)
NUMBER = Kind(number, float)
NUMBERS = Kind(_one_or_more, float, several=True)


def _share(name: str, value: Any) -> float:
    """Check a number from 0 to 1."""
    if (found := number(name, value)) > 1:
        raise InputError(f"{name} must be a number from 0 to 1, not {value!r}")
    return found


def _factor(name: str, value: Any) -> float:
    """Check a number from 1 to 8."""
    if not 1 <= (found := number(name, value)) <= 8:
        raise InputError(f"{name} must be a number from 1 to 8, not {value!r}")
    return found


def _margins(name: str, value: Any) -> tuple[int, ...]:
    """Check four numbers of pixels; one number holds for all sides."""
    values = tuple(value) if isinstance(value, list | tuple | np.ndarray) else (value,) * 4
    if len(values) != 4:
        raise InputError(f"{name} must be pixels at the left, top, right and bottom, not {len(values)} numbers")
    return tuple(whole(name, one, 0, _MAX_MARGIN) for one in values)


def _interval(name: str, value: Any) -> tuple[float, ...]:
    """Check two numbers, the first below the second, from 0 to 1."""
    values = tuple(value) if isinstance(value, list | tuple | np.ndarray) else (value,)
    if len(values) != 2 or not _share(name, values[0]) < _share(name, values[1]):
        raise InputError(f"{name} must be two numbers from 0 to 1, the first below the second, not {value!r}")
    return tuple(map(float, values))


SHARE = Kind(_share, float)
FACTOR = Kind(_factor, float)
MARGINS = Kind(_margins, int, several=True)
INTERVAL = Kind(_interval, float, several=True)


def whole_number(low: int, high: int) -> Kind:
    """Return the kind of whole numbers from `low` to `high`."""
    return Kind(lambda name, value: whole(name, value, low, high), int)


def choice(*choices: str) -> Kind:
    """Return the kind of one of a few words."""

    def check(name: str, value: Any) -> str:
        if value not in choices:
            raise InputError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
        return value

    return Kind(check, str, choices)
