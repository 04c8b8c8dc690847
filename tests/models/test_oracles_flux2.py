# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""FLUX.2's networks against diffusers and transformers, through the production conversion tables."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
from comparison import ENCODER, VELOCITY, error
from diffusers import Flux2KleinPipeline
from golden_files import nhwc
from oracle_flux2 import QWEN3, autoencoder_pair, load_qwen3, torch_qwen3, transformer_pair
from oracle_torch import normal
from qwen3_tokenizer import train_tokenizer

from uso_jax import flow
from uso_jax.models.text_qwen3 import Qwen3TextConfig

LENGTH = 40  # text tokens


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


@pytest.mark.parametrize("guidance", (True, False))
def test_transformer(guidance):
    ours, theirs = transformer_pair(guidance)
    target, reference = (2, 3), (2, 2)
    img, ref, txt = normal(0, 2, 6, 16), normal(1, 2, 4, 16), normal(2, 2, 5, 24)
    times, scales = np.asarray([0.7, 0.03], np.float32), np.asarray([4.0, 1.0], np.float32)
    img_ids, ref_ids = flow.layered_ids(*target), flow.layered_reference_ids(target, [reference])[0]
    t = torch.from_numpy
    want = theirs(
        hidden_states=t(np.concatenate([img, ref], axis=1)),
        encoder_hidden_states=t(txt),
        timestep=t(times),
        img_ids=t(np.concatenate([img_ids, ref_ids])),
        txt_ids=t(np.array(ours.text_ids(5)[0])),
        guidance=t(scales) if guidance else None,
    ).sample[:, :6]
    got = ours(
        jnp.asarray(img),
        img_ids[None],
        jnp.asarray(txt),
        jnp.asarray(times),
        None,
        jnp.asarray(scales) if guidance else None,
        ref_img=jnp.asarray(ref),
        ref_ids=ref_ids[None],
    )
    assert error(got, want) < VELOCITY


@functools.cache
def coded():
    """Return an image, a latent, and what our autoencoder makes of them in one program."""
    ours, image, z = autoencoder_pair()[0], normal(4, 2, 3, 16, 24), normal(5, 2, 4, 4, 6)
    run = jax.jit(lambda image, z: (ours.raw_moments(image), ours.moments(image), ours.decode(z)))
    return image, z, run(nhwc(image), nhwc(z))


def test_autoencoder():
    theirs, (image, z, (raw, (mean, _), decoded)) = autoencoder_pair()[1], coded()
    moments = theirs.encode(torch.from_numpy(image)).latent_dist.parameters
    assert error(raw, nhwc(moments.numpy())) < ENCODER
    patches = Flux2KleinPipeline._patchify_latents(moments[:, :4])
    normalised = Flux2KleinPipeline._unpatchify_latents(theirs.bn(patches))
    assert error(mean, nhwc(normalised.numpy())) < ENCODER

    patches = Flux2KleinPipeline._patchify_latents(torch.from_numpy(z))
    deviation = torch.sqrt(theirs.bn.running_var + theirs.config.batch_norm_eps)
    restored = patches * deviation[:, None, None] + theirs.bn.running_mean[:, None, None]
    want = theirs.decode(Flux2KleinPipeline._unpatchify_latents(restored)).sample
    assert error(decoded, nhwc(want.numpy())) < ENCODER


def test_moments_are_those_of_normalised_latents():
    (ours, theirs), (_, _, (raw, (_, logvar), _)) = autoencoder_pair(), coded()
    deviation = np.sqrt(theirs.bn.running_var.numpy() + 1e-4).reshape(4, 2, 2).transpose(1, 2, 0)
    want = np.exp(0.5 * np.split(np.asarray(raw), 2, axis=-1)[1]) / np.tile(deviation, (2, 3, 1))
    assert error(np.exp(0.5 * logvar), want) < ENCODER
    with pytest.raises(ValueError, match="16x20 must be a multiple of 8"):
        ours.moments(jnp.zeros((1, 16, 20, 3)))


@functools.cache
def encode():
    model = load_qwen3()
    return jax.jit(lambda ids, valid: model(ids, valid))


@pytest.mark.parametrize("side", ("right", "left"))
def test_text(side, tmp_path):
    """Compare the text side with the pipeline's, from prompts to hidden states."""
    theirs = train_tokenizer(tmp_path, side)
    config = Qwen3TextConfig(QWEN3, LENGTH, str(tmp_path))
    prompts = ["", "a red fox", "the snow in the woodcut as a red red fox in the snow, " * 3]
    want = Flux2KleinPipeline._get_qwen3_prompt_embeds(
        torch_qwen3(), theirs, prompts, max_sequence_length=LENGTH, hidden_states_layers=list(QWEN3.hidden_states)
    ).numpy()
    assert want.shape[2] == config.txt_width
    tokens = [config.tokenize(prompt) for prompt in prompts]
    stacked = {name: np.stack([one[name] for one in tokens]) for name in config.token_counts()}
    assert {name: x.shape[1] for name, x in stacked.items()} == config.token_counts()
    assert [config.is_cut(prompt) for prompt in prompts] == [False, False, True]
    valid = stacked["qwen3_valid"] != 0
    assert not valid[:2].all(axis=1).any() and valid[2].all()
    got = encode()(jnp.asarray(stacked["qwen3_ids"]), jnp.asarray(valid))
    assert error(got[valid], want[valid]) < ENCODER
    if side == "right":  # the states of padding after the text, which the transformer reads too
        assert error(got, want) < ENCODER


def test_padding_changes_nothing():
    """Check that tokens read neither padding nor what comes after them."""
    ids = np.random.default_rng(0).integers(0, QWEN3.vocab_size, (2, LENGTH)).astype(np.int32)
    valid = np.arange(LENGTH)[None] < np.asarray([LENGTH, 13])[:, None]
    other = np.where(valid, ids, 7)
    got, again = (encode()(jnp.asarray(x), jnp.asarray(valid)) for x in (ids, other))
    np.testing.assert_array_equal(got[valid], again[valid])
    ids[:, 20:] += 1
    np.testing.assert_array_equal(
        encode()(jnp.asarray(ids % QWEN3.vocab_size), jnp.asarray(valid))[:, :20], got[:, :20]
    )
