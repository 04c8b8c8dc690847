# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Download public checkpoints by short names with huggingface_hub: its cache, its login, its HF_HUB_OFFLINE.

Only this command uses the network; everything else works on local paths. An interrupted download resumes when the same
command is run again.
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from uso_jax.common.errors import InputError
from uso_jax.models.flux2 import SAMPLING

from . import COMMAND


@dataclass(frozen=True)
class Release:
    """A repository of the hub, and the files of it that are needed."""

    repo: str
    files: tuple[str, ...]  # names, or patterns where the number of shards is not known
    licence: str
    weights: tuple[str, ...] = ()  # files to import, if not all .safetensors of `files`
    options: str = ""  # of the import
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # for pipeline.json of a weights directory

    @property
    def imported(self) -> tuple[str, ...]:
        return self.weights or tuple(name for name in self.files if name.endswith(".safetensors"))


_DEV = "FLUX.1 [dev] non-commercial"
_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "config.json")
_KLEIN = (
    "transformer/diffusion_pytorch_model*.safetensors", "vae/diffusion_pytorch_model*.safetensors",
    "text_encoder/model*.safetensors", "tokenizer/tokenizer.json", "tokenizer/vocab.json", "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json", "tokenizer/added_tokens.json",
    "tokenizer/chat_template.jinja",
)  # fmt: skip
# fmt: off
RELEASES = {
    "flux-dev":     Release("black-forest-labs/FLUX.1-dev", ("flux1-dev.safetensors",), _DEV),
    "flux-schnell": Release("black-forest-labs/FLUX.1-schnell", ("flux1-schnell.safetensors",), "Apache-2.0"),
    "flux-krea":    Release("black-forest-labs/FLUX.1-Krea-dev", ("flux1-krea-dev.safetensors",), _DEV),
    "flux-dev-fp8": Release("Comfy-Org/flux1-dev", ("flux1-dev-fp8.safetensors",), _DEV),
    "autoencoder":  Release("black-forest-labs/FLUX.1-schnell", ("ae.safetensors",), "Apache-2.0"),
    "uso":          Release("bytedance-research/USO",
                            tuple(f"uso_flux_v1.0/{x}.safetensors" for x in ("dit_lora", "projector")), "Apache-2.0"),
    "siglip":       Release("google/siglip-so400m-patch14-384",
                            ("model.safetensors", "preprocessor_config.json", "config.json"), "Apache-2.0"),
    "t5":           Release("xlabs-ai/xflux_text_encoders",
                            ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                             "model.safetensors.index.json", "spiece.model", *_TOKENIZER), "Apache-2.0",
                            weights=("model.safetensors.index.json",)),
    "clip":         Release("openai/clip-vit-large-patch14",
                            ("model.safetensors", "tokenizer.json", "vocab.json", "merges.txt", *_TOKENIZER), "MIT"),
    "clip-metric":  Release("openai/clip-vit-base-patch32",
                            ("model.safetensors", "preprocessor_config.json", "tokenizer.json", "vocab.json",
                             "merges.txt", *_TOKENIZER), "MIT", options="--component clip_model "),
    "csd":          Release("yuxi-liu-wired/CSD", ("model.safetensors",), "MIT"),
    "dino":         Release("facebook/dino-vits16", ("pytorch_model.bin", "preprocessor_config.json"), "Apache-2.0",
                            weights=("pytorch_model.bin",)),
    "dinov2":       Release("facebook/dinov2-base", ("model.safetensors", "preprocessor_config.json"), "Apache-2.0"),
    "klein-4b":     Release("black-forest-labs/FLUX.2-klein-4B", _KLEIN, "Apache-2.0",
                            defaults=SAMPLING["klein-4b"]),
    "klein-base-4b": Release("black-forest-labs/FLUX.2-klein-base-4B", _KLEIN, "Apache-2.0",
                            defaults=SAMPLING["klein-base-4b"]),
    "klein-9b":     Release("black-forest-labs/FLUX.2-klein-9B", _KLEIN, "FLUX non-commercial",
                            defaults=SAMPLING["klein-9b"]),
}
# fmt: on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    listed = "; ".join(f"{name} ({release.repo}, {release.licence})" for name, release in RELEASES.items())
    parser.epilog = f"names: {listed}"
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"one of {', '.join(RELEASES)}")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of the repository")


def main(args: argparse.Namespace) -> None:
    """Fetch releases and print where they are and how to import them."""
    for name in args.names:
        if name not in RELEASES:
            raise InputError(f"{name!r} is not a release; releases are {', '.join(RELEASES)}")
    for name in args.names:
        release = RELEASES[name]
        folder = fetch(release, args.revision)
        files = " ".join(str(file) for pattern in release.imported for file in sorted(folder.glob(pattern)))
        print(f"{name}: {folder}")
        print(f"  {COMMAND} import {release.options}{files} --to weights")
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
