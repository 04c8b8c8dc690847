# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The text of manifest.json, and of the shapes and dtypes in it."""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

import uso_jax
from uso_jax.common import atomic_files, untrusted
from uso_jax.common.errors import InputError
from uso_jax.weights import integrity, quantization
from uso_jax.weights.manifest_configs import check_sections
from uso_jax.weights.safetensors_store import DTYPES

FORMAT = 3
ZARR_FORMAT = 2  # read, no longer written
_NAMES = {dtype.name for dtype in DTYPES}


def parse_struct(text: str) -> jax.ShapeDtypeStruct:
    """Parse `dtype[shape]`, such as "bfloat16[3072,64]".

    Raises:
      ValueError: the text has another form, or the dtype is not one of `safetensors_store.DTYPES`.
    """
    if (match := re.fullmatch(r"(\w+)\[((?:\d+(?:,\d+)*)?)\]", text, re.ASCII)) is None:
        raise ValueError(f"{text!r} is not dtype[shape]")
    if match[1] not in _NAMES:
        raise ValueError(f"the dtype {match[1]} is not one of {', '.join(sorted(_NAMES))}")
    return jax.ShapeDtypeStruct(tuple(map(int, match[2].split(","))) if match[2] else (), jnp.dtype(match[1]))


def format_struct(struct: jax.ShapeDtypeStruct) -> str:
    """Return `dtype[shape]`, which `parse_struct` reads."""
    return f"{struct.dtype}[{','.join(map(str, struct.shape))}]"


def manifest_text(
    component: str,
    structs: Mapping[str, Any],
    manifest: Mapping[str, Any],
    files: Mapping[str, int],
    hashes: Mapping[str, str],
) -> str:
    """Return the text of manifest.json.

    Args:
      component: the folder's name.
      structs: shape and dtype of every parameter.
      manifest: the caller's entries, which take precedence over those derived from the parameters.
      files: size in bytes by name.
      hashes: SHA-256 by name.
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
        "sha256": hashes,
    }
    return _with_hash(record)


def read_manifest(directory: pathlib.Path, component: str) -> dict[str, Any]:
    """Read and check DIR/<component>/manifest.json, see `uso_jax.weights.manifest`.

    Raises:
      InputError: it is damaged or of another format.
    """
    path = directory / component / "manifest.json"
    remedy = f"import the {component} again"
    record = untrusted.json(path, dict[str, Any], f"the manifest {path}", remedy=remedy)
    try:
        if not isinstance(record["format"], int) or record["format"] > FORMAT:
            raise InputError(f"{path}: format {record['format']} is newer than this program knows; update uso_jax")
        if record["format"] < ZARR_FORMAT:
            raise InputError(f"{path}: format {record['format']} is of an older program; import the {component} again")
        if record["component"] != component:
            raise InputError(f"{path} describes {record['component']!r}; the folder must keep the component's name")
        own_hash = integrity.record_hash(record)
        record["config"] = check_sections(record["config"], str(path))
        record["tensors"] = {name: parse_struct(text) for name, text in record["tensors"].items()}
        if (found := record.get("quantization")) is not None:
            found["parameters"] = {name: parse_struct(text) for name, text in found["parameters"].items()}
            for name, struct in found["parameters"].items():
                for part, stored in quantization.stored(name, struct, found["mode"]).items():
                    if record["tensors"][part] != stored:
                        raise ValueError(f"{part} does not have the shape of {name} in {found['mode']}")
        record["files"] = {_inside(name): int(size) for name, size in record["files"].items()}
        if record.setdefault("sha256", {}) and record["sha256"].keys() != record["files"].keys():
            raise ValueError("sha256 does not name the same files as files")
        record["tokenizer"] = {_inside(name): str(digest) for name, digest in record.get("tokenizer", {}).items()}
        record |= {name: kind(record[name]) for name, kind in (("family", str), ("dtype", str), ("parameters", int))}
        _check_dtype(record)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{path} is not a readable manifest ({error}); {remedy}") from error
    return record | {"own_hash": own_hash}


def add_hashes(folder: pathlib.Path, *, tokenizer_only: bool = False) -> None:
    """Write the hashes of a component's files and tokenizer, and of its manifest as it is, into the manifest.

    Raises:
      OSError: a file cannot be read or written.
    """
    path = folder / "manifest.json"
    record = untrusted.json(path, dict[str, Any])
    if not tokenizer_only:
        record["sha256"] = integrity.file_hashes(folder, record["files"])
    record.pop("tokenizer", None)
    if found := integrity.tokenizer_hashes(folder):
        record["tokenizer"] = found
    atomic_files.write_file(path, _with_hash(record))


def _with_hash(record: dict[str, Any]) -> str:
    record["manifest_sha256"] = integrity.record_hash(record)
    return json.dumps(record, indent=1) + "\n"


def _inside(name: str) -> str:
    if pathlib.PurePath(name).is_absolute() or ".." in pathlib.PurePath(name).parts:
        raise ValueError(f"the file {name!r} is not in the component's folder")
    return name


def _check_dtype(record: Mapping[str, Any]) -> None:
    """Raise ValueError if the component's dtype, by which a run chooses its own, is not that of its parameters."""
    before = record["tensors"] | (record.get("quantization") or {}).get("parameters", {})
    scales = {quantization.scale_path(path) for path in (record.get("quantization") or {}).get("parameters", {})}
    kinds = (
        {str(struct.dtype) for path, struct in before.items() if path not in scales},
        {str(struct.dtype) for struct in record["tensors"].values()},
    )
    possible = {next(iter(names)) if len(names) == 1 else "mixed" for names in kinds if names}
    if possible and record["dtype"] not in possible:
        raise ValueError(f"its dtype is {record['dtype']}, but its parameters are {' or '.join(sorted(possible))}")
