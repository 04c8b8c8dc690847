# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Texts about configurations: the page of --help, and what a mistyped setting may have meant."""

import collections
import dataclasses
import difflib
import inspect
import runpy
import sys
import textwrap
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from absl import flags

from uso_jax.common import config_files, schema

WIDTH = 80
ALIASES = {  # names in other trainers
    "lr": "learning_rate",
    "bs": "batch_size",
    "batch": "batch_size",
    "epochs": "steps",
    "num_epochs": "steps",
    "iterations": "steps",
    "max_steps": "steps",
    "warmup": "warmup_steps",
    "wd": "weight_decay",
    "grad_clip": "clip_norm",
    "max_grad_norm": "clip_norm",
    "grad_accum": "accumulate",
    "gradient_accumulation": "accumulate",
    "gradient_accumulation_steps": "accumulate",
    "ema": "ema_decay",
    "lr_scheduler": "decay",
    "scheduler": "decay",
    "schedule": "decay",
    "timestep_type": "timesteps",
    "timestep_sampling": "timesteps",
    "weighting_scheme": "loss_weight",
    "snr_gamma": "min_snr_gamma",
    "resolution": "target_size",
    "rank": "lora_rank",
    "dataset": "source",
    "checkpoint_every": "every",
    "save_every": "every",
}
_NOTES = dict.fromkeys(("epochs", "num_epochs"), "there are no epochs, training counts steps")


def unknown(path: str, config: Any) -> str:
    """Return the sentence for a setting that a configuration lacks, with the settings it may have meant."""
    run = getattr(config, "run", ())
    # The stages that run are meant, where the path names no other one.
    idle = {name for name in getattr(config, "stages", {}) if run and name not in run and f"stages.{name}." not in path}
    paths = [field.path for field in schema.fields(config)]
    paths = [known for known in paths if not (known.startswith("stages.") and known.split(".")[1] in idle)]
    last, section = path.rpartition(".")[2], _section(path, config)
    siblings = {known.removeprefix(f"{section}."): known for known in paths if f".{known}".startswith(f".{section}")}
    wanted = (last, ALIASES.get(last, last))
    found = _named(wanted, siblings.values()) or _named(wanted, paths)
    if not found:
        close = difflib.get_close_matches(last, [name for name in siblings if "." not in name], 1, cutoff=0.6)
        found = [siblings[name] for name in close] or difflib.get_close_matches(path, paths, 1, cutoff=0)
    note = f"; {_NOTES[last]}" if last in _NOTES else ""
    return (
        f"there is no setting --config.{path}{note}; did you mean {' or '.join(f'--config.{name}' for name in found)}?"
    )


def unknown_flag(name: str, config: Any) -> str | None:
    """Return the sentence for a flag that a command lacks, if it is the name of a setting or of one elsewhere."""
    last = name.replace("-", "_").removeprefix("no")
    if last not in ALIASES and not any(field.path.rpartition(".")[2] == last for field in schema.fields(config)):
        return None
    return unknown(last, config).replace(f"no setting --config.{last}", f"no flag --{name}", 1)


def _named(names: Collection[str], paths: Collection[str]) -> list[str]:
    """Return at most three paths that end in one of the names: those of stages, or else the shortest."""
    found = [path for path in paths if path.rpartition(".")[2] in names]
    found = [path for path in found if path.startswith("stages.")] or found
    depth = min((path.count(".") for path in found), default=0)
    return [path for path in found if path.count(".") == depth][:3]


def _section(path: str, config: Any) -> str:
    """Return the longest beginning of a path that names a section."""
    known = []
    for name in path.split(".")[:-1]:
        if not schema.is_section(config) or name not in schema.children(config):
            break
        config = schema.children(config)[name][0]
        known.append(name)
    return ".".join(known)


