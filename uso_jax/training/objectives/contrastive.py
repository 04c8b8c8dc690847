# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The losses that train the encoders of metrics, as pure functions of one batch's embeddings.

    (1) L = -1/n sum_i sum_j log sigmoid(z_ij (t x_i . y_j + b))     z = 1 on pairs, else -1      `sigmoid_loss`
    (2) L = mean_i -1/|P_i| sum_{p in P_i} log( exp(s_ip) / sum_{a != i} exp(s_ia) )
        s_ij = x_i . x_j / temperature, P_i = others with i's label               `label_contrastive_loss`

Sources: (1) SigLIP, arXiv 2303.15343 Eq. (1) and Algorithm 1; (2) supervised contrastive learning, arXiv 2004.11362
Eq. (2), which trains the style head of CSD, arXiv 2404.01292, there with several labels per image.

Embeddings have length 1. A batch that is split over devices is one batch: under jit the sums cross devices.
Shapes: n samples, d embedding channels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

UNKNOWN = -1
"""The label of a sample that `label_contrastive_loss` leaves out."""


def _products(x: Float[Array, "n d"], y: Float[Array, "n d"]) -> Float[Array, "n n"]:
    # Temperatures multiply rounding errors by ten and more, so products are full float32 on every device.
    return jnp.matmul(x.astype(jnp.float32), y.astype(jnp.float32).T, precision="highest")


def sigmoid_loss(
    image: Float[Array, "n d"],
    text: Float[Array, "n d"],
    logit_scale: float | Float[Array, ""],
    logit_bias: float | Float[Array, ""],
    same: Bool[Array, "n n"] | None = None,
) -> Float[Array, ""]:
    """Return Eq. (1): every image decides for every text whether they are a pair; SigLIP starts at t = 10, b = -10.

    Args:
      image: embeddings of length 1; image i belongs to text i.
      text: embeddings of length 1.
      logit_scale: t; networks learn and store its logarithm.
      logit_bias: b.
      same: further (image, text) pairs, because samples of a batch may share their caption.
    """
    logits = logit_scale * _products(image, text) + logit_bias
    positive = jnp.eye(len(image), dtype=bool)
    if same is not None:
        positive |= same
    return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(jnp.where(positive, logits, -logits)), axis=1))


def label_contrastive_loss(
    features: Float[Array, "n d"], labels: Int[Array, " n"], temperature: float | Float[Array, ""] = 0.1
) -> Float[Array, ""]:
    """Return Eq. (2): each sample finds those with its label in the batch; the default temperature is CSD's.

    Samples labelled `UNKNOWN` are left out, as they might be a positive of any sample. The mean is over samples that
    have a positive; it is 0 if none has. With two views of each image, labelled by image, this is SimCLR's loss.
    """
    known = labels != UNKNOWN
    others = known[:, None] & known[None, :] & ~jnp.eye(len(labels), dtype=bool)
    positive = others & (labels[:, None] == labels[None, :])
    # Not -inf: a row without others would be NaN, which is dropped below, but at which jax_debug_nans stops.
    scores = jnp.where(others, _products(features, features) / temperature, -1e30)
    log_share = jax.nn.log_softmax(scores, axis=1)
    num_positive = jnp.sum(positive, axis=1)
    row = -jnp.sum(jnp.where(positive, log_share, 0), axis=1) / jnp.maximum(num_positive, 1)
    return jnp.sum(row) / jnp.maximum(jnp.sum(num_positive > 0), 1)
