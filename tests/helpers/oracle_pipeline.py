# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A tiny USO twice: as a weights directory, and as torch modules of diffusers and transformers put together by hand.

Every parameter is drawn anew. A token is 8 pixels a side here, as in mini, and images are 32.
"""

import functools
import itertools
import json
import math
import pathlib

import jax
import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from oracle_torch import _ADAPTED, _BLOCKS, autoencoder_pair, draw, drawn_for, fill, flux_names, siglip_pair, torch_flux
from PIL import Image
from text_encoders import CLIP, load_clip, load_t5, torch_clip, torch_t5
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from uso_jax import params, weights
from uso_jax.inference.pipeline import USOPipeline
from uso_jax.models import flux
from uso_jax.models.components import split_transformer
from uso_jax.models.projector import LEVELS, ProjectorConfig
from uso_jax.parallel import sharding
from uso_jax.weights import manifest_configs
from uso_jax.weights.tables.flux import LORA, PROJECTOR, TRANSFORMER
from uso_jax.weights.tables.table import expand, to_flax

SIDE, STEPS, T5_LENGTH = 32, 3, 6
SETTINGS = {
    "t5_length": T5_LENGTH,
    "t5_tokenizer": "tokenizer_t5",
    "clip_tokenizer": "tokenizer_clip",
    "width": SIDE,
    "height": SIDE,
    "content_ref": SIDE,
    "num_steps": STEPS,
}
PROJECT = ProjectorConfig(siglip_tokens=9, style_tokens=2, siglip_dim=24, layers=(-2, -3, -4))
FLUX = flux.FluxConfig.tiny(projector=PROJECT, lora_scale=0.7)
WORDS = tuple("a the red fox cat dog in on snow sea felt style house runs sits and".split())  # noqa: SIM905


@functools.cache
def tensors() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], FluxTransformer2DModel]:
    """Draw the transformer: base, adapters and projector under the released names, and torch's with adapters merged."""
    c = FLUX
    theirs = torch_flux(c)
    base = drawn_for(theirs, 0)
    shapes = params.shapes(lambda rngs: flux.Flux(c, rngs=rngs))
    parts = split_transformer(shapes)
    more = {}
    for seed, (rows, part) in enumerate(((LORA, "lora"), (PROJECTOR, "projector")), start=20):
        more |= draw({key: entry.shape for key, entry in expand(rows, parts[part]).items()}, seed)
    merged = dict(base)
    for ours, (prefix, _) in _BLOCKS.items():
        for i in range(c.depth if ours == "double_blocks" else c.depth_single_blocks):
            for adapter, layers in _ADAPTED[ours].items():
                key = f"{ours}.{i}.processor.{adapter}.{{}}.weight".format
                delta = c.lora_scale * (more[key("up")].astype(np.float64) @ more[key("down")])
                for layer, block in zip(layers, np.split(delta, len(layers)), strict=True):
                    name = f"{prefix}.{i}.{layer}.weight"
                    merged[name] = (merged[name] + block).astype(np.float32)
    ours = to_flax(TRANSFORMER + LORA + PROJECTOR, shapes, (flux_names(base) | more).items())
    return ours, more, fill(theirs, merged)


def tokenizer(length: int, end: int, pad: int) -> PreTrainedTokenizerFast:
    """Make a tokenizer of a few words."""
    names = {"<pad>": pad, "<end>": end, "<unk>": 2}
    vocab = names | {word: 3 + i for i, word in enumerate(WORDS)}
    inner = Tokenizer(models.WordLevel(vocab, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", end)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", model_max_length=length
    )


def write(directory: pathlib.Path) -> pathlib.Path:
    """Write the weights directory."""
    ours, _, _ = tensors()
    for component, values in split_transformer(ours).items():
        weights.save(directory, component, values, {"config": manifest_configs.describe(component, FLUX)})
    networks = {"autoencoder": autoencoder_pair()[0], "siglip": siglip_pair()[0], "t5": load_t5(), "clip": load_clip()}
    for component, network in networks.items():
        config = manifest_configs.describe(component, network.config)
        weights.save(directory, component, params.from_model(network), {"config": config})
    tokenizer(T5_LENGTH, 1, 0).save_pretrained(directory / "tokenizer_t5")
    end = CLIP.eos_token_id
    tokenizer(CLIP.max_position_embeddings, end, 0).save_pretrained(directory / "tokenizer_clip")
    (directory / "pipeline.json").write_text(json.dumps(SETTINGS))
    return directory


def open_pipeline(directory: pathlib.Path, **options) -> USOPipeline:
    """Open a weights directory on one device."""
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    return USOPipeline.from_weights(directory, mesh=mesh, compilation_cache=False, **options)


def pixels(result) -> np.ndarray:
    return np.stack([np.asarray(image) for image in result.images]).astype(int)


def write_references(folder: pathlib.Path) -> None:
    """Write a content image and two style images."""
    for seed, (name, size) in enumerate({"fox": (60, 90), "ink": (30, 30), "felt": (50, 20)}.items()):
        photo(seed, *size).save(folder / f"{name}.png")


# ---------------------------------------------------------------------------------------------------- torch


def _project(states: list[torch.Tensor]) -> torch.Tensor:
    """Run upstream's projector on the hidden states of one image, high level first."""
    w = {key.removeprefix("feature_embedder."): torch.from_numpy(v) for key, v in tensors()[1].items()}
    tokens = []
    for level, x in zip(LEVELS, states, strict=True):
        x = F.silu(F.linear(x.mT, w[f"{level}_embedding_linear.0.weight"], w[f"{level}_embedding_linear.0.bias"])).mT
        x = F.layer_norm(x, x.shape[-1:], w[f"{level}_layer_norm.weight"], w[f"{level}_layer_norm.bias"], eps=1e-5)
        tokens.append(F.linear(x, w[f"{level}_projection.weight"], w[f"{level}_projection.bias"]))
    return torch.cat(tokens, dim=1)


def content(image: Image.Image, long_side: int = SIDE, multiple: int = 8) -> Image.Image:
    """Resize and cut a content image as upstream's preprocess_ref."""
    w, h = image.size
    new_w, new_h = (long_side, int(long_side / w * h)) if w >= h else (int(long_side / h * w), long_side)
    image = image.resize((new_w, new_h), Image.LANCZOS)
    kept_w, kept_h = new_w // multiple * multiple, new_h // multiple * multiple
    left, top = (new_w - kept_w) // 2, (new_h - kept_h) // 2
    return image.crop((left, top, left + kept_w, top + kept_h))


def _tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1)[None] / 255 * 2 - 1