def text(file: str, config: Any, command: str) -> str:
    """Return the page of --help: flags of the command, variants of the file, and settings of the chosen variant.

    Args:
      file: FILE[:VARIANT].
      config: its configuration.
      command: name of the module that defines the command's flags.
    """
    name = file.partition(":")[0]
    page = inspect.cleandoc(sys.modules[command].__doc__ or "")
    lines = [*(_wrapped("", line) if len(line) > WIDTH else line for line in page.splitlines()), "", "Flags:", ""]
    about = f"Configuration FILE[:VARIANT] of the list below; default {config_files.DEFAULT}."
    lines += ["  --config = " + repr(file), _wrapped(" " * 6, about)]
    lines += ["  --config.SETTING=VALUE", _wrapped(" " * 6, "Change a setting; all are listed below.")]
    for flag in _flags(command):
        lines += [f"  --{flag.name} = {flag.default!r}", _wrapped(" " * 6, flag.help)]
    lines += ["", f"Variants of {name}, as --config {name}:VARIANT:", ""]
    variants = runpy.run_path(config_files.find(name)).get("VARIANTS", {})
    width = max(map(len, variants), default=0) + 4
    lines += [_wrapped(f"  {variant}".ljust(width), described, width) for variant, described in variants.items()]
    lines += ["", f"Settings of {file}, as --config.SETTING=VALUE; * stands for each name:"]
    sections, before = {_general(path, config): doc for path, doc in _sections(config)}, None
    for path, value, doc in settings(config):
        if (section := path.rpartition(".")[0]) != before:
            lines += ["", *([_wrapped("", f"{section}: {sections[section]}")] if sections.get(section) else [])]
            before = section
        lines += [_wrapped(f"  {path} = ", value), *([_wrapped(" " * 6, doc)] if doc else [])]
    return "\n".join(lines)


def _wrapped(start: str, words: str, indent: int = 6) -> str:
    return textwrap.fill(words, WIDTH, initial_indent=start, subsequent_indent=" " * indent, break_on_hyphens=False)


def _flags(command: str) -> Iterator[flags.Flag]:
    """Yield the flags of a command, without those of libraries and --config itself."""
    for module, found in flags.FLAGS.flags_by_module_dict().items():
        if module == (sys.argv[0] if command == "__main__" else command) or module.startswith("uso_jax."):
            yield from (flag for flag in found if not flag.name.startswith("config"))


def _sections(config: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield path and document of every section."""
    for name, (value, _) in schema.children(config).items():
        if schema.is_section(value):
            inner = f"{path}.{name}".lstrip(".")
            if dataclasses.is_dataclass(config):
                yield inner, schema.docs(type(config))[name]
            elif dataclasses.is_dataclass(value):
                yield inner, inspect.getdoc(type(value)).splitlines()[0]
            yield from _sections(value, inner)


def settings(config: Any) -> Iterator[tuple[str, str, str]]:
    """Yield path, value and document of every setting; settings that items share, such as stages, come once."""
    groups: dict[str, list[schema.Field]] = collections.defaultdict(list)
    for field in schema.fields(config):
        groups[_general(field.path, config)].append(field)
    for path, fields in groups.items():
        values = collections.defaultdict(list)
        for field in fields:
            name = field.path.split(".")[path.split(".").index("*")] if "*" in path else ""
            values[repr(field.value)].append(name)
        words = [f"{value} ({', '.join(names)})" for value, names in values.items()] if len(values) > 1 else values
        yield path, textwrap.shorten(", ".join(words), 2 * WIDTH), fields[0].doc


def _general(path: str, config: Any) -> str:
    """Return a path with * in place of the name of an item, if all items are sections, or if many are equal."""
    names = []
    for name in path.split("."):
        items = [value for value, _ in schema.children(config).values()] if isinstance(config, Mapping) else []
        alike = all(map(schema.is_section, items)) or (len(items) > 4 and all(item == items[0] for item in items))
        names.append("*" if items and alike else name)
        config = schema.children(config)[name][0]
    return ".".join(names)
