# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Regions of styles: how much a style counts for a token depends on where the token is.

A style's tokens are owned by it, whether they are style tokens or those of a plain reference. As keys they weigh as
much as the region of the query says. That is a bias of the logits with one term a style: the logarithm of the query's
weight, times 1 for the keys that the style owns. Every attention kernel takes such a bias as further channels.

Shapes: b batch, l target tokens, m styles.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uso_jax.models.attention.dispatch import PairBias
from uso_jax.models.layers.token_groups import TokenGroup, join_groups

NOWHERE = -1e3
"""The logarithm of the weight 0: finite, and its exponential is 0 beside any other logit."""


class Regions(NamedTuple):
    """Logarithms of the weights of styles for each query.

    Attributes:
      target: for the tokens of the target.
      others: for all other tokens by their owner: 0 is none, such as text and content, and i the style i.
    """

    target: Float[Array, "b l m"]
    others: Float[Array, "b m_plus_1 m"]

    def bias(self, queries: list[TokenGroup], keys: list[TokenGroup], start: int | None = None) -> PairBias:
        """Return the bias between groups of tokens; the target's tokens begin at the query `start`, None: it is absent.

        The keys begin with the queries.
        """
        batch, _, styles = self.others.shape
        owner = join_groups(keys, "owner")
        if owner is None:
            raise ValueError("regions need the owners of style tokens or references")
        owner = jnp.broadcast_to(owner, (batch, owner.shape[1]))
        length = sum(group.tokens.shape[1] for group in queries)
        weights = jax.vmap(lambda rows, which: rows[which])(self.others, owner[:, :length])
        if start is not None:
            weights = jax.lax.dynamic_update_slice_in_dim(weights, self.target, start, axis=1)
        return PairBias(weights, jax.nn.one_hot(owner - 1, styles))