def _pack(latent: torch.Tensor) -> torch.Tensor:
    b, c, h, w = latent.shape
    return latent.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h // 2 * (w // 2), c * 4)


def _ids(rows: int, columns: int, offset: tuple[int, int] = (0, 0)) -> torch.Tensor:
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros(rows, columns), row + offset[0], column + offset[1]], dim=-1).reshape(-1, 3)


@torch.no_grad()
def encode_text(prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return T5's features [1, t, context] and CLIP's vector [1, vec] of a prompt."""
    ids = torch.tensor([tokenizer(T5_LENGTH, 1, 0)(prompt, padding="max_length", truncation=True)["input_ids"]])
    make = tokenizer(CLIP.max_position_embeddings, CLIP.eos_token_id, 0)
    pooled = torch.tensor([make(prompt, padding="max_length", truncation=True)["input_ids"]])
    return torch_t5()(input_ids=ids).last_hidden_state, torch_clip()(input_ids=pooled).pooler_output


class _Prepended(torch.nn.Module):
    """The text projection with style tokens put before its result."""

    def __init__(self, inner: torch.nn.Module, style: torch.Tensor):
        super().__init__()
        self.inner, self.style = inner, style

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.style, self.inner(text)], dim=1)


@torch.no_grad()
def image(
    noise: np.ndarray,
    prompt: str,
    contents: list[Image.Image] = (),
    styles: list[Image.Image] = (),
    *,
    width: int = SIDE,
    height: int = SIDE,
    guidance: float = 4.0,
    num_steps: int = STEPS,
) -> np.ndarray:
    """Make an image from packed noise [1, l, d] by upstream's steps; uint8 [height, width, 3]."""
    _, _, model = tensors()
    codec, tower = autoencoder_pair()[1], siglip_pair()[1]
    scale, shift = autoencoder_pair()[0].config.scale_factor, autoencoder_pair()[0].config.shift_factor

    txt, vec = encode_text(prompt)
    tokens = []
    for style in styles:
        side = tower.config.image_size
        pixels = _tensor(style.resize((side, side), Image.BICUBIC))
        hidden = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        tokens.append(_project([hidden[layer] for layer in PROJECT.layers]))
    style = torch.cat([torch.zeros(1, 0, FLUX.hidden_size), *tokens], dim=1)

    rows, columns = height // 8, width // 8
    references, img_ids, offset = [], [_ids(rows, columns)], (rows, columns)
    for image in contents:
        latent = (codec.encode(_tensor(content(image))).latent_dist.mode() - shift) * scale
        references.append(_pack(latent))
        size = latent.shape[2] // 2, latent.shape[3] // 2
        img_ids.append(_ids(*size, offset))
        offset = offset[0] + size[0], offset[1] + size[1]

    mu = 0.5 + 0.65 * ((2 * rows * 2 * columns) // 256 - 256) / (4096 - 256)
    times = [1 - i / num_steps for i in range(num_steps + 1)]
    times = [math.exp(mu) / (math.exp(mu) + 1 / t - 1) if t else 0.0 for t in times]
    inner, model.context_embedder = model.context_embedder, _Prepended(model.context_embedder, style)
    try:
        x = torch.from_numpy(noise.copy())
        for t, s in itertools.pairwise(times):
            velocity = model(
                hidden_states=torch.cat([x, *references], dim=1),
                encoder_hidden_states=txt,
                pooled_projections=vec,
                timestep=torch.tensor([t], dtype=torch.float32),
                guidance=torch.tensor([guidance]),
                txt_ids=torch.zeros(style.shape[1] + txt.shape[1], 3),
                img_ids=torch.cat(img_ids),
            ).sample[:, : x.shape[1]]
            x = x + (s - t) * velocity
    finally:
        model.context_embedder = inner
    z = x.reshape(1, rows, columns, -1, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(1, -1, 2 * rows, 2 * columns)
    decoded = codec.decode(z / scale + shift).sample.clamp(-1, 1)
    return ((decoded[0].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()


def photo(seed: int, width: int, height: int) -> Image.Image:
    """Make a smooth coloured image."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.BICUBIC)
