# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The keys of adapter files: a prefix, a module of the base model, and the role of the tensor in it.

Layouts: PEFT, diffusers, ai-toolkit and ComfyUI, kohya, OneTrainer, XLabs and USO, LyCORIS (LoRA, LoHa, LoKr, full
differences, norms), DoRA of PEFT and of LyCORIS, and the whole-model adapters of black-forest-labs.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.weights.files.tensors import File, LazyTensor, Sources

_PREFIXES = re.compile(
    r"(base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|unet\.|transformer\."
    r"|lora_unet_|lora_transformer_|lycoris_)*"
)
_TEXT = re.compile(
    r"(base_model\.model\.)?(text_encoders?(_\d)?\.|text_model\.|conditioner\.|cond_stage_model\.|clip_[lg]\."
    r"|t5xxl\.|qwen3?_?\d*b?\.|bundle_emb\.)|lora_(te\d*|text_encoder(_\d)?|clip|t5)_.*"
)
_HALF = r"(?:\.default)?\.weight"
_ROLES = re.compile(
    rf"\.(?:(?P<down>(?:lora_A|lora_down|lora\.down|lora_linear_layer\.down|down){_HALF})"
    rf"|(?P<up>(?:lora_B|lora_up|lora\.up|lora_linear_layer\.up|up){_HALF})"
    rf"|(?P<mid>lora_mid{_HALF})"
    r"|(?P<up_bias>(?:lora_B|lora_up)(?:\.default)?\.bias)"
    r"|(?P<alpha>alpha)"
    r"|(?P<magnitude>dora_scale|(?:lora_)?magnitude(?:_vector)?(?:\.default)?(?:\.weight)?)"
    r"|(?P<diff>diff|w_norm)|(?P<diff_b>diff_b|b_norm)|(?P<value>set_weight)"
    r"|(?P<factor>hada_[wt][12](?:_[ab])?|lokr_w[12](?:_[ab])?|lokr_t2))$"
)
_UNKNOWN = re.compile(r".*\.(?:(?P<OFT>oft_\w+)|(?P<GLoRA>[ab][12])|(?P<IA3>on_input))(?:\.weight)?")
ENDS = r"\.(.*lora.*|(down|up)\.weight|alpha|dora_scale|diff(_b)?|[wb]_norm|set_weight|hada_\w+|lokr_\w+)"
"""Pattern of the ends of adapter keys in all layouts."""


@dataclasses.dataclass
class Module:
    """The tensors of one adapted module by role, LyCORIS' factors by their name."""

    name: str
    keys: list[str]
    tensors: dict[str, LazyTensor]
    alpha: float | None = None
    rank: int | None = None  # that alpha is divided by, where no tensor shows it
    root: bool = False  # alpha is divided by the root of the rank (rsLoRA)

    def scale(self, rank: int | None) -> float:
        """Return what multiplies the product of the factors; `rank` None: they are whole matrices."""
        rank = rank or self.rank
        if self.alpha is None or rank is None:
            return 1.0
        return self.alpha / (math.sqrt(rank) if self.root else rank)


@dataclasses.dataclass
class Parsed:
    """An adapter's file: its modules by name, whole tensors by key, and the keys of text encoders."""

    modules: dict[str, Module]
    values: Sources
    text: list[str]


def parse(found: Sources, files: Sequence[File] = ()) -> Parsed:
    """Sort the tensors of an adapter by module.

    Raises:
      InputError: a tensor is given twice, an alpha is not a number, or the method is none that is known.
    """
    parsed = Parsed({}, {}, [])
    for key, source in found.items():
        if _TEXT.match(key):
            parsed.text.append(key)
            continue
        bare = _PREFIXES.sub("", key, count=1)
        if (match := _ROLES.search(bare)) is None:
            if unknown := _UNKNOWN.fullmatch(key):
                raise InputError(f"it is of the kind {unknown.lastgroup} ({key}), which is not supported; train a LoRA")
            parsed.values[bare] = source
            continue
        role = match.lastgroup if match.lastgroup != "factor" else match["factor"]
        module = parsed.modules.setdefault(name := bare[: match.start()], Module(name, [], {}))
        module.keys.append(key)
        if role == "alpha":
            module.alpha = _number(key, source)
        elif role in module.tensors:
            raise InputError(f"{name} is adapted twice ({key})")
        else:
            module.tensors[role] = source
    for file in files:
        _add_alphas(parsed, file)
    return parsed


def _number(key: str, source: LazyTensor) -> float:
    if math.prod(source.shape) != 1:
        raise InputError(f"{key} has shape {list(source.shape)}, not one number")
    value = float(source.read().reshape(()))
    if not math.isfinite(value):
        raise InputError(f"{key} is {value}, not a finite number")
    return value


def _add_alphas(parsed: Parsed, file: File) -> None:
    """Add alphas that are not tensors: from the file's metadata, or from PEFT's adapter_config.json."""
    config = _peft_config(file)
    for module in parsed.modules.values():
        if module.alpha is not None or not module.keys or module.keys[0] not in file.tensors:
            continue
        alpha = _of_module(config, "alpha_pattern", module.name, config.get("lora_alpha", config.get("alpha")))
        if isinstance(alpha, int | float) and not isinstance(alpha, bool) and math.isfinite(alpha):
            rank = _of_module(config, "rank_pattern", module.name, config.get("r"))
            module.alpha, module.root = float(alpha), config.get("use_rslora") is True
            module.rank = rank if type(rank) is int and rank > 0 else None


def _of_module(config: Mapping[str, Any], field: str, module: str, otherwise: Any) -> Any:
    """Return a module's entry of PEFT's alpha_pattern or rank_pattern, whose keys end module names."""
    patterns = config.get(field)
    for name, value in patterns.items() if isinstance(patterns, dict) else ():
        bare = name.removeprefix("^").removeprefix("transformer.")
        if module == bare or module.endswith(f".{bare}"):
            return value
    return otherwise


def _peft_config(file: File) -> dict[str, Any]:
    if notes := file.metadata.get("lora_adapter_metadata"):
        config = untrusted.json(notes, dict, f"{file.path}: its adapter configuration")
        return {key.removeprefix("transformer."): value for key, value in config.items()}
    beside = file.path.parent / "adapter_config.json"
    if any(key.startswith("base_model.model.") for key in file.tensors) and beside.exists():
        return untrusted.json(beside, dict)
    return {}
