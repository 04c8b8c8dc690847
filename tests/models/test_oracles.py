# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Networks, blocks and norms against independent implementations, through the production conversion tables."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from comparison import BLOCK, ENCODER, NORM, VELOCITY, error
from golden_files import nhwc
from oracle_torch import NORMS, autoencoder_pair, block_outputs, flux_pair, norm_outputs, normal, siglip_pair

from uso_jax import flow


@pytest.mark.parametrize("guidance", (True, False))
def test_transformer(guidance):
    ours, theirs = flux_pair(guidance)
    target, reference = (2, 3), (2, 2)
    img, ref, txt, vec = normal(0, 2, 6, 16), normal(1, 2, 4, 16), normal(2, 2, 5, 20), normal(3, 2, 12)
    times, scales = np.asarray([0.7, 0.03], np.float32), np.asarray([4.0, 1.0], np.float32)
    img_ids, ref_ids = flow.position_ids(*target), flow.reference_ids(target, [reference])[0]

    t = torch.from_numpy
    want = theirs(
        hidden_states=t(np.concatenate([img, ref], axis=1)),
        encoder_hidden_states=t(txt),
        pooled_projections=t(vec),
        timestep=t(times),
        img_ids=t(np.concatenate([img_ids, ref_ids])),
        txt_ids=torch.zeros(5, 3),
        guidance=t(scales) if guidance else None,
    ).sample[:, :6]
    got = ours(
        jnp.asarray(img),
        img_ids[None],
        jnp.asarray(txt),
        jnp.asarray(times),
        jnp.asarray(vec),
        jnp.asarray(scales) if guidance else None,
        ref_img=jnp.asarray(ref),
        ref_ids=ref_ids[None],
    )
    assert error(got, want) < VELOCITY


def test_autoencoder():
    ours, theirs = autoencoder_pair()
    image, z = normal(4, 2, 3, 16, 24), normal(5, 2, 4, 4, 6)
    moments = theirs.encode(torch.from_numpy(image)).latent_dist.parameters.numpy()
    decoded = theirs.decode(torch.from_numpy(z)).sample.numpy()
    assert error(ours.encoder(nhwc(image)), nhwc(moments)) < ENCODER
    assert error(ours.decoder(nhwc(z)), nhwc(decoded)) < ENCODER


def test_siglip():
    ours, theirs = siglip_pair()
    pixels = normal(6, 2, 3, 28, 28)
    want = theirs(torch.from_numpy(pixels), output_hidden_states=True)
    got = ours(nhwc(pixels), hidden_states=tuple(range(len(want.hidden_states))))
    assert len(want.hidden_states) == ours.config.num_hidden_layers + 1
    for i, state in enumerate(want.hidden_states):
        assert error(got.hidden_states[:, i], state) < ENCODER, i
    assert error(got.last_hidden_state, want.last_hidden_state) < ENCODER
    assert error(got.pooler_output, want.pooler_output) < ENCODER


@pytest.mark.parametrize("rank", (0, 4))
@pytest.mark.parametrize("scale", (1.0, 1e-2))
@pytest.mark.parametrize("name", ("double_blocks", "single_blocks"))
def test_block(name, scale, rank):
    assert error(*block_outputs(name, scale, rank)) < BLOCK


# At 1e-3 and below a norm's epsilon is as large as the variance it is added to.
@pytest.mark.parametrize("scale", (1.0, 1e-3, 1e-4))
@pytest.mark.parametrize("name", NORMS)
def test_norm(name, scale):
    assert error(*norm_outputs(name, scale)) < NORM
