# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A token sequence assembled from groups, such as text, target and references.

Shapes: b batch, l tokens, d width, a id axes.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array


class TokenGroup(NamedTuple):
    """Tokens of one kind with their attention inputs; a leading axis of 1 is shared by the batch.

    Attributes:
      tokens: [b, l, d].
      ids: position ids [b or 1, l, a]; None: zeros.
      valid: [b or 1, l], False masks a token as a key; None: all valid.
      bias: [b or 1, l], added to the attention logits of a token as a key; None: zeros.
      owner: [b or 1, l], the style that the token belongs to (`layers.regions`), from 1; 0 and None: to none.
    """

    tokens: Array
    ids: Array | None = None
    valid: Array | None = None
    bias: Array | None = None
    owner: Array | None = None


_DEFAULTS = {"ids": 0, "valid": True, "bias": 0, "owner": 0}


def join_groups(groups: list[TokenGroup], field: str) -> Array | None:
    """Concatenate one field of all groups along tokens; None if no group has it."""
    values = [getattr(group, field) for group in groups]
    known = [value for value in values if value is not None]
    if not known:
        return None
    rows, tail = max(map(len, known)), known[0].shape[2:]
    whole = []
    for group, value in zip(groups, values, strict=True):
        if value is None:
            value = jnp.asarray(_DEFAULTS[field], known[0].dtype)
        whole.append(jnp.broadcast_to(value, (rows, group.tokens.shape[1], *tail)))
    return jnp.concatenate(whole, axis=1)
