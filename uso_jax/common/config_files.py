# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The configuration files that come with this package: configs/ of a checkout, uso_jax/configs/ once installed."""

import pathlib
import re

DEFAULT = "configs/uso.py"


def folder() -> pathlib.Path:
    """Return the folder of the packaged configuration files."""
    package = pathlib.Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def find(name: str) -> str:
    """Return the file that `--config NAME` means.

    Args:
      name: a path. If no such file exists, configs/NAME.py, NAME.py and NAME mean the packaged file.

    Returns:
      a path; `name` itself if it exists or names no packaged file.
    """
    if not pathlib.Path(name).is_file() and (short := re.fullmatch(r"(?:configs/)?(\w+)(?:\.py)?", name)):
        packaged = folder() / f"{short[1]}.py"
        return str(packaged) if packaged.is_file() else name
    return name
