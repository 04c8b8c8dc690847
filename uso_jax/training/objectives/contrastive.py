# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The losses that train a metric's encoders, as pure functions of one batch's embeddings.

    (1) L = -1/n sum_i sum_j log sigmoid(z_ij (t x_i . y_j + b))     z = 1 on pairs, else -1      `sigmoid_loss`
    (2) L = mean_i -1/|P_i| sum_{p in P_i} log( exp(s_ip) / sum_{a != i} exp(s_ia) )
        s_ij = x_i . x_j / temperature, P_i = others with i's label               `label_contrastive_loss`

Sources: (1) SigLIP, arXiv 2303.15343 Eq. (1) and Algorithm 1; (2) supervised contrastive learning, arXiv 2004.11362
Eq. (2), which CSD, arXiv 2404.01292, trains its style head by, there with several labels an image.

Embeddings have length 1. A batch split over devices is one batch here: under jit the sums cross devices by themselves.
Shapes: n samples, d embedding channels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

UNKNOWN = -1
"""The label of a sample that takes no part in `label_contrastive_loss`."""


def _products(x: Float[Array, "n d"], y: Float[Array, "n d"]) -> Float[Array, "n n"]:
    # Temperatures multiply rounding by ten and more, so products are float32 in full also where bfloat16 is the habit.
    return jnp.matmul(x.astype(jnp.float32), y.astype(jnp.float32).T, precision="highest")


def sigmoid_loss(
    image: Float[Array, "n d"],
    text: Float[Array, "n d"],
    logit_scale: float | Float[Array, ""],
    logit_bias: float | Float[Array, ""],
    same: Bool[Array, "n n"] | None = None,
) -> Float[Array, ""]:
    """Give Eq. (1): every image decides of every text whether it is its own; SigLIP starts at t = 10 and b = -10.

    Args:
      image: embeddings of length 1; image i belongs to text i.
      text: embeddings of length 1.
      logit_scale: t itself; networks learn and store its logarithm.
      logit_bias: b.
      same: further (image, text) pairs that belong together, because samples of a batch may share their caption.
    """
    logits = logit_scale * _products(image, text) + logit_bias
    positive = jnp.eye(len(image), dtype=bool)
    if same is not None:
        positive |= same
    return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(jnp.where(positive, logits, -logits)), axis=1))


def label_contrastive_loss(
    features: Float[Array, "n d"], labels: Int[Array, " n"], temperature: float | Float[Array, ""] = 0.1
) -> Float[Array, ""]:
    """Give Eq. (2): each sample picks those with its label out of the batch; the temperature is CSD's.

    Samples labelled `UNKNOWN` are left out altogether: they might be anyone's positive. The mean is over samples that
    have a positive; it is 0 if none has. Two views of each image, labelled by image, make this SimCLR's loss.
    """
    known = labels != UNKNOWN
    others = known[:, None] & known[None, :] & ~jnp.eye(len(labels), dtype=bool)
    positive = others & (labels[:, None] == labels[None, :])
    # Finite, because infinity would make NaN of a row without others: dropped below, but jax_debug_nans stops there.
    scores = jnp.where(others, _products(features, features) / temperature, -1e30)
    log_share = jax.nn.log_softmax(scores, axis=1)
    num_positive = jnp.sum(positive, axis=1)
    row = -jnp.sum(jnp.where(positive, log_share, 0), axis=1) / jnp.maximum(num_positive, 1)
    return jnp.sum(row) / jnp.maximum(jnp.sum(num_positive > 0), 1)
