# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Download public checkpoints by short names with huggingface_hub: its cache, its login, its HF_HUB_OFFLINE.

Only this command uses the network; everything else works on local paths. An interrupted download resumes when the same
command is run again.
"""

import argparse
import json
import pathlib
from collections.abc import Callable

from uso_jax.common.errors import InputError
from uso_jax.weights import quantization

from . import COMMAND, recipes
from .recipes import RECIPES
from .releases import RELEASES, Release


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    listed = "; ".join(f"{name} ({release.repo}, {release.licence})" for name, release in RELEASES.items())
    made = "; ".join(f"{name} ({', '.join(parts)})" for name, parts in RECIPES.items())
    parser.epilog = f"recipes, with --to: {made}. Names: {listed}"
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"a recipe ({', '.join(RECIPES)}), or a name below")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of the repository")
    parser.add_argument("--to", metavar="DIR", help="also import the files into this weights directory")
    parser.add_argument(
        "--quantize",
        choices=quantization.FORMATS,
        metavar="MODE",
        help="with --to: int8, fp8 or int4 for large networks",
    )
    parser.add_argument("--files", metavar="DIR", help="with --to: use files of this folder where it has them")


def main(import_files: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Fetch releases; import them, or print where they are and how to import them.

    Args:
      import_files: the command `import`.
      args: of the command line.
    """
    for name in args.names:
        if name not in RELEASES and name not in RECIPES:
            raise InputError(f"{name!r} is not a release; releases are {', '.join((*RECIPES, *RELEASES))}")
    if args.to:
        source = pathlib.Path(args.files) if args.files else None
        if source is not None and not source.is_dir():
            raise InputError(f"--files {source} is not a folder")
        bring = lambda release: fetch(release, args.revision)
        recipes.install(args.names, pathlib.Path(args.to), bring, import_files, quantize=args.quantize, source=source)
        return
    for name in (part for given in args.names for part in RECIPES.get(given, (given,))):
        release = RELEASES[name]
        folder = fetch(release, args.revision)
        files = " ".join(map(str, recipes.files(folder, release)))
        only = f"--component {release.only} " if release.only else ""
        print(f"{name}: {folder}")
        print(f"  {COMMAND} import {only}{files} --to weights")
        if release.defaults:
            print(f"  how these weights are sampled, for weights/pipeline.json: {json.dumps(dict(release.defaults))}")


def fetch(release: Release, revision: str | None = None, snapshot: Callable | None = None) -> pathlib.Path:
    """Download a release's files into the hub's cache and return their folder.

    Args:
      release: what to fetch.
      revision: branch, tag or commit.
      snapshot: replaces huggingface_hub.snapshot_download in tests.

    Raises:
      InputError: no access, no network, or a file is missing from the repository.
    """
    import huggingface_hub  # slow to import
    from huggingface_hub import errors

    snapshot = snapshot or huggingface_hub.snapshot_download
    page = f"https://huggingface.co/{release.repo}"
    try:
        folder = pathlib.Path(snapshot(release.repo, revision=revision, allow_patterns=list(release.files)))
    except errors.GatedRepoError as error:
        raise InputError(f"{release.repo} is gated; accept its licence at {page}, then run: hf auth login") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise InputError(f"{page} does not exist at this revision, or needs a login: hf auth login") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise InputError(
            f"{release.repo} is not in the hub's cache and cannot be reached; unset HF_HUB_OFFLINE or check the network"
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{release.repo} could not be fetched ({reason[:200]}); run the same command to resume"
        ) from error
    if gone := [name for name in release.files if not any(folder.glob(name)) and name in _needed(release)]:
        raise InputError(f"{page} has no {', '.join(gone)}; pass another --revision")
    return folder


def _needed(release: Release) -> set[str]:
    """Return the files that must be there; which files describe a tokenizer differs between repositories."""
    must = (".safetensors", ".bin", ".model", "tokenizer.json", "tokenizer_config.json")
    return {name for name in release.files if name.endswith(must)} | set(release.imported)
