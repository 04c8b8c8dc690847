# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that users have and that cannot be imported: what each is, and what to take in its place."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from uso_jax.weights.files.tensors import LazyTensor

_FLUX1 = r"(.*\.)?(double_blocks\.0\.img_mod\.lin|transformer_blocks\.0\.norm1\.linear)\.weight"
_INPUT = r"(.*\.)?(img_in|x_embedder)\.weight"  # of FLUX in the original and in diffusers' names


@dataclass(frozen=True)
class Stranger:
    """A kind of checkpoint.

    Attributes:
      key: pattern of a tensor that only it has.
      sentence: what it is, and what to do.
      columns: that the tensor must have, or None.
      beside: pattern of another tensor that it must have, or "".
    """

    key: str
    sentence: str
    columns: int | None = None
    beside: str = ""


_OTHER = "is another model than FLUX.1 or FLUX.2; take FLUX.1-dev or FLUX.2 [klein]"
STRANGERS = (
    Stranger(_INPUT, "is FLUX.1 Fill, which also reads a mask; take FLUX.1-dev", 384, _FLUX1),
    Stranger(_INPUT, "is FLUX.1 Canny or Depth, which also reads a control image; take FLUX.1-dev", 128, _FLUX1),
    Stranger(r"redux_(up|down)\.weight", "is FLUX.1 Redux, an image prompt for FLUX; USO's projector takes its place"),
    Stranger(
        r"(.*\.)?distilled_guidance_layer\..*",
        "is Chroma, a FLUX.1 with other modulations; take FLUX.1-schnell, which it comes from",
    ),
    Stranger(
        r".*\.(absmax|quant_map|quant_state\..*)",
        "is quantised by bitsandbytes (NF4 or FP4); take the bf16 or fp8 release, and --quantize int4",
    ),
    Stranger(
        r".*\.(qweight|wscales|smooth(_orig|_factor)?)",
        "is quantised by nunchaku (SVDQuant); take the bf16 or fp8 release, and --quantize int4",
    ),
    Stranger(r"(.*\.)?controlnet_(x_embedder|blocks\..*|single_blocks\..*)", "is a ControlNet, which is not supported"),
    Stranger(
        r"(.*\.)?(input_blocks\.\d+|down_blocks\.\d+\.attentions)\..*",
        f"is a U-Net of Stable Diffusion or SDXL and {_OTHER}",
    ),
    Stranger(r"(.*\.)?joint_blocks\.\d+\..*", f"is Stable Diffusion 3 and {_OTHER}"),
    Stranger(r"(.*\.)?transformer_blocks\.\d+\.img_mod\..*", f"is Qwen-Image and {_OTHER}"),
    Stranger(r"(.*\.)?(noise_refiner|context_refiner)\.\d+\..*", f"is Z-Image or Lumina 2 and {_OTHER}"),
    Stranger(r"(.*\.)?blocks\.\d+\.(cross_attn|self_attn)\.[qkvo]\..*", f"is Wan and {_OTHER}"),
    Stranger(r"(.*\.)?double_stream_blocks\.\d+\..*", f"is HiDream and {_OTHER}"),
    Stranger(r"(.*\.)?adaln_single\..*", f"is PixArt, Sana or LTX and {_OTHER}"),
)


def describe(found: Mapping[str, LazyTensor]) -> str | None:
    """Return what a file is that is known and cannot be imported, or None."""
    for stranger in STRANGERS:
        pattern = re.compile(stranger.key)
        for key, tensor in found.items():
            columns = tensor.shape[-1] if tensor.shape else 0
            if not pattern.fullmatch(key) or stranger.columns not in (None, columns):
                continue
            if not stranger.beside or any(re.fullmatch(stranger.beside, other) for other in found):
                return stranger.sentence
    return None
