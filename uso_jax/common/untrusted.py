# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The one way in for text from outside: files of users, files that a run reads back, answers of other programs.

    untrusted.text(path, remedy="save it as UTF-8")              a caption, a table, a prompt
    untrusted.json(path, dict[str, float], remedy="...")         a JSON file
    untrusted.json(answer, _Answer, "the judge's answer")        JSON text
    untrusted.json_lines(path, _Row)                             a log, one JSON value a line
    untrusted.json_items(path)                                   items, as a JSON list or one a line

A source is a path (`pathlib.Path`), bytes, or text that was decoded already (`str`). Text is UTF-8, with or without a
byte order mark, and lines end at "\\n" or "\\r\\n" only. A schema is an annotation: a scalar, `dict`, `list`,
`dict[str, X]`, `list[X]`, `tuple[X, ...]`, a Literal, a union, a TypedDict or a dataclass; `Any` accepts every value.
JSON is RFC 8259 without repeated keys, without NaN unless asked for, with whole numbers of at most 64 bits, at most 64
levels deep. Every damage is an `InputError` that names the source and the line and says how to fix it.
"""

import math
import os
import pathlib
import re
import stat
from collections.abc import Callable, Iterator
from json import JSONDecodeError, JSONDecoder, dumps, loads
from typing import Any, BinaryIO, NoReturn, TypeVar

from uso_jax.common import schema as schemas
from uso_jax.common.errors import InputError

T = TypeVar("T")
Source = pathlib.Path | bytes | str

LIMIT = 1 << 26  # bytes of a file, or of one line
LIST_LIMIT = 1 << 32  # bytes of a list of items
DEPTH = 64  # levels of lists and objects
_DIGITS = 20  # of a 64-bit number with its sign
_REMEDY = "fix the file"
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # how Python decodes the bytes of such names


def text(
    source: Source, where: str = "", *, missing: str = "", remedy: str = "save it as UTF-8", limit: int = LIMIT
) -> str:
    """Return decoded text, without a byte order mark and with "\\n" for "\\r\\n".

    Args:
      source: path, bytes or text.
      where: names the source in errors; by default its path.
      missing: the whole sentence for a file that does not exist.
      remedy: what to do about a damaged one.
      limit: the most bytes.

    Raises:
      InputError: the source is missing, is no regular file, is too large, is not UTF-8, or holds half of a surrogate
        pair or a NUL character.
    """
    return _whole_text(source, where or _name(source), missing, remedy, limit).replace("\r\n", "\n")


def json(
    source: Source,
    schema: type[T] | Any = Any,
    where: str = "",
    *,
    missing: str = "",
    remedy: str = _REMEDY,
    limit: int = LIMIT,
    nan: bool = False,
) -> T:
    """Return the value of a JSON text, checked by a schema; see `text` for the arguments.

    Args:
      schema: annotation of the value; see the module.
      nan: accept NaN and Infinity.

    Raises:
      InputError: see `text`; or it is not JSON, or not what the schema says.
    """
    where = where or _name(source)
    found = _whole_text(source, where, missing, remedy, limit)
    return _checked(_parsed(found, where, remedy, nan), schema, where, remedy)


def json_lines(
    path: pathlib.Path,
    schema: type[T] | Any = dict,
    *,
    missing: str = "",
    remedy: str = "fix that line",
    damaged: Callable[[InputError], object] | None = None,
    nan: bool = False,
) -> Iterator[tuple[int, T]]:
    """Yield (line number from 1, value) for each line that is not blank; the file is never whole in memory.

    Args:
      path: the file.
      schema: annotation of the value of each line.
      missing: the whole sentence for a file that does not exist.
      remedy: what to do about a damaged line.
      damaged: receives the error of a damaged line, which is then skipped; by default it is raised. What a writer that
        was interrupted left at the end of the file is such a line.
      nan: accept NaN and Infinity.

    Raises:
      InputError: see `json`.
    """
    with _opened(path, str(path), missing, remedy) as file:
        number = 0
        while line := _line(file, f"{path} line {number + 1}", remedy):
            number += 1
            where = f"{path} line {number}"
            try:
                found = _decoded(line if number > 1 else line.removeprefix(b"\xef\xbb\xbf"), where, remedy, LIMIT)
                if not found.strip():
                    continue
                value = _checked(_parsed(found, where, remedy, nan), schema, where, remedy)
            except InputError as error:
                if damaged is None:
                    raise
                damaged(error)
                continue
            yield number, value


def json_items(
    source: Source,
    schema: type[T] | Any = dict,
    where: str = "",
    *,
    missing: str = "",
    remedy: str = _REMEDY,
    limit: int = LIST_LIMIT,
    nan: bool = False,
) -> Iterator[tuple[str, T]]:
    """Yield (location, item) for the items of a JSON list, or of JSON lines, whatever the file is called.

    One object is a list of one, an empty one of none. A location is "a.json, item 0" or "a.json line 1".

    Raises:
      InputError: see `json`; `schema` is that of one item.
    """
    where = where or _name(source)
    found = _whole_text(source, where, missing, remedy, limit)
    if not found.lstrip().startswith("{"):
        for number, item in enumerate(_checked(_parsed(found, where, remedy, nan), list, where, remedy)):
            yield f"{where}, item {number}", _checked(item, schema, f"{where}, item {number}", remedy)
        return
    first, _, rest = found.lstrip().partition("\n")
    if not rest.strip() or not _is_json(first):  # one object, perhaps over several lines
        if item := _parsed(found, where, remedy, nan):
            yield f"{where}, item 0", _checked(item, schema, f"{where}, item 0", remedy)
        return
    for number, line in enumerate(found.split("\n"), 1):
        if line.strip():
            there = f"{where} line {number}"
            yield there, _checked(_parsed(line, there, remedy, nan), schema, there, remedy)


def lines(found: str) -> list[str]:
    """Split text at "\\n" and "\\r\\n" only, unlike `str.splitlines`; the last line need not end."""
    split = found.removesuffix("\n").split("\n") if found else []
    return [line.removesuffix("\r") for line in split]


def require_object(value: Any, where: str) -> dict:
    """Return `value` if it is a JSON object.

    Raises:
      InputError: it is anything else; `where` names its place.
    """
    if not isinstance(value, dict):
        raise InputError(f"{where} must be a JSON object, not {type(value).__name__}")
    return value


def recorded(value: Any, default: Callable[[Any], Any] | None = None) -> Any:
    """Return a value as JSON gives it back, with names of files as `printable` has them.

    Args:
      value: what `json.dumps` accepts.
      default: as that of `json.dumps`.
    """
    found = dumps(value, default=default, ensure_ascii=False)
    return loads(_NOT_UTF8.sub(lambda char: f"\\\\x{ord(char[0]) - 0xDC00:02x}", found))


def printable(name: str | os.PathLike) -> str:
    """Return a file name as text that can be recorded: bytes that are not UTF-8 become \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


