# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Files that are there as a whole or not at all."""

import os
import pathlib


def write(path: pathlib.Path, data: bytes | str) -> None:
    """Write a file beside its place, then move it there; after an error what was there is untouched.

    Raises:
      OSError: it could not be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
