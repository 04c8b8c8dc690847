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
JSON is that of `strict_json`. Every damage is an `InputError` that names source and line and says how to fix it.
"""

import codecs
import io
import os
import pathlib
import re
import stat
from collections.abc import Callable, Iterator
from json import dumps, loads
from typing import Any, TypeVar

from uso_jax.common import schema as schemas
from uso_jax.common.errors import InputError
from uso_jax.common.strict_json import ListText, check_surrogates, is_json, parsed

T = TypeVar("T")
Source = pathlib.Path | bytes | str

LIMIT = 1 << 26  # bytes of a file, or of one line
LIST_LIMIT = 1 << 32  # bytes of a list of items
PIECE = 1 << 20  # bytes of a list that are read at once
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
    return _checked(parsed(found, where, remedy, nan), schema, where, remedy)


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
        for number, _, value in _lines(file, str(path), schema, remedy, damaged, nan):
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

    Items are parsed one after the other, so a list is never whole in memory; a damage is an error when it is reached.
    One object is a list of one, an empty one of none. A location is "a.json, item 0" or "a.json line 1".

    Args:
      source: path, bytes or text.

    Raises:
      InputError: see `json`; `schema` is that of one item.
    """
    where = where or _name(source)
    with _stream(source, where, missing, remedy, limit) as file:
        text = ListText(_pieces(file, where, remedy), where, remedy, nan)
        if (first := text.first()) == "[":
            for number, item in enumerate(text.items()):
                there = f"{where}, item {number}"
                yield there, item if schema is Any else _checked(item, schema, there, remedy)
            return
        file.seek(0)
        if first == "{" and _has_lines(file, where, remedy):
            file.seek(0)
            for _, there, value in _lines(file, where, schema, remedy, None, nan):
                yield there, value
            return
        file.seek(0)
        value = parsed("".join(_pieces(file, where, remedy)), where, remedy, nan)
        if first != "{":
            _checked(value, list, where, remedy)  # it is none
        elif value:  # one object, perhaps over several lines
            yield f"{where}, item 0", _checked(value, schema, f"{where}, item 0", remedy)


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
            # Python allocates all that it is asked for at once, so not the limit of a list for a small file.
            source = _read(file, min(limit, os.fstat(file.fileno()).st_size) + 1, where, remedy)
    return _decoded(source, where, remedy, limit)


def _stream(source: Source, where: str, missing: str, remedy: str, limit: int) -> io.BufferedIOBase:
    """Return a file, at its beginning, of at most `limit` bytes."""
    if isinstance(source, str):
        source = _decoded(source, where, remedy, limit).encode()
    file = io.BytesIO(source) if isinstance(source, bytes) else _opened(source, where, missing, remedy)
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size > limit:
        file.close()
        raise _too_large(where, remedy, limit)
    return file


def _has_lines(file: io.BufferedIOBase, where: str, remedy: str) -> bool:
    """Return whether the first line of a file that is not blank is JSON, and not the last one."""
    first = b""
    while line := _line(file, where, remedy):
        if first and line.strip():
            return is_json(first.decode("utf-8-sig", "replace"))
        first = first or line.strip()
    return False


def _lines(
    file: io.BufferedIOBase,
    name: str,
    schema: Any,
    remedy: str,
    damaged: Callable[[InputError], object] | None,
    nan: bool,
) -> Iterator[tuple[int, str, Any]]:
    """Yield (number from 1, location, value) of the lines that are not blank."""
    number = 0
    while line := _line(file, f"{name} line {number + 1}", remedy):
        number += 1
        where = f"{name} line {number}"
        try:
            found = _decoded(line if number > 1 else line.removeprefix(codecs.BOM_UTF8), where, remedy, LIMIT)
            if not found.strip():
                continue
            value = _checked(parsed(found, where, remedy, nan), schema, where, remedy)
        except InputError as error:
            if damaged is None:
                raise
            damaged(error)
            continue
        yield number, where, value


def _opened(path: pathlib.Path, where: str, missing: str, remedy: str) -> io.BufferedIOBase:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would wait for a writer
            raise InputError(f"{where} is not a file; pass a file")
        return path.open("rb")
    except FileNotFoundError:
        raise InputError(missing or f"{where} does not exist: check the path") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{where} cannot be read ({_reason(error)}); {remedy}") from error


def _read(file: io.BufferedIOBase, length: int, where: str, remedy: str) -> bytes:
    try:
        return file.read(length)
    except OSError as error:
        raise InputError(f"{where} cannot be read ({_reason(error)}); {remedy}") from error


def _line(file: io.BufferedIOBase, where: str, remedy: str) -> bytes:
    try:
        return file.readline(LIMIT + 1)
    except OSError as error:
        raise InputError(f"{where} cannot be read ({_reason(error)}); {remedy}") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _decoded(source: bytes | str, where: str, remedy: str, limit: int) -> str:
    if len(source) > limit:
        raise _too_large(where, remedy, limit)
    if isinstance(source, bytes):
        return _utf8(source, where, remedy)[0].removeprefix("\ufeff")
    found = source.removeprefix("\ufeff")
    _check_nul(found, where, remedy, 1)
    check_surrogates(found, where, remedy)
    return found


def _utf8(data: bytes, where: str, remedy: str, line: int = 1, last: bool = True) -> tuple[str, int]:
    """Return decoded text and the number of its bytes, all if they are the last ones; `line` is that of the first."""
    try:
        found, used = codecs.utf_8_decode(data, "strict", last)
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        wrong = f"byte 0x{data[error.start]:02x} in line {line}"
        raise InputError(f"{where} is not UTF-8 text ({wrong}); {remedy}") from error
    _check_nul(found, where, remedy, line)
    return found, used


def _check_nul(found: str, where: str, remedy: str, line: int) -> None:
    if "\0" in found:
        line += found.count("\n", 0, found.index("\0"))
        raise InputError(f"{where} is damaged: line {line} holds a NUL character; {remedy}")


def _pieces(file: io.BufferedIOBase, where: str, remedy: str) -> Iterator[str]:
    """Yield the text of a file in pieces that are not empty."""
    line, rest, last, mark = 1, b"", False, "\ufeff"
    while not last:
        read = _read(file, PIECE, where, remedy)
        last = not read
        data = rest + read
        found, used = _utf8(data, where, remedy, line, last)
        line += found.count("\n")
        rest = data[used:]
        if found := found.removeprefix(mark):
            yield found
            mark = ""


def _too_large(where: str, remedy: str, limit: int) -> InputError:
    return InputError(f"{where} is larger than {limit} bytes, the limit; {remedy}")


def _checked(value: Any, schema: Any, where: str, remedy: str) -> Any:
    try:
        return schemas.converted(value, schema, where)
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from None
