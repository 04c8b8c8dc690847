# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Export components of a weights directory or a training checkpoint in the layouts of other programs.

An adapter's scale is multiplied into its `up`, because these layouts have no place for it.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from uso_jax import weights
from uso_jax.common import progress
from uso_jax.common.errors import InputError
from uso_jax.models.components import section_fields
from uso_jax.weights.adapters.names import ADAPTED, adapter_sizes
from uso_jax.weights.files import safetensors_file
from uso_jax.weights.parts import Part
from uso_jax.weights.tables.table import expand

from . import layouts
from .layouts import Family
from .tables import lora_out

# ---------------------------------------------------------------------------------------------------- what is written


@dataclasses.dataclass
class Output:
    """One file to write: its name in a folder, its tensors by key, text files to write beside it, and its metadata."""

    name: str
    title: str
    layout: dict[str, tuple[np.dtype, tuple[int, ...]]]
    tensor: Callable[[str], np.ndarray]
    beside: Mapping[str, str] = dataclasses.field(default_factory=dict)
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    component: str = ""


def native_output(part: Part, component: str) -> Output:
    """Describe a component under the names it was imported from, by default those of its first family."""
    family = layouts.export_family(component, part.family)
    if family.component == "lora":
        family = layouts.family_by_name("uso-lora")  # adapters of other layouts were converted to this one
        return _plain(f"{component}.safetensors", family, _scaled(part), family.prefixes[0])
    prefix = family.prefixes[0] if part.prefix is None or family.name != part.family else part.prefix
    return _plain(f"{component}.safetensors", family, part, prefix)


def uso_outputs(parts: Mapping[str, Part]) -> list[Output]:
    """Describe adapters and projector as upstream releases them, which ComfyUI also recognises."""
    outputs = []
    if "lora" in parts:
        outputs.append(_plain("dit_lora.safetensors", layouts.family_by_name("uso-lora"), _scaled(parts["lora"])))
    if "projector" in parts:
        if (kind := parts["projector"].config["projector"].get("kind", "hierarchical")) != "hierarchical":
            raise InputError(
                f"the projector is of kind {kind!r}, which upstream does not have; export a hierarchical one"
            )
        outputs.append(_plain("projector.safetensors", layouts.family_by_name("uso-projector"), parts["projector"]))
    return outputs


def adapter_output(part: Part, layout: str) -> Output:
    """Describe adapters for diffusers' `load_lora_weights`, as a PEFT adapter, or by ComfyUI's or kohya's names.

    Args:
      part: the adapters.
      layout: "diffusers", "peft", "comfy" (ai-toolkit's too) or "kohya".
    """
    second, part = "flux2" in part.config, _scaled(part)
    if layout in ("comfy", "kohya"):
        family = dataclasses.replace(
            layouts.family_by_name(f"{layout}-lora"), rows=lora_out.bfl_rows(kohya=layout == "kohya")
        )
        name = "lora_kohya.safetensors" if layout == "kohya" else "lora.safetensors"
        output = _plain(name, family, _with_unadapted(part))
        return _with_alphas(output) if layout == "kohya" else output
    rows = lora_out.peft_rows_flux2 if second else lora_out.peft_rows
    part = _with_unadapted(part) if second else part
    if layout == "diffusers":
        family = dataclasses.replace(layouts.family_by_name("diffusers-lora"), rows=rows("transformer."))
        return _plain("pytorch_lora_weights.safetensors", family, part)
    family = dataclasses.replace(layouts.family_by_name("diffusers-lora"), rows=rows("base_model.model."))
    output = _plain("adapter_model.safetensors", family, part)
    rank, ending = part.config["lora"]["rank"], ".lora_A.weight"
    ranks = {
        key.removeprefix("base_model.model.").removesuffix(ending): shape[0]
        for key, (_, shape) in output.layout.items()
        if key.endswith(ending)
    }
    others = {module: found for module, found in ranks.items() if found != rank}  # the scale is part of the numbers
    config = {
        "peft_type": "LORA", "r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "bias": "none",
        "target_modules": lora_out.TARGETS, "inference_mode": True, "base_model_name_or_path": None, "task_type": None,
        **({"rank_pattern": others, "alpha_pattern": others} if others else {}),
    }  # fmt: skip
    output.beside = {"adapter_config.json": json.dumps(config, indent=2) + "\n"}
    return output


