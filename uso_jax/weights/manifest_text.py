# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The text of manifest.json, and of the shapes and dtypes in it."""

import json
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

import uso_jax

FORMAT = 3
ZARR_FORMAT = 2  # read, no longer written


def parse_struct(text: str) -> jax.ShapeDtypeStruct:
    """Parse `dtype[shape]`, such as "bfloat16[3072,64]".

    Raises:
      ValueError: the text has another form.
    """
    if (match := re.fullmatch(r"(\w+)\[((?:\d+(?:,\d+)*)?)\]", text)) is None:
        raise ValueError(f"{text!r} is not dtype[shape]")
    return jax.ShapeDtypeStruct(tuple(map(int, match[2].split(","))) if match[2] else (), jnp.dtype(match[1]))


def format_struct(struct: jax.ShapeDtypeStruct) -> str:
    """Return `dtype[shape]`, which `parse_struct` reads."""
    return f"{struct.dtype}[{','.join(map(str, struct.shape))}]"


def manifest_text(
    component: str, structs: Mapping[str, Any], manifest: Mapping[str, Any], files: Mapping[str, int]
) -> str:
    """Return the text of manifest.json.

    Args:
      component: the folder's name.
      structs: shape and dtype of every parameter.
      manifest: the caller's entries, which take precedence over those derived from the parameters.
      files: size in bytes by name.
    """
    dtypes = sorted({str(s.dtype) for s in structs.values()})
    record = {
        "format": FORMAT,
        "component": component,
        "family": "",
        "uso_jax": uso_jax.__version__,
        "dtype": dtypes[0] if len(dtypes) == 1 else "mixed",
        "parameters": sum(s.size for s in structs.values()),
        "sources": [],
        **manifest,
        "tensors": {path: format_struct(s) for path, s in structs.items()},
        "files": files,
    }
    return json.dumps(record, indent=1) + "\n"
