# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A configuration as nested frozen dataclasses: values replaced by dotted path, checked types, documented fields.

The document of a field is the comment behind it or directly above it, or the string directly below it.
"""

import ast
import contextlib
import dataclasses
import functools
import inspect
import io
import tokenize
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from uso_jax.common.errors import InputError

T = TypeVar("T")


class Field(NamedTuple):
    """One value of a configuration."""

    path: str  # dotted
    value: Any
    kind: Any  # its annotation
    doc: str


class _Changes(dict):
    """Changes below one section, by the next part of their paths."""


def override(config: T, changes: Mapping[str, Any]) -> T:
    """Return a copy of `config` with values replaced by dotted path, all at once.

        override(config, {"stages.disentanglement.steps": 3, "mesh.fsdp": 8})

    A list becomes a tuple, a whole number a float, and a mapping a dataclass, where the field is one.

    Raises:
      InputError: a field is unknown, or a value has another type than its field or makes no sense.
    """
    tree = _Changes()
    for path, value in changes.items():
        *sections, last = path.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, _Changes())
            if not isinstance(node, _Changes):
                raise InputError(f"config.{path}: the section above it is replaced too; change one of the two")
        node[last] = value
    return _changed(config, Any, tree, "config")


def _changed(value: Any, kind: Any, changes: _Changes, where: str) -> Any:
    if not is_section(value):
        raise InputError(f"{where} is {value!r}, so it has no {next(iter(changes))!r}")
    known, new = children(value, kind), {}
    if isinstance(value, Mapping):  # it may get further items
        known = {name: (None, (*typing.get_args(kind), Any, Any)[1]) for name in changes} | known
    for name, change in changes.items():
        if name not in known or (isinstance(change, _Changes) and isinstance(value, Mapping) and name not in value):
            raise InputError(f"{where} has no {name!r}; it has {', '.join(children(value))}")
        old, item = known[name]
        if isinstance(change, _Changes):
            new[name] = _changed(old, item, change, f"{where}.{name}")
        else:
            item = type(old) if item is Any and type(old) in _SCALARS else item
            new[name] = converted(change, item, f"{where}.{name}")
    if isinstance(value, Mapping):
        return {**value, **new}
    return _make(functools.partial(dataclasses.replace, value), new, where)


def _make(build, values: Mapping[str, Any], where: str) -> Any:
    try:
        return build(**values)
    except InputError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InputError(f"{where}: {error}") from error


_SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_PLAIN = {**_SCALARS, dict: "an object", list: "a list"}
_LARGEST = 1 << 1023  # whole numbers below become floats


def converted(value: Any, kind: Any, where: str) -> Any:
    """Return a value from outside as its annotation says.

    A list becomes a tuple where the annotation is one, a whole number a float, and a mapping a dataclass. Further keys
    of a TypedDict are kept.

    Raises:
      InputError: the value has another type; `where` names it.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        first, *others = (arg for arg in args if arg is not type(None))
        try:
            return converted(value, first, where)
        except InputError:
            for arg in others:
                with contextlib.suppress(InputError):
                    return converted(value, arg, where)
            if isinstance(value, list | Mapping):
                raise
    if origin is typing.Literal and type(value) in map(type, args) and value in args:
        return value
    if origin is tuple and isinstance(value, list | tuple):
        kinds = args[:1] * len(value) if args[1:] == (...,) else args
        if len(kinds) == len(value):
            return tuple(converted(item, kind, where) for item, kind in zip(value, kinds, strict=True))
    elif origin is Sequence and isinstance(value, list | tuple):
        return tuple(converted(item, args[0], where) for item in value)
    elif origin is list and isinstance(value, list):
        return [converted(item, args[0], f"{where}[{number}]") for number, item in enumerate(value)]
    elif origin in (Mapping, dict) and isinstance(value, Mapping):
        return {name: converted(item, args[1], f"{where}.{name}") for name, item in value.items()}
    elif typing.is_typeddict(kind):
        if isinstance(value, Mapping):
            return _entries(value, kind, where)
    elif dataclasses.is_dataclass(kind):
        if isinstance(value, Mapping):
            kinds = _kinds(kind)
            if unknown := value.keys() - kinds.keys():
                raise InputError(f"{where} has no {min(unknown)!r}; it has {', '.join(kinds)}")
            return _make(kind, {name: converted(v, kinds[name], f"{where}.{name}") for name, v in value.items()}, where)
        if isinstance(value, kind):
            return value
    elif kind is float and type(value) is int and abs(value) < _LARGEST:
        return float(value)
    elif origin is None and (type(value) is kind or kind not in _PLAIN):
        return value
    shown = repr(value)
    raise InputError(f"{where}: {shown if len(shown) <= 200 else shown[:200] + '...'} is not {expected(kind)}")


