# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A folder of style files as servers see it: styles are known by name, never by path."""

import dataclasses
import pathlib
import re

from uso_jax.common import locks
from uso_jax.common.errors import InputError
from uso_jax.inference import styles as style_files
from uso_jax.inference.styles import StyleEmbedding

_NAME = re.compile(r"\w[\w -]{0,63}")


class StyleLibrary:
    """A folder of style files, by default the user's style library."""

    def __init__(self, folder: pathlib.Path | None = None):
        self.folder = folder or style_files.style_library()

    def names(self) -> list[str]:
        """Return the names of all styles."""
        found = (path.stem for path in self.folder.glob("*.safetensors"))
        return sorted(name for name in found if _NAME.fullmatch(name))

    def read(self, name: str) -> StyleEmbedding:
        """Read a style.

        Raises:
          InputError: the name is not in the list.
        """
        if name not in self.names():
            raise InputError(f"there is no saved style {name!r}; choose one from the list")
        return dataclasses.replace(style_files.read_style(self.folder / f"{name}.safetensors"), path=name)

    def write(self, name: str, style: StyleEmbedding) -> None:
        """Write a style under a new name.

        Raises:
          InputError: the name is taken or has other characters.
        """
        if not _NAME.fullmatch(name):
            raise InputError("the name of a style is made of letters, digits, spaces, - and _; choose such a name")
        with locks.hold(self.folder, name):
            if name in self.names():
                raise InputError(f"style {name!r} exists already; choose another name")
            style_files.write_style(self.folder / f"{name}.safetensors", style)
