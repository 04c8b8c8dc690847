# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Weights directories: what they hold, how they are read and written."""

from uso_jax.weights.directory import (
    add_sections,
    check_writable,
    components,
    config,
    load,
    load_quantized,
    manifest,
    read,
    record_hashes,
    save,
    shapes,
    tokenizer,
    verify,
)

__all__ = [
    "add_sections",
    "check_writable",
    "components",
    "config",
    "load",
    "load_quantized",
    "manifest",
    "read",
    "record_hashes",
    "save",
    "shapes",
    "tokenizer",
    "verify",
]
