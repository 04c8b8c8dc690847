# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Components trained by a run, read from its checkpoint WORKDIR/checkpoints/STEP without any other weights."""

import pathlib
from typing import Any, NotRequired, TypedDict

import numpy as np

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.models.components import ADAPTERS, COMPONENTS, by_component, section_fields
from uso_jax.models.families import FAMILIES, Family
from uso_jax.weights import manifest_configs
from uso_jax.weights.parts import Part


class _Transformer(TypedDict):
    lora_rank: NotRequired[int | None]
    lora_scale: NotRequired[float]
    lora_rules: NotRequired[list]


class _System(TypedDict):
    transformer: _Transformer
    text: NotRequired[dict[str, Any]]
    family: NotRequired[str]


class _Config(TypedDict):
    system: _System


class _Record(TypedDict):
    """What an export reads of a checkpoint's record."""

    config: _Config


def is_training(directory: str | pathlib.Path) -> bool:
    """Return whether a folder is the --workdir of a training, or one of its checkpoints."""
    return _step(pathlib.Path(directory)) is not None


def record_file(directory: str | pathlib.Path) -> pathlib.Path:
    """Return the JSON record of a training's last checkpoint, or of the one that is given."""
    return _step(pathlib.Path(directory).absolute()) / "record" / "metadata"


def open_training(directory: str | pathlib.Path, average: bool | None) -> dict[str, Part]:
    """Return the components that a run trained, from its last checkpoint or the one that is given.

    Args:
      directory: the training's --workdir, or WORKDIR/checkpoints/STEP.
      average: True: the moving average of the parameters; False: the last parameters; None: the average if any.

    Raises:
      InputError: the checkpoint cannot be read or has no average.
    """
    import orbax.checkpoint as ocp  # slow to import, which weights directories do not need

    step = _step(pathlib.Path(directory).absolute())
    try:
        record = untrusted.json(record_file(step), _Record, remedy="export another checkpoint")
        system = record["config"]["system"]
        family = _family(system)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.metadata(step / "arrays").item_metadata.tree
            has_average = bool(tree.get("ema"))
            if average and not has_average:
                raise InputError(f"{step} has no average of its parameters; export them --raw")
            # Parameters that earlier stages trained have no average in this one.
            wanted = {"params": tree["params"]} | ({"ema": tree["ema"]} if has_average and average is not False else {})
            args = {
                name: {path: ocp.RestoreArgs(restore_type=np.ndarray) for path in paths}
                for name, paths in wanted.items()
            }
            restore = ocp.args.PyTreeRestore(item=wanted, restore_args=args, partial_restore=True)
            arrays = checkpointer.restore(step / "arrays", args=restore)
    except InputError:
        raise
    except Exception as error:  # TensorStore raises bare Exceptions
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{step} cannot be read as a training's checkpoint: {reason}") from error
    params = {**arrays["params"], **arrays.get("ema", {})}
    parts = {
        component: {inner: np.asarray(params[path]) for inner, path in paths.items()}
        for component, paths in by_component(params).items()
    }
    sections = _sections(system, family)

    def keys(component: str) -> list[str]:
        if component == "transformer" or component in ADAPTERS:
            return [family.transformer, component]
        return [family.autoencoder if component == COMPONENTS[family.autoencoder].folder else component]

    return {
        name: Part(found, {key: sections[key] for key in keys(name) if key in sections})
        for name, found in parts.items()
    }


def _family(system: dict) -> Family:
    """Return the run's base model."""
    name = system.get("family", next(iter(FAMILIES)))
    if name not in FAMILIES:
        raise InputError(f"this run is of the base model {name!r}, which this version does not know")
    return FAMILIES[name]


def _sections(system: dict, family: Family) -> manifest_configs.Sections:
    if (encoder := system.get("style_encoder", "siglip")) != "siglip" and not family.takes_references:
        raise InputError(
            f"this run encodes style images with the {encoder}, which no other program supports; it cannot be exported"
        )
    transformer = system["transformer"]
    fields = section_fields()[family.transformer]
    sections = {family.transformer: {name: transformer[name] for name in fields if name in transformer}}
    if transformer.get("lora_rank"):
        sections["lora"] = {"rank": transformer["lora_rank"], "scale": float(transformer.get("lora_scale", 1.0))}
        if transformer.get("lora_rules"):
            sections["lora"]["rules"] = transformer["lora_rules"]
    if transformer.get("projector"):
        sections["projector"] = transformer["projector"]
    text = system.get("text", {})
    networks = {name: system.get(name) or text.get(name) for name, row in COMPONENTS.items() if not row.sections}
    networks["autoencoder"] = None
    networks[family.autoencoder] = system.get("autoencoder")
    for name, values in networks.items():
        if values:
            values = untrusted.require_object(values, f"the checkpoint's configuration of the {name}")
            sections[name] = {key: value for key, value in values.items() if key in section_fields()[name]}
    return manifest_configs.check_sections(sections, "the checkpoint's configuration")


def _step(directory: pathlib.Path) -> pathlib.Path | None:
    """Return the folder of the last checkpoint, or None if there is none."""
    if (directory / "arrays").is_dir() and (directory / "record").is_dir():
        return directory
    folder = directory / "checkpoints" if (directory / "checkpoints").is_dir() else directory
    try:
        steps = [path for path in folder.iterdir() if path.name.isdigit() and (path / "arrays").is_dir()]
    except OSError:
        return None
    return max(steps, key=lambda path: int(path.name), default=None)
