# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The JSON that `untrusted` accepts, whole or as a list whose text comes in pieces.

JSON is RFC 8259 without repeated keys, without NaN unless asked for, with whole numbers of at most 64 bits, at most 64
levels deep, and without halves of surrogate pairs and NUL in its strings. Python's decoder checks all of it through
hooks; the faster decoders of orjson and msgspec keep the last of repeated keys and cannot be told not to.
"""

import math
import re
from collections.abc import Callable, Iterator
from json import JSONDecodeError, JSONDecoder
from typing import Any, NoReturn

from uso_jax.common.errors import InputError

DEPTH = 64  # levels of lists and objects
_DIGITS = 20  # of a 64-bit number with its sign
_CUT = 16  # characters that a number, a literal or an escape may reach over the end of a piece
_SPACE = re.compile(r"[ \t\n\r]*")
_NEXT = re.compile(r"[ \t\n\r]*,[ \t\n\r]*(?=[^ \t\n\r])")


class _Invalid(ValueError):
    """JSON that Python's decoder would accept."""


def _repeated(pairs: list[tuple[str, Any]]) -> NoReturn:
    seen: set[str] = set()
    name = next(name for name, _ in pairs if name in seen or seen.add(name))
    raise _Invalid(f"the key {name!r} occurs twice")


def _long(digits: str) -> int:
    if len(digits) > _DIGITS or not -(1 << 63) <= (found := int(digits)) < 1 << 64:
        raise _Invalid(f"the number {digits[:_DIGITS]}... has more than 64 bits")
    return found


def _infinite(digits: str) -> NoReturn:
    raise _Invalid(f"the number {digits[:_DIGITS]} is too large")


def _constant(name: str) -> float:
    raise _Invalid(f"{name} is not a number")


# Called for every object and number.
_HOOKS: dict[str, Callable] = {
    "object_pairs_hook": lambda pairs: found if len(found := dict(pairs)) == len(pairs) else _repeated(pairs),
    "parse_int": lambda digits: int(digits) if len(digits) < 19 else _long(digits),
}
_STRICT = JSONDecoder(
    **_HOOKS,
    parse_float=lambda digits: found if not math.isinf(found := float(digits)) else _infinite(digits),
    parse_constant=_constant,
)
_WITH_NAN = JSONDecoder(**_HOOKS)


def is_json(found: str) -> bool:
    """Return whether a text is JSON, perhaps with values that `parsed` refuses."""
    try:
        _STRICT.decode(found)
    except (ValueError, RecursionError) as error:
        return isinstance(error, _Invalid)
    return True


def parsed(found: str, where: str, remedy: str, nan: bool) -> Any:
    """Return the value of a JSON text; `nan` accepts NaN and Infinity.

    Raises:
      InputError: it is not JSON; `where` names it, and `remedy` says what to do.
    """
    try:
        value = (_WITH_NAN if nan else _STRICT).decode(found)
        if found.count("[") + found.count("{") > DEPTH:
            _check_depth(value, DEPTH)
    except (ValueError, RecursionError) as error:
        raise _refused(error, found, 0, 0, where, remedy) from None
    if "\\u" in found:
        _check_strings(value, where, remedy)
    return value


