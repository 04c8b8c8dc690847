# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Model parameters as a flat dict {"/"-joined path: array}, and ordered rules over these paths.

Sharding, trainable parameters and learning rates use the same rules: `((regex, value), ...)`, matched against the whole
path, first match wins. A path without a rule and a rule without a path are errors, so nothing is skipped silently.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from uso_jax.common.errors import InputError

T = TypeVar("T")
Rules = Sequence[tuple[str, T]]
Params = dict[str, jax.Array]


def from_model(model: nnx.Module) -> Params:
    """Return the parameters of a model by path."""
    return {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def shapes(make: Callable[[nnx.Rngs], nnx.Module]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the parameter shapes of the model that `make` builds, without allocating it."""
    state = nnx.state(_described(make), nnx.Param)
    return {"/".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


class _OneKey(nnx.RngStream):
    """A stream of the same key: to fold keys and to count them is almost half of the time of tracing initialisers."""

    def __call__(self) -> jax.Array:
        return self.key[...]


def _described(make: Callable[[nnx.Rngs], nnx.Module]) -> nnx.Module:
    """Return the module that `make` builds, with shapes as parameters."""

    def build() -> nnx.Module:
        rngs = nnx.Rngs(0)
        rngs.default = _OneKey(jax.random.key(0), tag="default")
        return make(rngs)

    return nnx.eval_shape(build)


class ModelDef:
    """The static part of a model: `structure(params)` rebuilds the module, inside or outside `jit`."""

    def __init__(self, make: Callable[[nnx.Rngs], nnx.Module]):
        self._make = make
        self._graphdef, state = nnx.split(_described(make), nnx.Param)
        self._variables = {"/".join(map(str, path)): (path, leaf) for path, leaf in nnx.to_flat_state(state)}
        self.shapes = {path: leaf.get_value() for path, (_, leaf) in self._variables.items()}

    def init(self, rng: jax.Array) -> Params:
        """Initialise the parameters. Call it under jit with output shardings to place them."""
        return from_model(self._make(nnx.Rngs(rng)))

    def __call__(self, params: Mapping[str, Any]) -> nnx.Module:
        """Rebuild the module with `params`.

        Raises:
          ValueError: parameters are missing or unexpected.
        """
        if params.keys() != self.shapes.keys():
            missing, stray = sorted(self.shapes.keys() - params.keys()), sorted(params.keys() - self.shapes.keys())
            raise ValueError(f"parameters do not match the model: missing {missing[:5]}, unexpected {stray[:5]}")
        leaves = [(path, leaf.replace(params[name])) for name, (path, leaf) in self._variables.items()]
        return nnx.merge(self._graphdef, nnx.from_flat_state(leaves))


def structure(make: Callable[[nnx.Rngs], nnx.Module]) -> ModelDef:
    """Return the structure of the model that `make` builds; equal makers share one, as a run needs it several times."""
    try:
        hash(make)
    except TypeError:  # sizes in a list
        return ModelDef(make)
    return _structure(make)


_structure = functools.lru_cache(maxsize=64)(ModelDef)


def match(rules: Rules, paths: Iterable[str], what: str = "rules", *, use_all: bool = True) -> dict[str, Any]:
    """Map each path to the value of its first matching rule.

    Raises:
      InputError: a path matches no rule, or (with `use_all`) a rule matches no path. `what` names the rules in the
        message.
    """
    used, values, unmatched = set(), {}, []
    for path in paths:
        for i, (regex, value) in enumerate(rules):
            if re.fullmatch(regex, path):
                values[path] = value
                used.add(i)
                break
        else:
            unmatched.append(path)
    if unmatched:
        raise InputError(
            f"{what}: no rule matches {', '.join(unmatched[:5])}; add one, for example ('.*', ...) as the last rule"
        )
    unused = [rules[i][0] for i in range(len(rules)) if i not in used]
    if unused and use_all:
        raise InputError(f"{what}: {', '.join(map(repr, unused))} matches no parameter; fix or remove it")
    return values


def cast(params: Mapping[str, jax.Array], dtype) -> Params:
    """Cast floating-point parameters to `dtype`; others are unchanged."""
    return {k: v.astype(dtype) if jnp.issubdtype(v.dtype, jnp.floating) else v for k, v in params.items()}


def count(params: Mapping[str, Any]) -> int:
    """Return the number of elements in parameters or their shapes."""
    return sum(x.size for x in params.values())
