# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Stacks of identical blocks: parameters with a leading layer axis, applied by one scan with a named remat policy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from uso_jax.parallel.constraints import as_it_lies, batch_axes, sequence_shards

REMAT_POLICIES: dict[str, Callable | None] = {
    # Keep only each block's input; recompute everything else in the backward pass.
    "full": jax.checkpoint_policies.nothing_saveable,
    # Keep each block's input in host memory.
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["block_input"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
    # Also keep the attention output, the most expensive part to recompute for long sequences.
    "attention": jax.checkpoint_policies.save_only_these_names("attention"),
    # Keep the result of every linear layer; recompute norms, activations and attention weights.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    # Keep everything.
    "none": None,
}


def check_remat(remat: str) -> None:
    """Raise a ValueError if there is no such policy."""
    if remat not in REMAT_POLICIES:
        raise ValueError(f"remat must be one of {', '.join(REMAT_POLICIES)}, not {remat!r}")


def stack(make: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """Build `depth` differently initialised copies of a block as one module with a leading layer axis."""
    return nnx.split_rngs(splits=depth)(nnx.vmap(make))(rngs)


def constrain_batch(x: jax.Array) -> jax.Array:
    """Constrain the leading axis to the mesh's batch axes. No-op without such a mesh."""
    axes = batch_axes(x.shape[0]) if x.ndim else ()
    return jax.lax.with_sharding_constraint(x, P(axes)) if axes else x


def constrain_tokens(x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
    """Constrain the leading axis to the mesh's batch axes, and tokens to its sequence axis."""
    if sequence_shards() == 1:
        return constrain_batch(x)
    return jax.lax.with_sharding_constraint(x, P(batch_axes(len(x)) or None, "sequence"))


def scan(blocks: nnx.Module, step: Callable[[nnx.Module, Any], Any], carry: Any, **options) -> Any:
    """Apply `carry = step(block, carry)` for each block of a stack; `options` are those of `scan_layers`."""
    return scan_layers(blocks, lambda block, carry, _: (step(block, carry), None), carry, **options)[0]


def scan_layers(
    blocks: nnx.Module,
    step: Callable[[nnx.Module, Any, Any], tuple[Any, Any]],
    carry: Any,
    inputs: Any = None,
    *,
    remat: str = "none",
    constrain: Callable[[jax.Array], jax.Array] = constrain_batch,
    layers: range | None = None,
) -> tuple[Any, Any]:
    """Apply `carry, output = step(block, carry, input)` for each block of a stack.

    Args:
      blocks: a stack of blocks from `stack`.
      step: (block, carry, the block's input) -> (carry, the block's output).
      carry: initial carry, a pytree of arrays.
      inputs: a pytree of arrays with a leading layer axis.
      remat: a key of REMAT_POLICIES.
      constrain: sharding constraint applied to every array of the carry.
      layers: numbers of the blocks to apply, in a row; None: all.

    Returns:
      the last carry, and the outputs with a leading layer axis.
    """
    graphdef, params = nnx.split(blocks)
    stacked = params, inputs

    def body(carry, layer):
        if layers is not None:
            layer = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False), stacked)
        carry = jax.tree.map(lambda x: checkpoint_name(x, "block_input"), carry)
        weights = jax.tree.map(lambda x: as_it_lies(x) if x.ndim == 2 else x, layer[0])
        carry, output = step(nnx.merge(graphdef, weights), carry, layer[1])
        return jax.tree.map(constrain, carry), output

    if remat != "none":
        body = jax.checkpoint(body, policy=REMAT_POLICIES[remat], prevent_cse=False)
    # A slice of the stack would be a copy of its weights, so a part of the blocks is found by number.
    over = stacked if layers is None else jnp.arange(layers.start, layers.stop)
    return jax.lax.scan(body, jax.tree.map(constrain, carry), over)