def _entries(value: Mapping, kind: Any, where: str) -> dict:
    """Return a mapping with the entries of a TypedDict checked."""
    if absent := sorted(kind.__required_keys__ - value.keys()):
        raise InputError(f"{where} has no {absent[0]!r}")
    kinds = _entry_kinds(kind)
    checked = {name: converted(value[name], kinds[name], f"{where}.{name}") for name in kinds if name in value}
    return {**value, **checked}


def expected(kind: Any) -> str:
    """Return the words for the values that an annotation allows."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join("nothing" if arg is type(None) else expected(arg) for arg in args)
    if kind in _PLAIN or origin in _PLAIN:
        return _PLAIN[origin or kind]
    if typing.is_typeddict(kind):
        return _PLAIN[dict]
    if dataclasses.is_dataclass(kind) or origin is Mapping:
        return "a section"
    if origin is tuple:
        words = [expected(arg).removeprefix("a ") if arg is not ... else "..." for arg in args]
        return f"a tuple ({', '.join(words)})"
    return "a tuple" if origin is Sequence else str(kind)


@functools.cache
def _entry_kinds(kind: Any) -> dict[str, Any]:
    """Return the annotation of every entry of a TypedDict."""
    return typing.get_type_hints(kind)


@functools.cache
def _kinds(config_class: type) -> dict[str, Any]:
    """Return the annotation of every field."""
    hints = typing.get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class)}


def is_section(value: Any) -> bool:
    """Return whether a value has fields or items."""
    return dataclasses.is_dataclass(value) or isinstance(value, Mapping)


def children(config: Any, kind: Any = Any) -> dict[str, tuple[Any, Any]]:
    """Return value and annotation of every field or item of a section."""
    if dataclasses.is_dataclass(config):
        return {name: (getattr(config, name), kind) for name, kind in _kinds(type(config)).items()}
    item = (*typing.get_args(kind), Any, Any)[1]
    return {name: (value, item) for name, value in config.items()}


def plain(config: Any) -> Any:
    """Return nested dictionaries of a configuration's values."""
    return {name: plain(value) for name, (value, _) in children(config).items()} if is_section(config) else config


def fields(config: Any) -> Iterator[Field]:
    """Yield every value of a configuration that is no section, in order of definition."""
    yield from _fields(config, Any, "", "")


def _fields(value: Any, kind: Any, path: str, doc: str) -> Iterator[Field]:
    if not is_section(value) or not children(value):
        yield Field(path, value, type(value) if kind is Any and type(value) in _SCALARS else kind, doc)
        return
    known = docs(type(value)) if dataclasses.is_dataclass(value) else {}
    for name, (item, kind_of_item) in children(value, kind).items():
        yield from _fields(item, kind_of_item, f"{path}.{name}".lstrip("."), known.get(name, ""))


@functools.cache
def docs(config_class: type) -> dict[str, str]:
    """Return the document of every field of a dataclass, "" where it has none."""
    found = dict.fromkeys((field.name for field in dataclasses.fields(config_class)), "")
    for base in reversed(config_class.__mro__):
        if dataclasses.is_dataclass(base):
            found |= {name: doc for name, doc in _own_docs(base).items() if name in found}
    return found


def _own_docs(config_class: type) -> dict[str, str]:
    source = inspect.cleandoc("\n" + inspect.getsource(config_class))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    whole = {number for number, line in enumerate(source.splitlines(), 1) if line.lstrip().startswith("#")}
    body, found = ast.parse(source).body[0].body, {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign):
            continue
        above = node.lineno
        while above - 1 in whole:
            above -= 1
        lines = [comments[number] for number in range(above, node.end_lineno + 1) if number in comments]
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            lines.append(inspect.cleandoc(after.value.value))
        found[node.target.id] = " ".join(lines)
    return found
