# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The noisy latents of a batch: where sampling begins, and what is set back after each step.

Shapes: b batch, l tokens, d token channels.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uso_jax import flow


@dataclass(frozen=True, eq=False)
class Latents:
    """What does not change while a batch is sampled.

    Attributes:
      noise: latents at time 1.
      start: latents of the images to edit, at time 0; None: there are none.
      drawn: how much of each latent is drawn anew; None: all.
    """

    noise: Float[Array, "b l d"]
    start: Float[Array, "b l d"] | None = None
    drawn: Float[Array, "b l d"] | None = None

    def begin(self, t: Float[Array, " b"]) -> Float[Array, "b l d"]:
        """Return the latents at the first time."""
        return self.noise if self.start is None else _interpolate(self.start, self.noise, t)

    def keep(self, x: Float[Array, "b l d"], t: Float[Array, " b"]) -> Float[Array, "b l d"]:
        """Set back what is not drawn anew to the image with the noise of time t."""
        return x if self.drawn is None else _blend(x, self.start, self.noise, t, self.drawn)


_interpolate = jax.jit(flow.interpolate)


@jax.jit
def _blend(x: Array, start: Array, noise: Array, t: Array, drawn: Array) -> Array:
    return drawn * x + (1 - drawn) * flow.interpolate(start, noise, t)


@jax.jit
def vary(noise: Float[Array, "b l d"], other: Float[Array, "b l d"], share: Float[Array, " b"]) -> Array:
    """Move noise towards other noise along the circle through both, so that it stays normal."""
    angle = (0.5 * jnp.pi * share)[:, None, None]
    return jnp.cos(angle) * noise + jnp.sin(angle) * other
