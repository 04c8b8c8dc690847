# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Fields of a form as JSON would have them. OpenAI's clients send lists as NAME[] and objects as NAME[KEY]."""

import re
from collections.abc import Sequence
from typing import Any

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.inference.options import SPECS

FILES = ("image", "mask", "content_mask", "content", "styles", "style_masks")
_SEVERAL = ("image", "content", "styles", "style_masks")
_NAME = re.compile(r"(\w+)(?:\[(.*)\])?", re.DOTALL)


def form_values(fields: Sequence[tuple[str, str | bytes]]) -> dict[str, Any]:
    """Return the fields by name; files are bytes.

    Raises:
      InputError: a field cannot be read, or occurs twice; the message names it.
    """
    texts: dict[str, Any] = {}
    files: dict[str, list[bytes]] = {}
    for whole, value in fields:
        found = _NAME.fullmatch(whole)
        name, key = found.groups() if found else (whole, None)
        if isinstance(value, bytes):
            files.setdefault(name, []).append(value)
        elif key is None:
            if name in texts:
                raise InputError(f"{name[:60]} occurs twice; write a list as {name[:60]}[]")
            texts[name] = _parsed(name, value)
        elif key == "":
            _into(texts, name, list).append(_element(name, value))
        else:
            _into(texts, name, dict)[key] = _element(name, value)
    return texts | _placed(files, texts)


def _into(texts: dict[str, Any], name: str, kind: type) -> Any:
    found = texts.setdefault(name, kind())
    if not isinstance(found, kind):
        raise InputError(f"{name[:60]} is given in two ways; send it once")
    return found


def _parsed(name: str, text: str) -> Any:
    """Return the value of a field that is not part of a list."""
    if name in ("adapters", "content", "styles", "style_masks"):
        return untrusted.json(text, Any, name, remedy="write it as JSON") if text[:1] in ("[", "{") else [text]
    if name in SPECS and SPECS[name].kind.several and text[:1] == "[":
        return untrusted.json(text, Any, name, remedy="write it as JSON")
    return _element(name, text)


def _element(name: str, text: str) -> Any:
    if name in SPECS:
        try:
            return SPECS[name].kind.parse(text)
        except ValueError:
            raise InputError(f"{name} cannot be {text[:60]!r}") from None
    if name in ("n", "output_compression", "stream", "adapters"):
        return text if name == "adapters" and not _is_number(text) else untrusted.json(text, Any, name)
    return text


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d{1,6}(\.\d{1,12})?", text) is not None


def _placed(files: dict[str, list[bytes]], texts: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, data in files.items():
        if name not in FILES:
            raise InputError(f"unknown file {name[:60]!r}; files are {', '.join(FILES)}")
        if len(data) > 1 and name not in _SEVERAL:
            raise InputError(f"{name} must be one file, not {len(data)}")
        if name == "image":  # OpenAI's edits take one or more; where nothing says how to edit them, they are references
            if {"mask", "strength", "outpaint"} & {*files, *texts}:
                found["image"], data = data[0], data[1:]
            elif texts.get("size", "auto") == "auto" and not {"width", "height"} & texts.keys():
                found["keep_size"] = texts.get("keep_size", True)
            name = "content"
        found[name] = data[0] if name not in _SEVERAL else [*data, *found.get(name, texts.get(name, []))]
    return found
