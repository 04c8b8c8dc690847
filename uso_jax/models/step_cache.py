# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""First-block cache: a step whose first block does almost what it did before reuses what the other blocks added.

    (1) h_i = f_1(x_i) - x_i                        what the first block adds to the target's tokens in step i
    (2) r_i = f_n(...f_2(f_1(x_i))) - f_1(x_i)      what the other blocks add
    (3) step i uses r_k in place of r_i             if mean |h_i - h_k| < threshold mean |h_k|

k is the last step that ran all blocks, so small changes do not add up unseen. Source: ParaAttention's first-block
cache, as diffusers has it (hooks/first_block_cache.py). Unlike there, each sample of a batch decides for itself, so an
image does not depend on those beside it; the blocks are left out where all samples agree.
Shapes: b batch, l target tokens, d hidden_size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class StepCache(NamedTuple):
    """What a step hands to the next one.

    Attributes:
      threshold: [b], relative change of (1) below which a step reuses (2).
      first: [b, l, d], (1) of the last step that ran all blocks.
      rest: [b, l, d], (2) of that step.
      reused: [b], number of steps so far that reused it, int32.
    """

    threshold: Array
    first: Array
    rest: Array
    reused: Array

    @classmethod
    def empty(cls, threshold: Float[Array, " b"], num_tokens: int, width: int, dtype: Any) -> "StepCache":
        """Return the cache before the first step, which no step can reuse."""
        b = len(threshold)
        nothing = jnp.zeros((b, num_tokens, width), dtype)
        return cls(threshold, nothing, nothing, jnp.zeros((b,), jnp.int32))

    def advance(
        self, first: Float[Array, "b l d"], run: Callable[[], Float[Array, "b l d"]]
    ) -> tuple[Float[Array, "b l d"], "StepCache"]:
        """Return what the other blocks add in this step, and the cache of the next one.

        Args:
          first: (1) of this step.
          run: computes (2) of this step; it does not run where all samples reuse theirs.
        """
        mean = lambda x: jnp.mean(jnp.abs(x), axis=(1, 2))
        now, before = first.astype(jnp.float32), self.first.astype(jnp.float32)
        # Before the first step nothing is kept: the right side is 0, and no change is smaller.
        reuse = mean(now - before) < self.threshold * mean(before)
        kept = reuse[:, None, None]
        rest = jax.lax.cond(jnp.all(reuse), lambda: self.rest, lambda: jnp.where(kept, self.rest, run()))
        first = jnp.where(kept, self.first, first)
        return rest, self._replace(first=first, rest=rest, reused=self.reused + reuse)
