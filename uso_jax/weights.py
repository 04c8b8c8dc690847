# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The weights directory: one folder a component, with its parameters in Orbax and a manifest that describes them.

    DIR/<component>/manifest.json   what it is, its sizes, dtypes and sources
    DIR/<component>/params/         an Orbax checkpoint: one flat dict, path -> array

Orbax stores the paths flat, as the one name a parameter has in rules, shardings and manifests: nesting would have to be
undone on every load, and could not tell a list's "0" from a dict's. A folder is written under a temporary name (it
starts with a dot) and renamed when complete, so one that can be seen is whole.
"""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

import uso_jax
from uso_jax.errors import InputError
from uso_jax.models.autoencoder import AutoEncoderConfig
from uso_jax.models.flux import FluxConfig
from uso_jax.models.siglip import SiglipConfig
from uso_jax.models.style import ProjectorConfig
from uso_jax.params import Params

FORMAT = 1
CHUNK_BYTES = 64 * 2**20  # a device reads the chunks of its shard, not the whole stack of layers

Path = str | pathlib.Path
Sections = Mapping[str, Mapping[str, Any]]  # sizes in JSON terms: section -> field -> value


# ---------------------------------------------------------------------------------------------------- sizes

_RUN = {"dtype", "remat", "attention"}  # choices of a run, not facts about weights
_ADAPTERS = {"lora_rank", "lora_scale", "projector"}  # facts about other components
_NEEDS = {"lora": ("hidden_size", "mlp_ratio", "depth", "depth_single_blocks"), "projector": ("hidden_size",)}


def _defaults(config_class, without: set[str]) -> dict[str, Any]:
    return {f.name: f.default for f in dataclasses.fields(config_class) if f.name not in without}


FIELDS: Sections = {  # what a section may say, with defaults: the released sizes
    "flux": _defaults(FluxConfig, _RUN | _ADAPTERS),
    "lora": {"rank": 128, "scale": 1.0},
    "projector": _defaults(ProjectorConfig, _RUN),
    "siglip": _defaults(SiglipConfig, _RUN),
    "autoencoder": _defaults(AutoEncoderConfig, _RUN),
}


def describe(component: str, config: FluxConfig | SiglipConfig | AutoEncoderConfig) -> dict[str, dict]:
    """Give a manifest's `config`: the component's sizes, and those it needs a transformer to have, by section."""
    if component in ("siglip", "autoencoder"):
        return {component: {name: getattr(config, name) for name in FIELDS[component]}}
    flux = {name: getattr(config, name) for name in _NEEDS.get(component, FIELDS["flux"])}
    if component == "lora":
        return {"lora": {"rank": config.lora_rank, "scale": config.lora_scale}, "flux": flux}
    if component == "projector":
        return {"projector": dataclasses.asdict(config.projector), "flux": flux}
    return {"flux": flux}


def check_sections(sections: Any, where: str) -> dict[str, dict]:
    """Check names and types of sizes from JSON and turn lists into tuples.

    Raises:
      InputError: a section or field is unknown, of the wrong type or not positive; `where` names the file.
    """
    checked = {}
    for section, values in _object(sections, where).items():
        if section not in FIELDS:
            raise InputError(f"{where}: unknown section {section!r}; sections are {', '.join(FIELDS)}")
        checked[section] = {}
        for name, value in _object(values, f"{where}: {section}").items():
            if name not in FIELDS[section]:
                known = ", ".join(FIELDS[section])
                raise InputError(f"{where}: unknown key {section}.{name}; {section} may have {known}")
            default = FIELDS[section][name]
            value = tuple(value) if isinstance(value, list) else value
            if isinstance(default, float) and type(value) is int:
                value = float(value)
            items_fit = not isinstance(value, tuple) or all(type(item) is int for item in value)
            if type(value) is not type(default) or not items_fit:
                wanted = "list of integers" if isinstance(default, tuple) else type(default).__name__
                raise InputError(f"{where}: {section}.{name} must be of type {wanted}, not {value!r}")
            if type(value) in (int, float) and value <= 0:
                raise InputError(f"{where}: {section}.{name} must be positive, not {value}")
            checked[section][name] = value
    return checked


def build(model: str, sections: Sections, **changes) -> FluxConfig | SiglipConfig | AutoEncoderConfig:
    """Give the config of "flux", "siglip" or "autoencoder" from its sections, with `changes` such as dtype."""
    try:
        if model == "siglip":
            return SiglipConfig(**(dict(sections["siglip"]) | changes))
        if model == "autoencoder":
            return AutoEncoderConfig(**(dict(sections["autoencoder"]) | changes))
        values = dict(sections["flux"])
        if "lora" in sections:
            lora = {**FIELDS["lora"], **sections["lora"]}
            values |= {"lora_rank": lora["rank"], "lora_scale": lora["scale"]}
        if "projector" in sections:
            values["projector"] = ProjectorConfig(**sections["projector"])
        return FluxConfig(**(values | changes))
    except (ValueError, ArithmeticError) as error:
        raise InputError(f"{model}: {error}") from error


def config(directory: Path, model: str, **changes) -> FluxConfig | SiglipConfig | AutoEncoderConfig:
    """Give the config of a directory's "flux", "siglip" or "autoencoder", with `changes` such as dtype.

    "flux" is the transformer with whichever of lora and projector the directory has.

    Raises:
      InputError: a component is missing, or was made for a transformer of other sizes.
    """
    if model != "flux":
        return build(model, manifest(directory, model)["config"], **changes)
    sections = {name: dict(values) for name, values in manifest(directory, "transformer")["config"].items()}
    for part in _NEEDS:
        if part not in components(directory):
            continue
        for section, values in manifest(directory, part)["config"].items():
            for name, value in values.items():
                if sections.setdefault(section, {}).setdefault(name, value) != value:
                    has = sections[section][name]
                    raise InputError(
                        f"{directory}: {part} was made for a transformer with {name} {value}, this one has {has};"
                        f" import the {part} that belongs to it"
                    )
    return build("flux", sections, **changes)


def split(params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Divide a Flux's parameters, or anything else by path, into transformer, lora and projector."""
    parts: dict[str, dict[str, Any]] = {"transformer": {}}
    for path, value in params.items():
        parts.setdefault(flux_component(path), {})[path] = value
    return parts


