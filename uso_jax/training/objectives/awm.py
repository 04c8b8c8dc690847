# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Advantage-weighted matching: the policy gradient with the flow-matching loss as log likelihood (arXiv 2509.25050).

    (1) x_t = (1 - t) x_0 + t e                       x_0 an image of the old policy, e ~ N(0, I)
    (2) l   = -mean |v(x_t) - (e - x_0)|^2            in place of log p(x_0)
    (3) L   = E max(-A p, -A clip(p, 1 - eps, 1 + eps)) + anchor E |v_theta - v_0|^2        p = exp(l_theta - l_old)

As `nft`, it needs images and their advantages only, and any sampler; the clipping is that of `grpo`. Where the policy
is the old one, the gradient of (3) is that of flow matching on every image, times its advantage.
Shapes: b batch, l target tokens, d token channels.
"""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float

from uso_jax.training.objectives import grpo, nft
from uso_jax.training.policy import PolicyConfig

roll_out, draw = nft.roll_out, nft.draw


def policy_error(
    config: PolicyConfig,
    velocity: Float[Array, "b l d"],
    old: Float[Array, "b l d"],
    x0: Float[Array, "b l d"],
    x_t: Float[Array, "b l d"],
    t: Float[Array, " b"],
    advantages: Float[Array, " b"],
) -> Float[Array, " b"]:
    """Return the first term of Eq. (3) of each image."""
    target = (x_t - x0) / t[:, None, None]
    likelihood = lambda velocity: -jnp.mean(jnp.square(velocity - target), axis=(1, 2))
    return grpo.clipped_loss(config, jnp.exp(likelihood(velocity) - likelihood(old)), advantages)


loss = functools.partial(nft.loss, error=policy_error)
"""Eq. (3) of a batch of rolled-out images, and its figures; arguments are those of `nft.loss`."""
