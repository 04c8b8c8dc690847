# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Fit an adapter to a base model: everything it changes there, or one sentence about what it is for."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax

from uso_jax.common.errors import InputError
from uso_jax.weights.adapters import keys
from uso_jax.weights.adapters.changes import Change, changes_of, value_of
from uso_jax.weights.adapters.names import Names
from uso_jax.weights.files.tensors import File, Sources

TITLES = {"flux": "FLUX.1", "flux2": "FLUX.2"}
# Modules that only other models have, by what an adapter with them is for. The first that matches names the adapter.
_STRANGERS = (
    ("Stable Diffusion or SDXL", r".*(input|output|middle|down|up|mid)_block.*"),
    ("Stable Diffusion 3", r"joint_blocks[._].*"),
    ("Qwen-Image", r"transformer_blocks[._]\d+[._](img|txt)_(mlp|mod)[._].*"),
    ("Wan", r"blocks[._]\d+[._](self|cross)_attn[._].*"),
    ("Hunyuan Video", r"double_blocks\.\d+\.(img|txt)_attn_(qkv|proj)|.*individual_token_refiner.*"),
    ("LTX Video", r"transformer_blocks[._]\d+[._]attn[12][._].*"),
    ("Z-Image or Lumina", r"(layers|noise_refiner|context_refiner)[._]\d+[._].*"),
    ("Chroma", r"distilled_guidance_layer[._].*"),
)


@dataclass(frozen=True)
class Base:
    """What an adapter must fit.

    Attributes:
      section: of the transformer, "flux" or "flux2".
      shapes: its parameters, without adapters and projector.
      names: of them in files.
    """

    section: str
    shapes: Mapping[str, jax.ShapeDtypeStruct]
    names: Names

    @classmethod
    def of(cls, section: str, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> "Base":
        """Return the base of these parameters."""
        return cls(section, shapes, Names(section, shapes))


def fit(found: Sources, files: Sequence[File], base: Base, where: str) -> tuple[list[Change], list[str]]:
    """Return the changes of an adapter in a base, and notes about what is left out; only headers are read.

    Raises:
      InputError: the adapter fits nothing of the base, or a part of it does not fit.
    """
    try:
        parsed = keys.parse(found, files)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    shapes = {key: entry.shape for key, entry in base.names.entries.items()}
    changes: list[Change] = []
    unknown: dict[str, str] = {}  # module -> why it does not fit
    absent = []
    for name, module in parsed.modules.items():
        weight, bias = base.names.key(name), base.names.key(name, "bias")
        if weight is None and bias is None:
            if base.section == "flux" and re.match(r"(time_text_embed[._])?guidance_(in|embedder)[._]", name):
                absent.append(name)
            else:
                unknown[name] = f"{name} is no module of the base"
            continue
        try:
            changes += changes_of(module, shapes, weight, bias)
        except InputError as error:
            unknown[name] = str(error)
    for key, tensor in parsed.values.items():
        if (own := base.names.tensor(key)) is None:
            unknown[key] = f"{key} is no tensor of the base"
            continue
        try:
            changes.append(value_of(own, tensor, shapes[own]))
        except InputError as error:
            unknown[key] = str(error)
    if unknown or not changes:
        raise InputError(f"{where}: {_misfit(parsed, unknown, bool(changes), base)}")
    notes = []
    if parsed.text:
        notes.append(f"{where} also changes text encoders ({len(parsed.text)} tensors), which is left out")
    if absent:
        notes.append(f"{where} also changes {absent[0]} and the like, which a base without guidance does not have")
    return changes, notes


def _misfit(parsed: keys.Parsed, unknown: Mapping[str, str], some_fit: bool, base: Base) -> str:
    title, first = TITLES[base.section], next(iter(unknown.values()), "")
    names = [*parsed.modules, *parsed.values]
    if not names:
        return "it changes text encoders only, which adapters of this project do not" if parsed.text else "it is empty"
    if any(re.match(r"(img_in|x_embedder)($|\.)", name) for name in unknown) and "no module" not in first:
        return "it is a control adapter (Canny, Depth or the like), whose base takes another input; it cannot be used"
    if not some_fit or all("no module" in why or "no tensor" in why for why in unknown.values()):
        if any(name.startswith("feature_embedder.") for name in names):
            return "it is a style projector; pass it as --projector"
        for stranger, pattern in _STRANGERS:
            if any(re.fullmatch(pattern, name) for name in unknown):
                return f"it is an adapter for {stranger}, not for {title}; take one that was trained for {title}"
    other = next(name for name in TITLES if name != base.section)
    if _is_other(parsed, base.section):
        return f"it is an adapter for {TITLES[other]}, and the base is {title}; take one that was trained for it"
    many = f" ({len(unknown)} modules do not fit)" if len(unknown) > 1 else ""
    if "the base" not in first:
        return f"{first}{many}"
    return f"it does not fit the base, which is {title}: {first}{many}; take an adapter of a base of this size"


def _is_other(parsed: keys.Parsed, section: str) -> bool:
    """Return whether modules are those of the other family: by names that only it has, or by the width of its MLPs."""
    second = r"(double_stream|single_stream|time_guidance_embed|.*to_qkv_mlp_proj|.*linear_(in|out)$).*"
    first = (
        r"(vector_in|time_text_embed|.*(img|txt)_mod[._]|.*norm1(_context)?[._]linear|.*proj_mlp"
        r"|single_transformer_blocks[._]\d+[._](proj_out|attn[._]to_q$)|.*ff(_context)?[._]net).*"
    )
    if any(re.fullmatch(second if section == "flux" else first, name) for name in [*parsed.modules, *parsed.values]):
        return True
    for name, module in parsed.modules.items():
        down, up = module.tensors.get("down"), module.tensors.get("up")
        if down and up and re.fullmatch(r"single.*(linear2|proj_out|proj_lora|attn[._]to_out)", name):
            return down.shape[1] == up.shape[0] * (4 if section == "flux" else 5)
    return False