def flux_component(path: str) -> str:
    """Name the component that a Flux parameter belongs to."""
    if path.startswith("feature_embedder/"):
        return "projector"
    return "lora" if "/processor/" in path else "transformer"


# ---------------------------------------------------------------------------------------------------- storage


def components(directory: Path) -> list[str]:
    """List the complete components of a weights directory."""
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory} is not a weights directory; make one with: python -m convert import")
    found = (path.parent.name for path in directory.glob("*/manifest.json"))
    return sorted(name for name in found if not name.startswith("."))


def manifest(directory: Path, component: str) -> dict[str, Any]:
    """Read a component's manifest; `config` and `files` are checked, `tensors` become structs.

    Raises:
      InputError: the component is missing, damaged or of a newer format.
    """
    found = components(directory)
    if component not in found:
        raise InputError(f"{directory} has no {component}, only {', '.join(found) or 'nothing'}; import it first")
    path = pathlib.Path(directory, component, "manifest.json")
    try:
        record = _object(json.loads(path.read_text(encoding="utf-8")), str(path))
        if not isinstance(record["format"], int) or record["format"] > FORMAT:
            raise InputError(f"{path}: format {record['format']} is newer than this program knows; update uso_jax")
        if record["component"] != component:
            raise InputError(f"{path} describes {record['component']!r}; the folder must keep the component's name")
        record["config"] = check_sections(record["config"], str(path))
        record["tensors"] = {path: _struct(text) for path, text in record["tensors"].items()}
        record["files"] = {name: int(size) for name, size in record["files"].items()}
        record |= {name: kind(record[name]) for name, kind in (("family", str), ("dtype", str), ("parameters", int))}
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is not a readable manifest ({error}); import the {component} again") from error
    return record


def shapes(directory: Path, component: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Give the shapes and dtypes of a component's parameters as they are stored."""
    return manifest(directory, component)["tensors"]


def check_writable(directory: Path, component: str, overwrite: bool = False) -> None:
    """Refuse a place where `save` could not write, before anything slow is done."""
    directory = pathlib.Path(directory)
    nearest = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"cannot write weights to {directory}: {nearest} is not a writable directory")
    if (directory / component).exists() and not overwrite:
        raise InputError(f"{directory / component} exists; give --overwrite to replace it, or another directory")


