# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The user's folders: caches, and data that programs keep. A user without a home has them among temporary files."""

import os
import pathlib
import tempfile


def cache() -> pathlib.Path:
    """Return the folder of cached data, $XDG_CACHE_HOME/uso_jax or ~/.cache/uso_jax."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache", "uso_jax")


def data() -> pathlib.Path:
    """Return the folder of kept data, $XDG_DATA_HOME/uso_jax or ~/.local/share/uso_jax."""
    return pathlib.Path(os.environ.get("XDG_DATA_HOME") or _home() / ".local" / "share", "uso_jax")


def _home() -> pathlib.Path:
    try:
        return pathlib.Path.home()
    except (RuntimeError, KeyError):  # neither HOME nor an entry of the user database, as in containers
        return pathlib.Path(tempfile.gettempdir(), f"uso_jax-{os.getuid()}")
