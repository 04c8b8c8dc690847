# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The sizes of networks in JSON terms: what manifests and `--config` files say, and the configs they become.

Sections are named by component, except that "flux" is the transformer's, with "lora" and "projector" for what USO adds.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from uso_jax.common.errors import InputError
from uso_jax.common.json_files import object_
from uso_jax.models.autoencoder import AutoEncoderConfig
from uso_jax.models.clip import ClipConfig, ClipTextConfig, ClipVisionConfig
from uso_jax.models.dino import DinoConfig
from uso_jax.models.drawing_classifier import DrawingClassifierConfig
from uso_jax.models.flux import FluxConfig
from uso_jax.models.image_reward import BertConfig, ImageRewardConfig
from uso_jax.models.inception import InceptionConfig
from uso_jax.models.perceptual_backbones import VggConfig
from uso_jax.models.projector import ProjectorConfig
from uso_jax.models.siglip import SiglipConfig, SiglipTextConfig
from uso_jax.models.t5 import T5Config

Sections = Mapping[str, Mapping[str, Any]]  # section -> field -> value

NETWORKS: Mapping[str, type] = {  # components with a section of their own name
    "siglip": SiglipConfig,
    "siglip_text": SiglipTextConfig,
    "autoencoder": AutoEncoderConfig,
    "t5": T5Config,
    "clip": ClipTextConfig,
    "csd": ClipVisionConfig,
    "judge": DrawingClassifierConfig,
    "dino": DinoConfig,
    "dinov2": DinoConfig,
    "vgg": VggConfig,
    "inception": InceptionConfig,
}
PARTS: Mapping[str, Mapping[str, tuple[str, type]]] = {  # components of several sections: section -> field, class
    "clip_model": {"clip_vision": ("vision", ClipVisionConfig), "clip_text": ("text", ClipTextConfig)},
    "image_reward": {"image_reward_vision": ("vision", DinoConfig), "image_reward_text": ("text", BertConfig)},
}
_WHOLE = {"clip_model": ClipConfig, "image_reward": ImageRewardConfig}
NEEDS = {  # what adapters need of the transformer
    "lora": ("hidden_size", "mlp_ratio", "depth", "depth_single_blocks"),
    "projector": ("hidden_size",),
}

_RUN = {"dtype", "remat", "attention"}  # choices of a run, not facts about weights
_ADAPTERS = {"lora_rank", "lora_scale", "projector"}  # facts about other components


def _defaults(config_class, without: set[str]) -> dict[str, Any]:
    return {f.name: f.default for f in dataclasses.fields(config_class) if f.name not in without}


FIELDS: Sections = {  # what a section may say, with defaults: the released sizes
    "flux": _defaults(FluxConfig, _RUN | _ADAPTERS),
    "lora": {"rank": 128, "scale": 1.0},
    "projector": _defaults(ProjectorConfig, _RUN),
    **{name: _defaults(config_class, _RUN) for name, config_class in NETWORKS.items()},
    **{name: _defaults(part, _RUN) for parts in PARTS.values() for name, (_, part) in parts.items()},
}


def describe(component: str, config: Any) -> dict[str, dict]:
    """Give a manifest's `config`: the component's sizes, and those it needs a transformer to have, by section."""
    if component in NETWORKS:
        return {component: {name: getattr(config, name) for name in FIELDS[component]}}
    if component in PARTS:
        parts = {section: getattr(config, field) for section, (field, _) in PARTS[component].items()}
        return {name: {field: getattr(part, field) for field in FIELDS[name]} for name, part in parts.items()}
    flux = {name: getattr(config, name) for name in NEEDS.get(component, FIELDS["flux"])}
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
    for section, values in object_(sections, where).items():
        if section not in FIELDS:
            raise InputError(f"{where}: unknown section {section!r}; sections are {', '.join(FIELDS)}")
        checked[section] = {}
        for name, value in object_(values, f"{where}: {section}").items():
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
            if type(value) in (int, float) and value <= 0 and default != 0 and name != "shift_factor":
                raise InputError(f"{where}: {section}.{name} must be positive, not {value}")
            checked[section][name] = value
    return checked


def build(model: str, sections: Sections, **changes) -> Any:
    """Give the config of "flux" or of a component with sections of its own, with `changes` such as dtype."""
    try:
        if model in NETWORKS:
            return NETWORKS[model](**(dict(sections[model]) | changes))
        if model in PARTS:
            parts = PARTS[model].items()
            return _WHOLE[model](**{field: part(**(dict(sections[name]) | changes)) for name, (field, part) in parts})
        values = dict(sections["flux"])
        if "lora" in sections:
            lora = {**FIELDS["lora"], **sections["lora"]}
            values |= {"lora_rank": lora["rank"], "lora_scale": lora["scale"]}
        if "projector" in sections:
            values["projector"] = ProjectorConfig(**sections["projector"])
        return FluxConfig(**(values | changes))
    except (ValueError, ArithmeticError, TypeError) as error:
        raise InputError(f"{model}: {error}") from error
