# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Rectified flow as used by FLUX.1, FLUX.2 and USO: pure functions without state or parameters.

Time runs from t = 1 (noise) to t = 0 (image); the network predicts the velocity dx/dt.

    (1) x_t = (1 - t) x_0 + t e                     e ~ N(0, I)                    `interpolate`
    (2) v   = e - x_0                                                              `velocity_target`
    (3) x_s = x_t + (s - t) v                       s < t                          `euler_step`
    (4) x_0 = x_t - t v                             (3) at s = 0                   `predict_x0`
    (5) shift(t) = e^mu / (e^mu + 1/t - 1)                                         `time_shift`
    (6) mu(L) = 0.5 + 0.65 (L - 256) / (4096 - 256) L image tokens                 `shift_mu`
    (7) mu(L, n): a line through n = 10 and n = 200 n steps, FLUX.2                `empirical_mu`
    (8) v   = u + s (c - u)                         classifier-free guidance       `guide`
    (9) x_s = x_t + (s - t) (v_t + (s - t) / (2 (t - r)) (v_t - v_r))   r > t     `adams_step`

Sources: (1)-(4) USO paper (arXiv 2508.18966) section 3 and Algorithm 1; (5), (6) black-forest-labs/flux sampling.py;
(7), (8) and ids with four axes: black-forest-labs/flux2 sampling.py; (9): the second-order Adams-Bashforth method for
steps of different lengths (Hairer, Norsett, Wanner: Solving Ordinary Differential Equations I, III.5); position ids of
references with three axes: bytedance/UNO, `prepare_multi_ip` (UnoPE).

Shapes: b batch, h w latent grid, c latent channels, l tokens, d = c * patch**2 token channels.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Shift = Literal["flux", "upstream", "none"]
OffsetMode = Literal["d", "h", "w", "o"]
Solver = Literal["euler", "adams"]
Isolated = Literal["none", "content", "all"]
"""References that attend to each other only, and whose keys and values are kept: none, those from the autoencoder, or
those and the style tokens (uso_jax.models.joint_transformer)."""


# ---------------------------------------------------------------------------------------------------- time


def shift_mu(num_tokens: int, base: float = 0.5, top: float = 1.15) -> float:
    """Return the shift exponent of Eq. (6) for a target of `num_tokens` image tokens."""
    return base + (top - base) * (num_tokens - 256) / (4096 - 256)


def empirical_mu(num_tokens: int, num_steps: int) -> float:
    """Return FLUX.2's shift exponent, Eq. (7), for a target of `num_tokens` tokens drawn in `num_steps` steps."""
    many = 1.6927e-4 * num_tokens + 0.45666666  # at 200 steps
    if num_tokens > 4300:
        return many
    few = 8.73809524e-5 * num_tokens + 1.89833333  # at 10 steps
    return many + (many - few) / 190 * (num_steps - 200)


def time_shift(t, mu: float):
    """Shift times towards noise by Eq. (5). t = 0 and t = 1 are fixed points."""
    xp = jnp if isinstance(t, jax.Array) else np
    safe = xp.where(t > 0, t, 1.0)
    return xp.where(t > 0, math.exp(mu) / (math.exp(mu) + (1 / safe - 1)), 0.0)


