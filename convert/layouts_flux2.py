# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The checkpoint files of FLUX.2; adapters and projectors have the names of FLUX.1's (convert.layouts)."""

from collections.abc import Mapping, Sequence

from uso_jax.weights.tables import flux2

from .family import Family
from .tables import qwen3
from .tables.autoencoder import AUTOENCODER2, AUTOENCODER2_DIFFUSERS
from .tables.infer_sizes import Size, at_most, ch_mult, count, dim, has, known, ratio

# fmt: off
COMFY = ("", "model.diffusion_model.", "diffusion_model.")  # bare, in a full checkpoint, and saved by its tools
VAE = ("", "vae.", "first_stage_model.")
_IN_FULL = tuple(f"{start}qwen3_{size}b.transformer.model." for start in ("text_encoders.", "") for size in (4, 8))
AE = (r"encoder\.down\.(\d+)\.", "encoder.down.{}.block.0.conv1.weight", r"encoder\.down\.0\.block\.(\d+)\.")
AE_DIFFUSERS = (
    r"encoder\.down_blocks\.(\d+)\.", "encoder.down_blocks.{}.resnets.0.conv1.weight",
    r"encoder\.down_blocks\.0\.resnets\.(\d+)\.",
)


def autoencoder_sizes(section: str, levels: str, conv: str, blocks: str) -> dict[str, dict[str, Size]]:
    """Return how an autoencoder's sizes follow from tensor shapes; the arguments are patterns of the layout's names."""
    return {section: {
        "in_channels":    dim("encoder.conv_in.weight", 1),
        "ch":             dim("encoder.conv_in.weight", 0),
        "out_ch":         dim("decoder.conv_out.weight", 0),
        "ch_mult":        ch_mult(levels, conv),
        "num_res_blocks": count(blocks),
        "z_channels":     dim("decoder.conv_in.weight", 1),
    }}


def _flux2_sizes(width: Size, head: Size, keys: Mapping[str, str], blocks: Sequence[str]) -> dict[str, dict[str, Size]]:
    return {"flux2": {
        "in_channels":         dim(keys["img_in"], 1),
        "context_in_dim":      dim(keys["txt_in"], 1),
        "hidden_size":         width,
        "mlp_ratio":           ratio(dim(keys["mlp"], 1), width),
        "num_heads":           ratio(width, head, whole=True),
        "depth":               count(rf"{blocks[0]}\.(\d+)\."),
        "depth_single_blocks": count(rf"{blocks[1]}\.(\d+)\."),
        "axes_dim":            known(head, {128: (32, 32, 32, 32)}),
        "guidance_embed":      has(keys["guidance_in"]),
    }}


_BFL2 = {
    "img_in": "img_in.weight", "txt_in": "txt_in.weight", "mlp": "double_blocks.0.img_mlp.2.weight",
    "guidance_in": "guidance_in.in_layer.weight",
}
_DIFFUSERS2 = {
    "img_in": "x_embedder.weight", "txt_in": "context_embedder.weight",
    "mlp": "transformer_blocks.0.ff.linear_out.weight",
    "guidance_in": "time_guidance_embed.guidance_embedder.linear_1.weight",
}


_ATTENTION = "layers.0.self_attn."
_QWEN3_LAYERS = count(r"layers\.(\d+)\.")
_READ = 27  # layers of Qwen3 that FLUX.2 reads

FLUX2: tuple[Family, ...] = (
    Family("flux2", "FLUX.2 transformer (black-forest-labs names)", "transformer", flux2.TRANSFORMER,
        _flux2_sizes(dim("img_in.weight", 0), dim("double_blocks.0.img_attn.norm.query_norm.scale", 0), _BFL2,
                     ("double_blocks", "single_blocks")),
        prefixes=COMFY),
    Family("flux2-diffusers", "FLUX.2 transformer (diffusers names)", "transformer", flux2.TRANSFORMER_DIFFUSERS,
        _flux2_sizes(dim("x_embedder.weight", 0), dim("transformer_blocks.0.attn.norm_q.weight", 0), _DIFFUSERS2,
                     ("transformer_blocks", "single_transformer_blocks"))),
    Family("flux2-ae", "FLUX.2 autoencoder (black-forest-labs names)", "autoencoder", AUTOENCODER2,
        autoencoder_sizes("autoencoder2", *AE), prefixes=VAE, ignore=r"(.*\.)?bn\.num_batches_tracked"),
    Family("flux2-ae-diffusers", "FLUX.2 autoencoder (diffusers names)", "autoencoder", AUTOENCODER2_DIFFUSERS,
        autoencoder_sizes("autoencoder2", *AE_DIFFUSERS), ignore=r"bn\.num_batches_tracked"),
    Family("qwen3", "Qwen3 (transformers names)", "qwen3", qwen3.ENCODER, {"qwen3": {
        "vocab_size":          dim("embed_tokens.weight", 0),
        "hidden_size":         dim("embed_tokens.weight", 1),
        "intermediate_size":   dim("layers.0.mlp.gate_proj.weight", 0),
        "num_hidden_layers":   at_most(_QWEN3_LAYERS, _READ),
        "num_attention_heads": ratio(dim(f"{_ATTENTION}q_proj.weight", 0), dim(f"{_ATTENTION}q_norm.weight", 0), True),
        "num_key_value_heads": ratio(dim(f"{_ATTENTION}k_proj.weight", 0), dim(f"{_ATTENTION}q_norm.weight", 0), True),
        "head_dim":            dim(f"{_ATTENTION}q_norm.weight", 0),
        "hidden_states":       known(at_most(_QWEN3_LAYERS, _READ), {_READ: (9, 18, 27)}),
    }}, prefixes=("model.", "", *_IN_FULL),
        ignore=r"((text_encoders\.)?qwen3_\db\.transformer\.)?((model\.)?norm\.weight|lm_head\.weight)"
               r"|(text_encoders\.)?qwen3_\db\.logit_scale",
        unread=r"layers\.(2[7-9]|[3-9]\d)\..*"),
)
# fmt: on