def _with_alphas(output: Output) -> Output:
    """Add kohya's alphas, which are the ranks: without them programs differ in what they assume."""
    ending = ".lora_down.weight"
    ranks = {
        key.replace(ending, ".alpha"): shape[0] for key, (_, shape) in output.layout.items() if key.endswith(ending)
    }
    layout = {**output.layout, **dict.fromkeys(ranks, (np.dtype(np.float32), ()))}
    tensor = lambda key: np.asarray(ranks[key], np.float32) if key in ranks else output.tensor(key)
    return dataclasses.replace(output, layout=layout, tensor=tensor)


def transformer_output(parts: Mapping[str, Part], diffusers: bool, merge: bool) -> Output:
    """Describe the transformer, with the adapters added to its weights if `merge`."""
    part = parts["transformer"]
    if merge:
        sections = {name: dict(values) for name, values in part.config.items()}
        weights.add_sections(sections, parts["lora"].config, "the lora")
        part = _merged(part, _scaled(parts["lora"]))
    base = "flux2" if "flux2" in part.config else "flux"
    if not diffusers:
        return _plain("transformer.safetensors", layouts.family_by_name(base), part)
    output = _plain("diffusion_pytorch_model.safetensors", layouts.family_by_name(f"{base}-diffusers"), part)
    config = _DIFFUSERS_CONFIGS[base](part.config[base])
    output.beside = {"config.json": json.dumps(config, indent=2) + "\n"}
    return output


def autoencoder_output(part: Part, diffusers: bool) -> Output:
    """Describe the autoencoder."""
    second = "autoencoder2" in part.config
    base, section = ("flux2", "autoencoder2") if second else ("flux", "autoencoder")
    if not diffusers:
        return _plain("ae.safetensors", layouts.family_by_name(f"{base}-ae"), part)
    c = {**section_fields()[section], **part.config[section]}
    levels = len(c["ch_mult"])
    # FLUX.1's latents are scaled; FLUX.2's pass two more convolutions and a batch norm.
    own = {"patch_size": [2, 2], "batch_norm_eps": 1e-4} if second else {
        "scaling_factor": c["scale_factor"], "shift_factor": c["shift_factor"], "force_upcast": True,
    }  # fmt: skip
    config = {
        "_class_name": "AutoencoderKLFlux2" if second else "AutoencoderKL",
        "in_channels": c["in_channels"], "out_channels": c["out_ch"],
        "latent_channels": c["z_channels"], "block_out_channels": [c["ch"] * mult for mult in c["ch_mult"]],
        "layers_per_block": c["num_res_blocks"], "norm_num_groups": c["norm_groups"],
        "down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_quant_conv": second, "use_post_quant_conv": second, "mid_block_add_attention": True,
        **own,
    }  # fmt: skip
    output = _plain("diffusion_pytorch_model.safetensors", layouts.family_by_name(f"{base}-ae-diffusers"), part)
    output.beside = {"config.json": json.dumps(config, indent=2) + "\n"}
    return output


def _diffusers_config(flux: Mapping) -> dict:
    c = {**section_fields()["flux"], **flux}
    if c["mlp_ratio"] != 4 or not c["qkv_bias"]:
        raise InputError(
            "diffusers' FluxTransformer2DModel only supports an mlp_ratio of 4 and qkv with bias; export --format bfl"
        )
    return {
        "_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": c["in_channels"],
        "num_layers": c["depth"], "num_single_layers": c["depth_single_blocks"],
        "attention_head_dim": c["hidden_size"] // c["num_heads"], "num_attention_heads": c["num_heads"],
        "joint_attention_dim": c["context_in_dim"], "pooled_projection_dim": c["vec_in_dim"],
        "guidance_embeds": c["guidance_embed"], "axes_dims_rope": list(c["axes_dim"]),
    }  # fmt: skip


def _diffusers_config_flux2(flux2: Mapping) -> dict:
    c = {**section_fields()["flux2"], **flux2}
    return {
        "_class_name": "Flux2Transformer2DModel", "patch_size": 1, "in_channels": c["in_channels"],
        "num_layers": c["depth"], "num_single_layers": c["depth_single_blocks"],
        "attention_head_dim": c["hidden_size"] // c["num_heads"], "num_attention_heads": c["num_heads"],
        "joint_attention_dim": c["context_in_dim"], "mlp_ratio": c["mlp_ratio"],
        "axes_dims_rope": list(c["axes_dim"]), "rope_theta": c["theta"], "guidance_embeds": c["guidance_embed"],
    }  # fmt: skip