def save(
    directory: Path, component: str, params: Mapping[str, Any], manifest: Mapping, overwrite: bool = False
) -> None:
    """Write a component; one process writes.

    Args:
      directory: made if it does not exist.
      component: the folder's name, such as "transformer".
      params: numpy or JAX arrays by path.
      manifest: at least `config`, see `describe`; also `family` and `sources` where there are any. What follows from
        the parameters is added here.
      overwrite: replace the component if it exists.

    Raises:
      InputError: it could not be written; an existing component is untouched.
    """
    check_writable(directory, component, overwrite)
    with _replacing(pathlib.Path(directory).absolute() / component) as folder:
        _quiet()
        chunks = {path: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES) for path in params}
        # Orbax copies numpy arrays lest they change while it writes in the background, which it does not here.
        registry = ocp.type_handlers.create_type_handler_registry(
            (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
            (jax.Array, ocp.type_handlers.ArrayHandler()),
        )
        # Random mantissas hardly compress: 25 % less disk for loading and saving several times as long.
        handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(folder / "params", args=ocp.args.PyTreeSave(dict(params), save_args=chunks))
        dtypes = sorted({str(x.dtype) for x in params.values()})
        record = {
            "format": FORMAT,
            "component": component,
            "family": "",
            "uso_jax": uso_jax.__version__,
            "dtype": dtypes[0] if len(dtypes) == 1 else "mixed",
            "parameters": sum(x.size for x in params.values()),
            "sources": [],
            **manifest,
            "tensors": {path: f"{x.dtype}[{','.join(map(str, x.shape))}]" for path, x in params.items()},
            "files": {
                path.relative_to(folder).as_posix(): path.stat().st_size
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            },
        }
        text = json.dumps(record, indent=1)
        (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")


def load(directory: Path, component: str, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
    """Read a component's parameters, each cast to its struct's dtype and placed as its struct's sharding says.

    Every device reads its own shard only; without a sharding a parameter goes to the default device.

    Raises:
      InputError: the component is missing or damaged, or is not of these shapes.
    """
    where = pathlib.Path(directory).absolute() / component
    record = manifest(directory, component)
    stored = {path: struct.shape for path, struct in record["tensors"].items()}
    found = {
        "missing": sorted(shapes.keys() - stored.keys()),
        "stray": sorted(stored.keys() - shapes.keys()),
        "of wrong shape": [
            f"{path} is {list(stored[path])}, not {list(struct.shape)}"
            for path, struct in shapes.items()
            if path in stored and stored[path] != tuple(struct.shape)
        ],
    }
    if problems := [f"{len(v)} {k} ({', '.join(v[:5])}{', ...' * (len(v) > 5)})" for k, v in found.items() if v]:
        raise InputError(f"{where} does not fit the model: {'; '.join(problems)}; its sizes are in manifest.json")
    for name, size in record["files"].items():
        # A file cut short is a common accident, and TensorStore's report of it is a page long.
        if not (where / name).is_file() or (where / name).stat().st_size != size:
            raise InputError(f"{where / name} is missing or incomplete; import or copy the {component} again")

    default = jax.config.jax_default_device or jax.local_devices()[0]
    default = jax.local_devices(backend=default)[0] if isinstance(default, str) else default
    args = {
        path: ocp.ArrayRestoreArgs(
            dtype=struct.dtype,
            global_shape=tuple(struct.shape),
            sharding=struct.sharding or jax.sharding.SingleDeviceSharding(default),
        )
        for path, struct in shapes.items()
    }
    _quiet()
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(where / "params", args=ocp.args.PyTreeRestore(restore_args=args))
    except Exception as error:  # TensorStore raises bare Exceptions
        reason = str(error).splitlines()[0][:200]
        raise InputError(f"{where} cannot be read ({reason}); import or copy the {component} again") from error


@contextlib.contextmanager
def _replacing(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Give a temporary folder that takes `target`'s place on success and leaves nothing behind on failure."""
    temporary, old = (target.with_name(f".{target.name}-{os.getpid()}.{end}") for end in ("tmp", "old"))
    made = [path for path in target.parents if not path.exists()]
    done = False
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        done = True
    except (OSError, ValueError, RuntimeError) as error:
        # TensorStore reports a full disk as ValueError; whatever the reason, the remedy is the user's.
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0][:200]
        raise InputError(f"cannot write {target}: {reason}; free some space or choose another directory") from error
    finally:
        if not done:
            shutil.rmtree(temporary, ignore_errors=True)
            if old.exists():
                old.rename(target)
            for path in made:
                with contextlib.suppress(OSError):
                    path.rmdir()
        shutil.rmtree(old, ignore_errors=True)


def _struct(text: str) -> jax.ShapeDtypeStruct:
    if (match := re.fullmatch(r"(\w+)\[((?:\d+(?:,\d+)*)?)\]", text)) is None:
        raise ValueError(f"{text!r} is not dtype[shape]")
    return jax.ShapeDtypeStruct(tuple(map(int, match[2].split(","))) if match[2] else (), jnp.dtype(match[1]))


def _object(value: Any, where: str) -> dict:
    if not isinstance(value, dict):
        raise InputError(f"{where} must be a JSON object, not {type(value).__name__}")
    return value


def _quiet() -> None:
    # Orbax reports every save and every missing optional file.
    logging.getLogger("absl").setLevel(logging.ERROR)