def schedule(num_steps: int, height: int, width: int, shift: Shift = "flux") -> np.ndarray:
    """Return the `num_steps + 1` float64 sampling times from 1 to 0 for an image of `height` x `width` pixels.

    Args:
      shift: "flux" shifts by the true token count, pixels / 16**2. "upstream" reproduces USO's released inference code,
        which divides the latent area by 256 a second time (64 tokens at 1024 x 1024); the released weights are used
        with it. "none" keeps the times evenly spaced.

    Raises:
      ValueError: `shift` is unknown.
    """
    times = np.linspace(1.0, 0.0, num_steps + 1)
    if shift == "none":
        return times
    if shift not in ("flux", "upstream"):
        raise ValueError(f"shift must be 'flux', 'upstream' or 'none', not {shift!r}")
    latent_area = (height // 8) * (width // 8)
    return time_shift(times, shift_mu(latent_area // (4 if shift == "flux" else 256)))


def empirical_schedule(num_steps: int, num_tokens: int, shift: Shift = "flux") -> np.ndarray:
    """Return FLUX.2's `num_steps + 1` float64 sampling times from 1 to 0 for a target of `num_tokens` tokens.

    Args:
      shift: "none" keeps the times evenly spaced; FLUX.2 knows no other shift than its own.

    Raises:
      ValueError: `shift` is unknown.
    """
    if shift not in ("flux", "upstream", "none"):
        raise ValueError(f"shift must be 'flux', 'upstream' or 'none', not {shift!r}")
    times = np.linspace(1.0, 0.0, num_steps + 1)
    return times if shift == "none" else time_shift(times, empirical_mu(num_tokens, num_steps))


def sample_times(rng: jax.Array, num: int, mu: float, num_bins: int = 1000) -> Float[Array, " num"]:
    """Sample training times uniformly from `num_bins` shifted times, both ends included, as UNO's trainer does."""
    table = time_shift(np.linspace(1.0, 0.0, num_bins), mu).astype(np.float32)
    return jnp.asarray(table)[jax.random.randint(rng, (num,), 0, num_bins)]


# ---------------------------------------------------------------------------------------------------- path


def _per_sample(t: Float[Array, " b"], like: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    return t.reshape(t.shape + (1,) * (like.ndim - 1))


def interpolate(
    x0: Float[Array, "b *rest"], noise: Float[Array, "b *rest"], t: Float[Array, " b"]
) -> Float[Array, "b *rest"]:
    """Interpolate between image and noise, Eq. (1)."""
    t = _per_sample(t, x0)
    return (1 - t) * x0 + t * noise


def velocity_target(x0: Float[Array, "b *rest"], noise: Float[Array, "b *rest"]) -> Float[Array, "b *rest"]:
    """Return the velocity that the network is trained to predict, Eq. (2)."""
    return noise - x0


def euler_step(
    x_t: Float[Array, "b *rest"], velocity: Float[Array, "b *rest"], t: Float[Array, " b"], s: Float[Array, " b"]
) -> Float[Array, "b *rest"]:
    """Take one Euler step from time t to time s, Eq. (3)."""
    return x_t + _per_sample(s - t, x_t) * velocity


def adams_step(
    x_t: Float[Array, "b *rest"],
    velocity: Float[Array, "b *rest"],
    earlier: Float[Array, "b *rest"],
    r: Float[Array, " b"],
    t: Float[Array, " b"],
    s: Float[Array, " b"],
) -> Float[Array, "b *rest"]:
    """Take a step from time t to s by the velocities at t and, `earlier`, at r, Eq. (9); r = infinity is Eq. (3)."""
    slope = _per_sample((s - t) / (2 * (t - r)), x_t) * (velocity - earlier)
    return x_t + _per_sample(s - t, x_t) * (velocity + slope)


def predict_x0(
    x_t: Float[Array, "b *rest"], velocity: Float[Array, "b *rest"], t: Float[Array, " b"]
) -> Float[Array, "b *rest"]:
    """Predict the image in one step, Eq. (4): the "predicted original image" of the paper's Algorithm 1."""
    return x_t - _per_sample(t, x_t) * velocity


def guide(
    conditional: Float[Array, "b *rest"], unconditional: Float[Array, "b *rest"], scale: Float[Array, " b"]
) -> Float[Array, "b *rest"]:
    """Move the velocity away from that of the negative prompt, Eq. (8); scale 1 changes nothing."""
    return unconditional + _per_sample(scale, conditional) * (conditional - unconditional)


def integrate(
    velocity: Callable[[Float[Array, "b *rest"], Float[Array, " b"]], Float[Array, "b *rest"]],
    x: Float[Array, "b *rest"],
    times: Float[Array, " steps_plus_1"],
) -> Float[Array, "b *rest"]:
    """Integrate `velocity(x_t, t)` over `times` with Euler steps in one `lax.scan`."""

    def body(x, pair):
        t, s = jnp.broadcast_to(pair[:, None], (2, x.shape[0]))
        return euler_step(x, velocity(x, t), t, s), None

    return jax.lax.scan(body, x, jnp.stack([times[:-1], times[1:]], axis=1))[0]


# ---------------------------------------------------------------------------------------------------- tokens


def pack(latent: Float[Array, "b h w c"], patch: int = 2) -> Float[Array, "b l d"]:
    """Turn a latent grid into tokens, row by row. Channels vary slowest within a token, as in FLUX."""
    return einops.rearrange(latent, "b (h p) (w q) c -> b (h w) (c p q)", p=patch, q=patch)


def unpack(tokens: Float[Array, "b l d"], height: int, width: int, patch: int = 2) -> Float[Array, "b h w c"]:
    """Invert `pack`. `height` and `width` are in tokens."""
    return einops.rearrange(tokens, "b (h w) (c p q) -> b (h p) (w q) c", h=height, w=width, p=patch, q=patch)


def position_ids(height: int, width: int, offset: tuple[int, int] = (0, 0)) -> Float[Array, "l 3"]:
    """Return the position ids (0, row, column) of a `height` x `width` token grid that starts at `offset`."""
    rows, columns = np.mgrid[offset[0] : offset[0] + height, offset[1] : offset[1] + width].reshape(2, -1)
    return jnp.asarray(np.stack([np.zeros_like(rows), rows, columns], axis=-1), jnp.float32)


def reference_ids(
    target: tuple[int, int], references: Sequence[tuple[int, int]], mode: OffsetMode = "d"
) -> list[Float[Array, "l 3"]]:
    """Return the position ids of content references. All sizes are (rows, columns) in tokens.

    The first reference starts where the target ends, each later one where its predecessor ended.

    Args:
      mode: the axes to offset along: "d" both (diagonal, used to train USO), "h" rows, "w" columns, "o" neither.

    Raises:
      ValueError: `mode` is unknown.
    """
    if mode not in ("d", "h", "w", "o"):
        raise ValueError(f"mode must be one of 'd', 'h', 'w', 'o', not {mode!r}")
    row, column = target
    ids = []
    for height, width in references:
        ids.append(position_ids(height, width, (row if mode in "dh" else 0, column if mode in "dw" else 0)))
        row, column = row + height, column + width
    return ids


def layered_ids(height: int, width: int, layer: int = 0) -> Float[Array, "l 4"]:
    """Return FLUX.2's position ids (layer, row, column, 0) of a `height` x `width` token grid; the target's layer is 0.

    The last axis numbers text tokens, which lie at (0, 0, 0, l).
    """
    flat = position_ids(height, width)
    return jnp.pad(flat.at[:, 0].set(float(layer)), ((0, 0), (0, 1)))


def layered_reference_ids(
    target: tuple[int, int], references: Sequence[tuple[int, int]], mode: OffsetMode = "d"
) -> list[Float[Array, "l 4"]]:
    """Return FLUX.2's position ids of references: layers 10, 20, ..., each with rows and columns from 0.

    `target` and `mode` have no influence: FLUX.2 separates references by layers.
    """
    return [layered_ids(*size, layer=10 * (number + 1)) for number, size in enumerate(references)]
