# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny networks of FLUX.2 from diffusers and transformers, every parameter drawn anew, and ours with their numbers."""

import functools
import json
import pathlib

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinKVPipeline, Flux2KleinPipeline
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from golden_files import load
from oracle_torch import Weights, draw, drawn_for, fill
from PIL import Image
from qwen3_tokenizer import VOCABULARY, train_tokenizer
from transformers import AutoTokenizer, Qwen3ForCausalLM
from transformers import Qwen3Config as TorchQwen3Config

from convert.tables.autoencoder import AUTOENCODER2_DIFFUSERS
from convert.tables.qwen3 import ENCODER
from uso_jax import params, weights
from uso_jax.models.autoencoder2 import AutoEncoder2, AutoEncoder2Config
from uso_jax.models.flux2 import Flux2, Flux2Config
from uso_jax.models.qwen3 import Qwen3Config, Qwen3Encoder
from uso_jax.weights import manifest_configs
from uso_jax.weights.tables.flux2 import TRANSFORMER_DIFFUSERS

QWEN3 = Qwen3Config.tiny(vocab_size=VOCABULARY, num_hidden_layers=5, hidden_states=(1, 3, 5))
LAYERS = 7  # of the checkpoint, two more than are read


@functools.cache
def transformer_pair(guidance: bool) -> tuple[Flux2, Flux2Transformer2DModel]:
    c = Flux2Config.tiny(lora_rank=0, projector=None, guidance_embed=guidance)
    theirs = Flux2Transformer2DModel(
        in_channels=c.in_channels,
        num_layers=c.depth,
        num_single_layers=c.depth_single_blocks,
        attention_head_dim=c.head_dim,
        num_attention_heads=c.num_heads,
        joint_attention_dim=c.context_in_dim,
        axes_dims_rope=c.axes_dim,
        guidance_embeds=guidance,
    )
    weights = drawn_for(theirs, 0)
    return load(lambda rngs: Flux2(c, rngs=rngs), TRANSFORMER_DIFFUSERS, weights), fill(theirs, weights)


@functools.cache
def autoencoder_pair() -> tuple[AutoEncoder2, AutoencoderKLFlux2]:
    """Use three levels, so that their order shows, and small variances, so that the batch norm's epsilon shows."""
    c = AutoEncoder2Config.tiny(ch_mult=(1, 2, 4), num_res_blocks=2)
    blocks = len(c.ch_mult)
    theirs = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=tuple(c.ch * mult for mult in c.ch_mult),
        layers_per_block=c.num_res_blocks,
        latent_channels=c.z_channels,
        norm_num_groups=c.norm_groups,
    )
    counter = "bn.num_batches_tracked"
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items() if key != counter}
    weights = draw(shapes, 1)
    weights["bn.running_var"] = 0.01 + 0.01 * np.abs(weights["bn.running_var"])
    ours = load(lambda rngs: AutoEncoder2(c, rngs=rngs), AUTOENCODER2_DIFFUSERS, weights)
    return ours, fill(theirs, weights | {counter: np.zeros((), np.int64)})


def _qwen3_weights(theirs: Qwen3ForCausalLM) -> Weights:
    """Return what the encoder reads, under the names of the table."""
    known = lambda key: (
        key.startswith("embed_tokens")
        or (key.startswith("layers.") and int(key.split(".")[1]) < QWEN3.num_hidden_layers)
    )
    tensors = {key.removeprefix("model."): value.numpy() for key, value in theirs.state_dict().items()}
    return {key: value for key, value in tensors.items() if known(key)}


@functools.cache
def torch_qwen3() -> Qwen3ForCausalLM:
    c = QWEN3
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    config = TorchQwen3Config(
        **{size: getattr(c, size) for size in sizes},
        num_hidden_layers=LAYERS,
        rms_norm_eps=c.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        tie_word_embeddings=False,
    )
    theirs = Qwen3ForCausalLM(config)
    return fill(theirs, drawn_for(theirs, 2))


def load_qwen3(**changes) -> Qwen3Encoder:
    c = Qwen3Config(**(vars(QWEN3) | changes))
    return load(lambda rngs: Qwen3Encoder(c, rngs=rngs), ENCODER, _qwen3_weights(torch_qwen3()))


# ---------------------------------------------------------------------------------------------------- pipeline

LENGTH, STEPS, WIDTH, HEIGHT, REFERENCE = 40, 3, 64, 48, 80
SETTINGS = {
    "qwen3_length": LENGTH, "width": WIDTH, "height": HEIGHT, "content_ref": REFERENCE, "num_steps": STEPS,
}  # fmt: skip


def write(directory: pathlib.Path) -> pathlib.Path:
    """Write a weights directory of tiny networks that are guided by a negative prompt."""
    networks = {
        "transformer": transformer_pair(guidance=False)[0],
        "autoencoder": autoencoder_pair()[0],
        "qwen3": load_qwen3(),
    }
    for component, network in networks.items():
        config = manifest_configs.describe(component, network.config)
        weights.save(directory, component, params.from_model(network), {"config": config})
    train_tokenizer(directory / "tokenizer_qwen3", "right")
    (directory / "pipeline.json").write_text(json.dumps(SETTINGS))
    return directory


@torch.no_grad()
def image(
    directory: pathlib.Path, noise: np.ndarray, prompt: str, contents: list[Image.Image], isolated: bool, **options
) -> np.ndarray:
    """Make an image from noise [1, l, d] with diffusers' pipelines; uint8 [height, width, 3]."""
    parts = dict(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=autoencoder_pair()[1],
        text_encoder=torch_qwen3(),
        tokenizer=AutoTokenizer.from_pretrained(directory / "tokenizer_qwen3"),
        transformer=transformer_pair(guidance=False)[1],
    )
    pipe = (Flux2KleinKVPipeline if isolated else Flux2KleinPipeline)(**parts)
    pipe.set_progress_bar_config(disable=True)
    side = 2 * pipe.vae_scale_factor
    latents = torch.from_numpy(noise.copy()).mT.reshape(1, -1, HEIGHT // side, WIDTH // side)
    made = pipe(
        prompt=prompt, image=contents or None, height=HEIGHT, width=WIDTH, num_inference_steps=STEPS, latents=latents,
        max_sequence_length=LENGTH, text_encoder_out_layers=QWEN3.hidden_states, output_type="np", **options,
    )  # fmt: skip
    return (made.images[0] * 255).round().astype(int)