class ListText:
    """The text of a JSON list that comes in pieces. No more than the pieces of one item are in memory.

    Args:
      pieces: the text; none is empty.
      where: names it in errors.
      remedy: what to do about a damage.
      nan: accept NaN and Infinity.
    """

    def __init__(self, pieces: Iterator[str], where: str, remedy: str, nan: bool):
        self._pieces, self._where, self._remedy = pieces, where, remedy
        self._scan = (_WITH_NAN if nan else _STRICT).scan_once
        self._text, self._pos = "", 0
        self._line, self._column = 0, 0  # of the first character of `_text`, from 0

    def first(self) -> str:
        """Go to the next character that is not white space and return it; "" at the end."""
        while True:
            self._pos = _SPACE.match(self._text, self._pos).end()
            if self._pos < len(self._text):
                return self._text[self._pos]
            if not self._more():
                return ""

    def items(self) -> Iterator[Any]:
        """Yield the items, if `first` is "[".

        Raises:
          InputError: it is not JSON.
        """
        self._pos += 1
        ended = self.first() == "]"
        while not ended:
            yield self._item()
            if following := _NEXT.match(self._text, self._pos):
                self._pos = following.end()
                continue
            found = self.first()
            ended = found == "]"
            if not ended:
                if found != ",":
                    raise self._error(JSONDecodeError("Expecting ',' delimiter", self._text, self._pos))
                self._pos += 1
                self.first()
        self._pos += 1
        if self.first():
            raise self._error(JSONDecodeError("Extra data", self._text, self._pos))

    def _item(self) -> Any:
        while True:
            text, start = self._text, self._pos
            try:
                value, end = self._scan(text, start)
                if end + _CUT <= len(text) or not self._more():  # a number may go on in the next piece
                    break
            except StopIteration as error:
                self._more_or(JSONDecodeError("Expecting value", text, error.value))
            except (ValueError, RecursionError) as error:
                self._more_or(error)
        if text.count("[", start, end) + text.count("{", start, end) >= DEPTH:
            try:
                _check_depth(value, DEPTH - 1)  # the list is one more
            except RecursionError as error:
                raise self._error(error) from None
        if text.find("\\u", start, end) >= 0:
            _check_strings(value, self._where, self._remedy)
        self._pos += end - start
        return value

    def _more_or(self, error: Exception) -> None:
        """Append pieces if the end of the text may be the reason of an error, or else raise it."""
        cut = isinstance(error, JSONDecodeError) and (
            error.msg.startswith("Unterminated string") or error.pos + _CUT > len(self._text)
        )
        if not (cut and self._more()):
            raise self._error(error) from None

    def _more(self) -> bool:
        """Drop what was read and append pieces of at least the length of the rest, or else change nothing."""
        rest = self._text[self._pos :]
        added, length = [rest], 0
        for piece in self._pieces:
            added.append(piece)
            length += len(piece)
            if length >= len(rest):
                break
        if length:
            self._line, self._column = _place(self._text, self._pos, self._line, self._column)
            self._text, self._pos = "".join(added), 0
        return length > 0

    def _error(self, error: Exception) -> InputError:
        return _refused(error, self._text, self._line, self._column, self._where, self._remedy)


def _place(text: str, pos: int, line: int, column: int) -> tuple[int, int]:
    """Return line and column of a position, from 0; `line` and `column` are those of the beginning of the text."""
    lines = text.count("\n", 0, pos)
    return line + lines, pos - text.rfind("\n", 0, pos) - 1 if lines else column + pos


def _refused(error: Exception, text: str, line: int, column: int, where: str, remedy: str) -> InputError:
    reason = str(error)
    if isinstance(error, RecursionError):
        reason = f"nested more than {DEPTH} levels deep"
    elif isinstance(error, JSONDecodeError):
        at_line, at_column = _place(text, error.pos, line, column)
        several = f"line {at_line + 1} " if line or "\n" in text.strip() else ""
        reason = f"{error.msg}: {several}column {at_column + 1}"
    return InputError(f"{where} is not valid JSON ({reason}); {remedy}")


def _check_depth(value: Any, most: int) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(most):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) in (dict, list)
        ]
        if not level:
            return
    raise RecursionError


def _check_strings(value: Any, where: str, remedy: str) -> None:
    """Raise an InputError if an escape in a string is half of a surrogate pair or NUL."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            if "\0" in value:
                raise InputError(f"{where} holds a NUL character in {value[:40]!r}; {remedy}")
            if not value.isascii():
                check_surrogates(value, where, remedy)
        elif isinstance(value, dict | list):
            waiting.extend(value.values() if isinstance(value, dict) else value)
            waiting.extend(value if isinstance(value, dict) else ())


def check_surrogates(found: str, where: str, remedy: str) -> None:
    """Raise an InputError if a text holds half of a surrogate pair."""
    try:
        found.encode()
    except UnicodeEncodeError as error:
        wrong = f"U+{ord(found[error.start]):04X} after {found[max(error.start - 20, 0) : error.start]!r}"
        raise InputError(f"{where} holds half of a character ({wrong}); {remedy}") from error
