# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Joint attention on TPU from projected tokens to merged heads in two kernels, sharded by samples and heads.

Shapes: b batch, l tokens of a stream, t padded tokens of all streams, r kept tokens, n heads, k head width, d = n k.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from uso_jax.models.attention.flash import QUERY_FACTOR, flash_attention, key_mask
from uso_jax.models.attention.heads_first import Layout, Stream, Tables, heads_first
from uso_jax.parallel.constraints import batch_axes, head_axes

_SUBLANES = 16  # number of keys is a multiple of this


def fused_attention(
    streams: Sequence[Stream],
    tables: Tables,
    heads: int,
    key_valid: Bool[Array, "_ keys"] | None = None,
    kept: tuple[Float[Array, "b r n k"], Float[Array, "b r n k"]] | None = None,
    *,
    interpret: bool = False,
) -> tuple[list[Float[Array, "b _ d"]], Float[Array, "b l n k"], Float[Array, "b l n k"]]:
    """Return the attention of all streams to each other and to kept tokens.

    Args:
      streams: projected tokens, which follow each other in the sequence, with the factors of their norms.
      tables: of the sequence.
      heads: number of heads.
      key_valid: False masks a key; keys are the sequence's tokens, then the kept ones.
      kept: rotated keys, and values, of kept tokens.
      interpret: let Pallas interpret the kernels on any platform.

    Returns:
      merged heads of every stream, and the rotated keys and the values of the sequence.
    """
    b, width = streams[0].qkv.shape[0], tables.cos.shape[-1]
    empty = jnp.zeros((b, 0, heads * width), streams[0].qkv.dtype)
    present = [stream.qkv.shape[1] > 0 for stream in streams]  # isolated references have no text beside them
    streams = [stream for stream, is_present in zip(streams, present, strict=True) if is_present]
    lengths = tuple(stream.qkv.shape[1] for stream in streams)
    layout = Layout(lengths, heads)
    factors = jnp.asarray([[width**-0.5 * QUERY_FACTOR], [1.0]], jnp.float32)
    scales = [stream.scales.astype(jnp.float32) * factors for stream in streams]
    largest = jnp.abs(jnp.stack(scales)).max(axis=(0, 2))
    limit = width * largest[0] * largest[1]  # a normalised head has the length width**0.5
    mask = _mask(layout, b, key_valid, 0 if kept is None else kept[0].shape[1])
    tables = Tables(*map(layout.pad, tables))

    def local(qkvs, scales, tables, limit, mask, kept):
        parts = [qkv.reshape(*qkv.shape[:2], -1) for qkv in qkvs]
        own = Layout(lengths, qkvs[0].shape[-1] // width)
        q, k, v = heads_first([Stream(*one) for one in zip(parts, scales, strict=True)], tables, own, interpret)
        all_k, all_v = (k, v) if kept is None else (_append(x, y) for x, y in zip((k, v), kept, strict=True))
        return flash_attention(q, all_k, all_v, limit, mask, interpret), k, v

    qkvs = [stream.qkv.reshape(*stream.qkv.shape[:2], 3, -1) for stream in streams]
    if not jax.sharding.get_abstract_mesh().empty:
        # XLA cannot partition a Pallas kernel automatically.
        batch, by_head = batch_axes(b) or None, head_axes(heads) or None
        of_tables = P(batch if len(tables.cos) > 1 else None)
        rows = P(batch, by_head)
        local = jax.shard_map(
            local,
            in_specs=(P(batch, None, None, by_head), P(), of_tables, P(), P(batch), P(batch, None, by_head)),
            out_specs=(P(batch, None, by_head), rows, rows),
            check_vma=False,
        )
    out, k, v = local(qkvs, scales, tables, limit, mask, kept)
    k, v = (jnp.concatenate(layout.streams(x.swapaxes(1, 2)), axis=1) for x in (k, v))
    found = iter(layout.streams(out))
    return [next(found) if is_present else empty for is_present in present], k, v


def _mask(layout: Layout, b: int, valid: Array | None, num_kept: int) -> Float[Array, "b s 128"] | None:
    own, filling = sum(layout.lengths), -num_kept % _SUBLANES
    if valid is None:
        if layout.padded == own and not filling:
            return None
        valid = jnp.ones((b, own + num_kept), bool)
    valid = jnp.broadcast_to(valid, (b, valid.shape[1]))
    parts = [layout.pad(valid[:, :own], False), jnp.pad(valid[:, own:], ((0, 0), (0, filling)))]
    return key_mask(jnp.concatenate(parts, axis=1) if num_kept else parts[0])


def _append(x: Float[Array, "b n t k"], kept: Float[Array, "b r n k"]) -> Float[Array, "b n s k"]:
    """Append kept tokens, padded to whole sublanes."""
    kept = jnp.pad(kept.swapaxes(1, 2), ((0, 0), (0, 0), (0, -kept.shape[1] % _SUBLANES), (0, 0)))
    return jnp.concatenate([x, kept.astype(x.dtype)], axis=2)
