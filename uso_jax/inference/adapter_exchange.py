# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Other adapters for weights that are on the devices: what differs is read again and merged anew."""

from uso_jax.inference.sampler import HOST, Sampler
from uso_jax.models.components import by_component
from uso_jax.models.uso import USO
from uso_jax.weights import quantization
from uso_jax.weights.pretrained import Pretrained


def exchange_adapters(old: Sampler, before: Pretrained, after: Pretrained) -> tuple[USO, Sampler]:
    """Load what differs between two sets of adapters; the old numbers are freed first, as both may not fit the devices.

    Args:
      old: the sampler; its parameters are those of `before`, and change.
      before: weights with the adapters until now.
      after: the same weights with others.

    Returns:
      the networks and the sampler, new ones if adapters stay beside quantised weights.

    Raises:
      InputError: numbers are NaN or infinite. The old ones are loaded again.
    """
    system = old.system if after.system == before.system else old.system.with_config(after.system)
    changed = after.adapted.changed(before.adapted)
    memory = HOST if any(value.sharding.memory_kind == HOST for value in old.params.values()) else "device"
    known = by_component(old.system.shapes)
    gone = {known[name][path] for name, paths in changed.items() for path in paths if path in known.get(name, {})}
    old.drop({*gone, *map(quantization.scale_path, gone)})
    try:
        params = after.load(system, old.mesh, memory, paths=changed)
    except BaseException:
        old.add(before.load(old.system, old.mesh, memory, paths=changed))
        raise
    if system is old.system:
        old.add(params)
        return system, old
    return system, Sampler(system, old.params | params, old.mesh, old.tile)