# --------------------------------------------------------------------------------------------------------- reading


def _name(source: Source) -> str:
    return printable(source) if isinstance(source, pathlib.Path) else "the text"


def _whole_text(source: Source, where: str, missing: str, remedy: str, limit: int) -> str:
    if isinstance(source, pathlib.Path):
        with _opened(source, where, missing, remedy) as file:
            source = _read(file, limit, where, remedy)
    return _decoded(source, where, remedy, limit)


def _opened(path: pathlib.Path, where: str, missing: str, remedy: str) -> BinaryIO:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would wait for a writer
            raise InputError(f"{where} is not a file; pass a file")
        return path.open("rb")
    except FileNotFoundError:
        raise InputError(missing or f"{where} does not exist: check the path") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{where} cannot be read ({_reason(error)}); {remedy}") from error


def _read(file: BinaryIO, limit: int, where: str, remedy: str) -> bytes:
    try:
        # Python allocates all that it is asked for at once, so not the limit of a list for a small file.
        return file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    except OSError as error:
        raise InputError(f"{where} cannot be read ({_reason(error)}); {remedy}") from error


def _line(file: BinaryIO, where: str, remedy: str) -> bytes:
    try:
        return file.readline(LIMIT + 1)
    except OSError as error:
        raise InputError(f"{where} cannot be read ({_reason(error)}); {remedy}") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _decoded(source: bytes | str, where: str, remedy: str, limit: int) -> str:
    if len(source) > limit:
        raise InputError(f"{where} is larger than {limit} bytes, the limit; {remedy}")
    try:
        found = source.decode("utf-8-sig") if isinstance(source, bytes) else source.removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = source.count(b"\n", 0, error.start) + 1
        wrong = f"byte 0x{source[error.start]:02x} in line {line}"
        raise InputError(f"{where} is not UTF-8 text ({wrong}); {remedy}") from error
    if "\0" in found:
        line = found.count("\n", 0, found.index("\0")) + 1
        raise InputError(f"{where} is damaged: line {line} holds a NUL character; {remedy}")
    if isinstance(source, str):
        _no_surrogate(found, where, remedy)
    return found


def _no_surrogate(found: str, where: str, remedy: str) -> None:
    try:
        found.encode()
    except UnicodeEncodeError as error:
        wrong = f"U+{ord(found[error.start]):04X} after {found[max(error.start - 20, 0) : error.start]!r}"
        raise InputError(f"{where} holds half of a character ({wrong}); {remedy}") from error


# ------------------------------------------------------------------------------------------------------------ JSON


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


def _is_json(found: str) -> bool:
    try:
        _STRICT.decode(found)
    except (ValueError, RecursionError) as error:
        return isinstance(error, _Invalid)  # told by the line's own error
    return True


def _parsed(found: str, where: str, remedy: str, nan: bool) -> Any:
    try:
        value = (_WITH_NAN if nan else _STRICT).decode(found)
        if found.count("[") + found.count("{") > DEPTH:
            _check_depth(value)
    except JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}" if "\n" in found.strip() else f"column {error.colno}"
        raise InputError(f"{where} is not valid JSON ({error.msg}: {place}); {remedy}") from error
    except _Invalid as error:
        raise InputError(f"{where} is not valid JSON ({error}); {remedy}") from error
    except RecursionError:
        raise InputError(f"{where} is not valid JSON (nested more than {DEPTH} levels deep); {remedy}") from None
    if "\\u" in found:
        _check_strings(value, where, remedy)
    return value


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEPTH):
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
                _no_surrogate(value, where, remedy)
        elif isinstance(value, dict | list):
            waiting.extend(_inside(value))
            waiting.extend(value if isinstance(value, dict) else ())


def _inside(value: dict | list) -> Any:
    return value.values() if isinstance(value, dict) else value


def _checked(value: Any, schema: Any, where: str, remedy: str) -> Any:
    try:
        return schemas.converted(value, schema, where)
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from None
