# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Make a weights directory with everything that a recipe needs, from the hub or from files that are there already."""

import argparse
import fnmatch
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from uso_jax import weights
from uso_jax.common import atomic_files
from uso_jax.common.errors import InputError

from .releases import RELEASES, Release

RECIPES = {  # recipe -> releases; the names of configurations that need them
    "flux_dev": ("flux-dev", "autoencoder", "t5", "clip", "siglip", "uso"),
    "flux_dev_rewards": ("flux-dev", "autoencoder", "t5", "clip", "siglip", "uso", "csd", "clip-metric"),
    "klein": ("klein-base-4b", "siglip"),
    "klein_fast": ("klein-4b",),
}
_GIB = 2**30
_SPARE = 1.05  # of the bytes that files need, for a disk's blocks
Fetch = Callable[[Release], pathlib.Path]


def install(
    names: Sequence[str],
    to: pathlib.Path,
    fetch: Fetch,
    import_files: Callable[[argparse.Namespace], None],
    *,
    quantize: str | None = None,
    source: pathlib.Path | None = None,
) -> None:
    """Fetch and import what a weights directory lacks, after saying what that takes.

    Args:
      names: recipes and releases.
      to: the weights directory; components that it has are kept.
      fetch: returns the folder of a release's files.
      import_files: the command `import`.
      quantize: format of transformer and text encoders.
      source: a folder in which files are looked for before they are fetched.

    Raises:
      InputError: releases cannot be fetched, all of which are named, or there is too little space; nothing is imported.
    """
    releases = {name: RELEASES[name] for recipe in names for name in RECIPES.get(recipe, (recipe,))}
    have = set(weights.components(to)) if to.is_dir() else set()
    missing = {name: release for name, release in releases.items() if not have.issuperset(release.components)}
    for name in releases.keys() - missing.keys():
        print(f"{name}: {', '.join(releases[name].components)} are in {to}")
    found = {name: _there(source, release) for name, release in missing.items()} if source else {}
    _announce(missing, {name for name, local in found.items() if local}, to, quantize)
    folders, errors = {}, []
    for name, release in missing.items():
        try:
            folders[name] = found.get(name) or files(fetch(release), release)
        except InputError as error:
            errors.append(f"{name}: {error}")
    if errors:
        raise InputError(f"{len(errors)} of {len(missing)} parts cannot be fetched: {'; '.join(errors)}")
    for name, paths in folders.items():
        big = quantize if releases[name].large else None
        options = dict(component=releases[name].only, config=None, dtype="keep", pad_ranks=False, overwrite=False)
        import_files(argparse.Namespace(files=[str(path) for path in paths], to=str(to), quantize=big, **options))
        if releases[name].defaults:
            _write_defaults(to / "pipeline.json", releases[name].defaults)
    print(f"{to} is complete: {', '.join(sorted(weights.components(to)))}")


def _announce(missing: Mapping[str, Release], local: set[str], to: pathlib.Path, quantize: str | None) -> None:
    """Print what will be fetched and written, and raise InputError if the disks have too little space for it."""
    if not missing:
        return
    print(f"{'part':<15}{'GiB':>7}  {'from':<42}licence")
    for name, release in missing.items():
        print(f"{name:<15}{release.gib:>7.1f}  {'local files' if name in local else release.repo:<42}{release.licence}")
    fetched = sum(release.gib for name, release in missing.items() if name not in local)
    bits = {None: 1.0, "int8": 0.51, "fp8": 0.51, "int4": 0.28}
    written = sum(release.gib * bits[quantize if release.large else None] for release in missing.values())
    print(
        f"{fetched:.1f} GiB to download, {written:.1f} GiB to write to {to}; importing takes less than 2 GiB of memory"
    )
    needs: dict[int, list] = {}
    for folder, gib in ((_hub_cache(), fetched), (to.absolute(), written)):
        while not folder.exists():
            folder = folder.parent
        one = needs.setdefault(os.stat(folder).st_dev, [folder, 0.0])
        one[1] += gib * _SPARE
    for folder, gib in needs.values():
        if (free := shutil.disk_usage(folder).free / _GIB) < gib:
            raise InputError(
                f"the disk of {folder} has {free:.1f} GiB free, and {gib:.1f} are needed: make room, use another --to,"
                " set HF_HOME to another disk, or --quantize int8"
            )


def _hub_cache() -> pathlib.Path:
    from huggingface_hub import constants  # slow to import

    return pathlib.Path(constants.HF_HUB_CACHE)


def _there(folder: pathlib.Path | None, release: Release) -> list[pathlib.Path]:
    """Return the files to import if a folder has all of them, under their path in the repository or their name."""
    have = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    found = []
    for pattern in release.imported:
        for wanted in (pattern, f"{release.repo.rpartition('/')[2]}/{pattern}", pattern.rpartition("/")[2]):
            if matching := [path for name, path in have.items() if fnmatch.fnmatch(name, wanted)]:
                found += matching
                break
        else:
            return []
    return found


def files(folder: pathlib.Path, release: Release) -> list[pathlib.Path]:
    """Return the files to import of a fetched release."""
    return [file for pattern in release.imported for file in sorted(folder.glob(pattern))]


def _write_defaults(path: pathlib.Path, defaults: Mapping[str, Any]) -> None:
    """Write how a directory's weights are sampled, unless it says so already."""
    if not path.exists():
        atomic_files.write_file(path, (json.dumps(dict(defaults), indent=2) + "\n").encode())
