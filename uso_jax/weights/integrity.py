# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Bytes that changed since a component was written: the SHA-256 of its files, its tokenizer and its manifest.

Files of up to ALWAYS bytes are compared whenever a component is read, larger ones by `verify`, which takes about a
second for a gigabyte. Components written before manifests had hashes are read without them.
"""

import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from uso_jax.common import folders, progress
from uso_jax.common.errors import InputError

ALWAYS = 64 * 2**20
_BLOCK = 2**22
_THREADS = 4  # hashlib releases the interpreter's lock


def file_hash(file: pathlib.Path, shown: progress.Bar | None = None) -> str:
    """Return the SHA-256 of a file in hexadecimal digits; `shown` counts its bytes.

    Raises:
      OSError: the file cannot be read.
    """
    digest, block = hashlib.sha256(), memoryview(bytearray(_BLOCK))
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(block):
            digest.update(block[:count])
            if shown is not None:
                shown.update(count)
    return digest.hexdigest()


def file_hashes(folder: pathlib.Path, names: Iterable[str], shown: progress.Bar | None = None) -> dict[str, str]:
    """Return the SHA-256 of several files of a folder, by name."""
    names = list(names)
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: file_hash(folder / name, shown), names), strict=True))


def tokenizer_of(folder: pathlib.Path) -> pathlib.Path:
    """Return the folder of the tokenizer of a component's folder; it need not exist."""
    return folder.with_name(f"tokenizer_{folder.name}")


def tokenizer_hashes(folder: pathlib.Path) -> dict[str, str]:
    """Return the SHA-256 of the files of a component's tokenizer, by name; without a tokenizer there are none."""
    tokenizer = tokenizer_of(folder)
    found = sorted(path.name for path in tokenizer.iterdir() if path.is_file()) if tokenizer.is_dir() else []
    return file_hashes(tokenizer, (name for name in found if not folders.is_clutter(name)))


def record_hash(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest's entries but `manifest_sha256`, which holds it."""
    kept = {name: value for name, value in record.items() if name != "manifest_sha256"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def check_files(folder: pathlib.Path, record: Mapping[str, Any], *, whole: bool = False) -> None:
    """Compare sizes and hashes of a component's files with its manifest.

    Args:
      folder: DIR/<component>.
      record: its manifest (`manifest_text.read_manifest`).
      whole: compare files of more than ALWAYS bytes too.

    Raises:
      InputError: a file is missing or incomplete, or has other bytes; the message names it.
    """
    remedy = f"import or copy the {record['component']} again"
    try:
        for name, size in record["files"].items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != size:
                raise InputError(f"{folder / name} is missing or incomplete; {remedy}")
        known = record.get("sha256", {})
        chosen = {name: record["files"][name] for name in known if whole or record["files"][name] <= ALWAYS}
        with progress.bar(
            total=sum(chosen.values()), desc=f"verifying the {record['component']}", unit="B", leave=False
        ) as shown:
            found = file_hashes(folder, chosen, shown)
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error}); {remedy}") from error
    if changed := [name for name, digest in found.items() if known[name] != digest]:
        raise InputError(
            f"{folder / changed[0]} cannot be read (its bytes have changed: its SHA-256 is not that of the manifest);"
            f" {remedy}"
        )
    _check_tokenizer(folder, record)
    if record.get("manifest_sha256", record["own_hash"]) != record["own_hash"]:
        raise InputError(
            f"{folder / 'manifest.json'} has changed since it was written; {remedy}, or, if you changed it on purpose,"
            f" record it: uso-convert verify {folder.parent} --record"
        )


def _check_tokenizer(folder: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Compare the tokenizer with the manifest, where both are there: a name in the hub's cache serves as well."""
    known, tokenizer = record.get("tokenizer", {}), tokenizer_of(folder)
    if not known or not tokenizer.is_dir():
        return
    remedy = f"copy it again, or, if you changed it on purpose, record it: uso-convert verify {folder.parent} --record"
    try:
        changed = [name for name, digest in known.items() if file_hash(tokenizer / name) != digest]
    except OSError as error:
        raise InputError(f"{error.filename or tokenizer} cannot be read ({error.strerror}); {remedy}") from error
    if changed:
        raise InputError(f"{tokenizer / changed[0]} has changed since it was imported; {remedy}")


def count_not_finite(numbers: np.ndarray) -> int:
    """Return how many numbers are NaN or infinite."""
    whole = numbers.dtype.kind in "iub" or numbers.dtype.name == "int4"
    return 0 if whole else numbers.size - int(np.count_nonzero(np.isfinite(numbers)))


def not_finite(folder: pathlib.Path, counts: Mapping[str, int]) -> InputError:
    """Return the error about parameters of a component's folder that have such numbers, by path."""
    some = ", ".join(list(counts)[:3]) + ", ..." * (len(counts) > 3)
    return InputError(
        f"{folder}: {sum(counts.values()):,} numbers are NaN or infinite, in {some}; import the {folder.name} again,"
        " from a file without them and in a dtype that holds its numbers"
    )
