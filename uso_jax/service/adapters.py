# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A folder of adapters as clients see it: adapters are known by name, never by path."""

import pathlib
import re

from uso_jax.common.errors import InputError

_NAME = re.compile(r"\w[\w .-]{0,63}")


class AdapterFolder:
    """Safetensors files and training workdirs in a folder; files may come and go while the service runs.

    Args:
      folder: None: there are no adapters.
    """

    def __init__(self, folder: pathlib.Path | None):
        if folder is not None and not folder.is_dir():
            raise InputError(f"--adapters {folder} is not a folder; make it, or name another")
        self._folder = folder

    def names(self) -> list[str]:
        """Return the names of all adapters."""
        return sorted(self._found())

    def find(self, name: str) -> str:
        """Return the path of an adapter.

        Raises:
          InputError: there is none of this name.
        """
        if (path := self._found().get(name)) is None:
            raise InputError(f"there is no adapter {name!r}; GET /v1/adapters lists them")
        return str(path)

    def _found(self) -> dict[str, pathlib.Path]:
        if self._folder is None:
            return {}
        paths = (path for path in self._folder.iterdir() if path.is_dir() or path.suffix == ".safetensors")
        return {path.stem if path.is_file() else path.name: path for path in paths if _NAME.fullmatch(path.name)}
