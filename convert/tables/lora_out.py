# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Tables for writing USO's adapters in the layouts of other programs, of FLUX.1 and of FLUX.2."""

from uso_jax.weights.adapters.names import ADAPTED
from uso_jax.weights.tables import flux
from uso_jax.weights.tables.table import DENSE, Row

UNADAPTED = "single_blocks/processor/mlp_lora"  # zeros: the rows of a fused layer that no adapter changes
_QKV = ("to_q", "to_k", "to_v")  # of the image stream, and of single blocks
_ADDED_QKV = ("add_q_proj", "add_k_proj", "add_v_proj")
_FUSED = (
    ("transformer_blocks.{i}.attn", _QKV, "double_blocks/processor/qkv_lora1"),
    ("transformer_blocks.{i}.attn", _ADDED_QKV, "double_blocks/processor/qkv_lora2"),
)
_WHOLE = (
    ("transformer_blocks.{i}.attn.to_out.0", "double_blocks/processor/proj_lora1"),
    ("transformer_blocks.{i}.attn.to_add_out", "double_blocks/processor/proj_lora2"),
)


def peft_rows(prefix: str) -> tuple[Row, ...]:
    """Return the table for writing adapters in PEFT's layout: q, k and v each with the whole `down`."""
    fused = (*_FUSED, ("single_transformer_blocks.{i}.attn", _QKV, "single_blocks/processor/qkv_lora"))
    whole = (*_WHOLE, ("single_transformer_blocks.{i}.proj_out", "single_blocks/processor/proj_lora"))
    return _peft_rows(prefix, fused, whole)


def peft_rows_flux2(prefix: str) -> tuple[Row, ...]:
    """Return the table for FLUX.2, whose single blocks have one layer for q, k, v and the MLP (`UNADAPTED`)."""
    single, adapter = f"{prefix}single_transformer_blocks.{{i}}.attn", "single_blocks/processor/qkv_lora"
    return (
        *_peft_rows(
            prefix,
            _FUSED,
            (*_WHOLE, ("single_transformer_blocks.{i}.attn.to_out", "single_blocks/processor/proj_lora")),
        ),
        (f"{single}.to_qkv_mlp_proj.lora_A", f"{adapter}/down", DENSE),
        (f"{single}.to_qkv_mlp_proj.lora_B", (f"{adapter}/up", f"{UNADAPTED}/up"), DENSE),
    )


def _peft_rows(prefix: str, fused, whole) -> tuple[Row, ...]:
    rows: list[Row] = []
    for block, names, adapter in fused:
        rows += [(f"{prefix}{block}.{name}.lora_A", f"{adapter}/down", DENSE) for name in names]
        rows.append((tuple(f"{prefix}{block}.{name}.lora_B" for name in names), f"{adapter}/up", DENSE))
    for module, adapter in whole:
        rows += [
            (f"{prefix}{module}.lora_A", f"{adapter}/down", DENSE),
            (f"{prefix}{module}.lora_B", f"{adapter}/up", DENSE),
        ]
    return tuple(rows)


def bfl_rows(kohya: bool = False) -> tuple[Row, ...]:
    """Return the table for black-forest-labs' names as ai-toolkit and ComfyUI write them, or as kohya does.

    `linear1` of single blocks is whole there, so its `up` has rows of zeros for the MLP (`UNADAPTED`).
    """
    modules = {}
    for names, parameters, _ in flux.TRANSFORMER:
        modules[parameters if isinstance(parameters, str) else parameters[0]] = names
    rows: list[Row] = []
    for adapter, parameter in ADAPTED.items():
        up = f"{adapter}/up"
        module = (
            f"lora_unet_{modules[parameter]}".replace(".", "_") if kohya else f"diffusion_model.{modules[parameter]}"
        )
        down_name, up_name = ("lora_down", "lora_up") if kohya else ("lora_A", "lora_B")
        rows.append((f"{module}.{down_name}", f"{adapter}/down", DENSE))
        rows.append((f"{module}.{up_name}", (up, f"{UNADAPTED}/up") if "linear1" in parameter else up, DENSE))
    return tuple(rows)


TARGETS = (
    r"(single_)?transformer_blocks\.\d+\.attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)"
    r"|single_transformer_blocks\.\d+\.(proj_out|attn\.(to_qkv_mlp_proj|to_out))"
)
"""The adapted modules as a regular expression in diffusers' names, for PEFT's adapter_config.json."""
