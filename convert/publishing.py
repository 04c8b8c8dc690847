# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What tells others about an adapter: notes in its file, a model card with sample images, and a place on the hub."""

import argparse
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from uso_jax.common import atomic_files, untrusted
from uso_jax.common.errors import InputError
from uso_jax.weights import training_runs
from uso_jax.weights.parts import Part

CARD, SAMPLES = "README.md", "samples.png"
_BASES = {  # section of the transformer -> architecture of modelspec, version of kohya's trainer, repository, licence
    "flux": ("flux-1-dev/lora", "flux1", "black-forest-labs/FLUX.1-dev", "other"),
    "flux2": ("flux-2-klein/lora", "flux2", "black-forest-labs/FLUX.2-klein-base-4B", "apache-2.0"),
}


class _Stage(TypedDict):
    name: str
    steps: int
    batch_size: NotRequired[int]
    learning_rate: NotRequired[float]
    optimizer: NotRequired[str]
    target_size: NotRequired[list[int]]


class _Settings(TypedDict):
    seed: NotRequired[int]
    weights: NotRequired[str]
    stages: list[_Stage]


class _Done(TypedDict):
    name: str
    heldout_loss_before: NotRequired[float | None]
    heldout_loss_after: NotRequired[float | None]


class _Record(TypedDict):
    config: _Settings
    stages: NotRequired[list[_Done]]


def notes(directory: str | pathlib.Path, adapter: Part) -> dict[str, str]:
    """Return the metadata of an adapter's file, as modelspec and kohya's trainer name it.

    Args:
      directory: a training's --workdir, or a checkpoint of it.
      adapter: the component `lora`.
    """
    architecture, version, base, _ = _base(adapter.config)
    rank = "Dynamic" if adapter.config["lora"].get("rules") else adapter.config["lora"]["rank"]  # kohya's word
    found: dict[str, Any] = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.title": pathlib.Path(directory).resolve().name,
        "modelspec.implementation": f"https://huggingface.co/{base}",
        "ss_base_model_version": version,
        "ss_network_dim": rank,
        "ss_network_alpha": rank,  # the scale is part of the numbers
    }
    record = _record(directory)
    last = record["config"]["stages"][-1]
    found |= {
        "ss_steps": sum(stage["steps"] for stage in record["config"]["stages"]),
        "ss_seed": record["config"].get("seed"),
        "ss_learning_rate": last.get("learning_rate"),
        "ss_optimizer": last.get("optimizer"),
        "ss_total_batch_size": last.get("batch_size"),
    }
    if "target_size" in last:
        height, width = last["target_size"]
        found |= {"ss_resolution": f"({width}, {height})", "modelspec.resolution": f"{width}x{height}"}
    return {key: str(value) for key, value in found.items() if value is not None}


def _base(config: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return next((facts for name, facts in _BASES.items() if name in config), _BASES["flux"])


def _record(directory: str | pathlib.Path) -> _Record:
    return untrusted.json(training_runs.record_file(directory), _Record, remedy="export another checkpoint")


# ---------------------------------------------------------------------------------------------------- model card


def add_card_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command `card`."""
    parser.add_argument("directory", metavar="WORKDIR", help="a training's --workdir")
    parser.add_argument("--to", required=True, metavar="DIR", help="folder of the exported files")
    parser.add_argument("--prompt", metavar="TEXT", help="words that bring the adapter out, such as a trigger word")
    parser.add_argument("--overwrite", action="store_true", help="replace a card that exists")


def card(args: argparse.Namespace) -> None:
    """Write a model card of a training, with its settings and last samples, beside exported files."""
    workdir, to = pathlib.Path(args.directory), pathlib.Path(args.to)
    if not training_runs.is_training(workdir):
        raise InputError(f"{workdir} is not a training's --workdir")
    if not (files := sorted(to.glob("*.safetensors"))):
        raise InputError(f"{to} holds no safetensors file; export there first: uso-convert export {workdir} --to {to}")
    if (to / CARD).exists() and not args.overwrite:
        raise InputError(f"{to / CARD} exists already; pass --overwrite to replace it")
    parts = training_runs.open_training(workdir, None)
    if "lora" not in parts:
        raise InputError(f"{workdir} did not train a lora, only {', '.join(sorted(parts))}")
    samples = sorted((workdir / "samples").glob("[0-9]*.png"))[-1:]
    text = _text(workdir, parts["lora"], [file.name for file in files], args.prompt or "", bool(samples))
    with atomic_files.explained(to, "choose another place with --to"):
        for image in samples:
            shutil.copyfile(image, to / SAMPLES)
        atomic_files.write_file(to / CARD, text.encode())
    print(f"{to / CARD}")


def _text(workdir: pathlib.Path, adapter: Part, files: list[str], prompt: str, samples: bool) -> str:
    *_, base, licence = _base(adapter.config)
    record, name = _record(workdir), workdir.resolve().name
    losses = {stage["name"]: stage for stage in record.get("stages", [])}
    lines = ["---", f"base_model: {base}", f"license: {licence}", "tags: [lora, flux, uso, style-transfer]"]
    lines += [f'instance_prompt: "{untrusted.printable(prompt)}"'] if prompt else []
    lines += ["library_name: diffusers", "---", "", f"# {name}", ""]
    lines += [f"A LoRA of rank {adapter.config['lora']['rank']} for {base}, trained with uso_jax.", ""]
    lines += [f"![content, style, generated, target]({SAMPLES})", ""] if samples else []
    lines += [f"Words that bring it out: {prompt}", ""] if prompt else []
    lines += ["| stage | steps | batch | learning rate | held-out loss before | after |", "|---|---|---|---|---|---|"]
    for stage in record["config"]["stages"]:
        done = losses.get(stage["name"], {})
        before, after = (done.get(f"heldout_loss_{when}") for when in ("before", "after"))
        cells = [stage["name"], stage["steps"], stage.get("batch_size", ""), stage.get("learning_rate", "")]
        cells += [f"{loss:.4f}" if loss is not None else "" for loss in (before, after)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "Files: " + ", ".join(f"`{file}`" for file in files) + ".", ""]
    lines += ["```bash", f'uso-generate --weights WEIGHTS --lora {files[0]} --prompt "{prompt}"', "```", ""]
    lines += ["The adapter has the licence of its base model, and that of the images it was trained on.", ""]
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------- the hub


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command `push`."""
    parser.add_argument("directory", metavar="DIR", help="folder of exported files and their card")
    parser.add_argument(
        "repository", metavar="OWNER/NAME", help="model repository of the hub; made if it does not exist"
    )
    parser.add_argument("--public", action="store_true", help="make a new repository public (default: private)")


def push(args: argparse.Namespace) -> None:
    """Upload exported files and their model card to the hub."""
    import huggingface_hub  # slow to import
    from huggingface_hub import errors

    folder = pathlib.Path(args.directory)
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder} holds no safetensors file; make it with uso-convert export")
    if not (folder / CARD).exists():
        raise InputError(f"{folder} has no {CARD}; write one: uso-convert card WORKDIR --to {folder}")
    if args.repository.count("/") != 1:
        raise InputError(f"{args.repository!r} must be OWNER/NAME")
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(args.repository, private=not args.public, exist_ok=True)
        patterns = ["*.safetensors", CARD, SAMPLES, "adapter_config.json"]
        api.upload_folder(repo_id=args.repository, folder_path=folder, allow_patterns=patterns)
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{args.repository} could not be written ({reason[:200]}); log in: hf auth login") from error
    print(f"https://huggingface.co/{args.repository}")