_DIFFUSERS_CONFIGS = {"flux": _diffusers_config, "flux2": _diffusers_config_flux2}


def _plain(name: str, family: Family, part: Part, prefix: str = "") -> Output:
    shapes = part.shapes
    try:
        entries = expand(family.rows, shapes)
    except AssertionError as error:
        raise InputError(f"these weights cannot be written as {family.title}: {error}") from error
    dtypes = {key: np.dtype(shapes[entry.pieces[0].path].dtype) for key, entry in entries.items()}
    layout = {f"{prefix}{key}": (dtypes[key], entry.shape) for key, entry in entries.items()}
    title = f"{family.title}, dequantised from {part.quantised}" if part.quantised else family.title
    read = lambda key: entries[key[len(prefix) :]].join(part.params)
    return Output(name, title, layout, read, component=family.component)


# ---------------------------------------------------------------------------------------------------- arithmetic


class _Computed:
    """A parameter that is computed from others when it is indexed."""

    def __init__(self, base, rows: Callable[[slice | int], np.ndarray]):
        self.shape, self.dtype, self._rows = base.shape, base.dtype, rows

    def __getitem__(self, row: int) -> np.ndarray:
        return self._rows(row)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.stack([self._rows(row) for row in range(self.shape[0])])


def _scaled(part: Part) -> Part:
    """Return adapters with their scale multiplied into `up`."""

    def up(x, scale: float):
        return _Computed(x, lambda row: (np.asarray(x[row], np.float32) * np.float32(scale)).astype(x.dtype))

    params = dict(part.params)
    for adapter, sizes in adapter_sizes(part.config["lora"]).items():
        if sizes.scale != 1 and (path := f"{adapter}/up/kernel") in params:
            params[path] = up(params[path], sizes.scale)
    return dataclasses.replace(part, params=params)


def _with_unadapted(part: Part) -> Part:
    """Return adapters with zeros for the rows of single blocks' fused layer that no adapter changes."""
    up = part.params["single_blocks/processor/qkv_lora/up/kernel"]
    layers, rank, rows = up.shape
    base = "flux2" if "flux2" in part.config else "flux"
    width = int(part.config[base]["mlp_ratio"] * (rows // 3)) * (2 if base == "flux2" else 1)  # FLUX.2's is gated
    zeros = np.broadcast_to(np.zeros((), up.dtype), (layers, rank, width))
    return dataclasses.replace(part, params={**part.params, f"{lora_out.UNADAPTED}/up/kernel": zeros})


def _merged(part: Part, adapters: Part) -> Part:
    """Return a transformer with adapters added to the weights they adapt, in float32."""

    def merged(base, down, up):
        def row(i):
            delta = np.asarray(down[i], np.float32) @ np.asarray(up[i], np.float32)
            return (np.asarray(base[i], np.float32) + delta).astype(base.dtype)

        return _Computed(base, row)

    params = dict(part.params)
    for adapter, module in ADAPTED.items():
        if f"{adapter}/down/kernel" in adapters.params:
            halves = (adapters.params[f"{adapter}/{half}/kernel"] for half in ("down", "up"))
            params[f"{module}/kernel"] = merged(params[f"{module}/kernel"], *halves)
    return dataclasses.replace(part, params=params)


# ---------------------------------------------------------------------------------------------------- files


def write_output(output: Output, path: pathlib.Path, dtype: np.dtype | None, bar: progress.Bar) -> None:
    """Write one file, each tensor cast to `dtype` if there is one.

    Raises:
      InputError: the file could not be written; an existing one is untouched.
    """
    # Wide dtypes first, so that every tensor starts at a multiple of its item size.
    order = sorted(output.layout, key=lambda key: -(dtype or output.layout[key][0]).itemsize)
    layout = {key: (dtype or output.layout[key][0], output.layout[key][1]) for key in order}

    def tensors() -> Iterator[np.ndarray]:
        for key in order:
            with np.errstate(over="ignore"):
                yield output.tensor(key).astype(layout[key][0], copy=False)
            bar.update(math.prod(layout[key][1]) * layout[key][0].itemsize)

    safetensors_file.write_safetensors(path, layout, tensors(), {"format": "pt", **output.metadata})
