# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""T5 and CLIP's text tower of transformers with every parameter drawn anew, and ours holding the same numbers."""

import dataclasses
import functools

import golden_files as golden
import numpy as np
import torch
import transformers

from convert.tables.clip import TEXT
from convert.tables.t5 import ALIASES, ENCODER
from uso_jax.models.clip import ClipText, ClipTextConfig
from uso_jax.models.t5 import T5Config, T5Encoder

T5 = T5Config.tiny(num_layers=3, num_heads=3)  # 3 heads of 8: narrower keys than the residual's 20, as no real T5 has
CLIP = ClipTextConfig.tiny(num_hidden_layers=3)
EOS = CLIP.eos_token_id


def redraw(model: torch.nn.Module, embedding_std: float = 1.0) -> torch.nn.Module:
    """Draw every parameter anew: at a library's initial values scales are 1 and biases 0, and mistakes do not show."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            value.data = 1 + 0.3 * noise
        elif "embed" in name or "shared" in name:
            value.data = embedding_std * noise
        elif "relative" in name:
            value.data = 2 * noise
        else:
            value.data = (value.shape[-1] ** -0.5 if value.ndim > 1 else 0.3) * noise
    return model.eval()


@functools.cache
def torch_t5(embedding_std: float = 1.0) -> transformers.T5EncoderModel:
    sizes = dataclasses.asdict(T5)
    del sizes["dtype"], sizes["remat"]
    config = transformers.T5Config(**sizes, feed_forward_proj="gated-gelu", use_cache=False)
    return redraw(transformers.T5EncoderModel(config), embedding_std)


@functools.cache
def torch_clip(eos: int = EOS, embedding_std: float = 1.0) -> transformers.CLIPTextModel:
    sizes = dataclasses.asdict(CLIP) | {"eos_token_id": eos, "bos_token_id": 0, "pad_token_id": 1}
    del sizes["dtype"], sizes["remat"]
    return redraw(transformers.CLIPTextModel(transformers.CLIPTextConfig(**sizes)), embedding_std)


def numbers(model: torch.nn.Module) -> dict[str, np.ndarray]:
    tensors = {key.removeprefix("text_model."): value.numpy() for key, value in model.state_dict().items()}
    return {key: value for key, value in tensors.items() if key not in ALIASES and not key.endswith("position_ids")}


def load_t5(reference=None, **changes) -> T5Encoder:
    config = dataclasses.replace(T5, **changes)
    return golden.load(lambda rngs: T5Encoder(config, rngs=rngs), ENCODER, numbers(reference or torch_t5()))


def load_clip(reference=None, **changes) -> ClipText:
    config = dataclasses.replace(CLIP, **changes)
    return golden.load(lambda rngs: ClipText(config, rngs=rngs), TEXT, numbers(reference or torch_clip()))
