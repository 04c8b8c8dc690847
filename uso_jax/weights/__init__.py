# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Weights directories: what they hold, how they are read and written."""

from uso_jax.weights.directory import (
    FIELDS,
    Sections,
    StoredArray,
    Writer,
    build,
    by_component,
    check_sections,
    check_writable,
    component_of,
    components,
    config,
    describe,
    flux_component,
    load,
    load_quantized,
    manifest,
    read,
    save,
    shapes,
    split,
    tokenizer,
)

__all__ = [
    "FIELDS", "Sections", "StoredArray", "Writer", "build", "by_component", "check_sections", "check_writable",
    "component_of", "components", "config", "describe", "flux_component", "load", "load_quantized", "manifest",
    "read", "save", "shapes", "split", "tokenizer",
]  # fmt: skip
