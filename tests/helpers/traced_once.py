# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Programs that every run of one configuration makes anew, traced by the first run alone.

JAX knows a traced program by its function. A run jits functions that it has just made, so the same run in the same
process traces all of them again, which takes longer than its few steps.
"""

import contextlib
import functools
import types
from collections.abc import Hashable, Iterator, Mapping

import jax
import numpy as np
import pytest

from uso_jax.params import ModelDef

_MADE: dict[Hashable, tuple] = {}


@contextlib.contextmanager
def traced_once() -> Iterator[None]:
    """Let `jax.jit` return what it returned before, for functions of uso_jax that hold the same with the same options.

    A test that changes what the functions call needs `apart`.
    """
    jit = jax.jit

    @functools.wraps(jit)
    def once(function, **options):
        maker = function.func if isinstance(function, functools.partial) else function
        if not getattr(maker, "__module__", "").startswith("uso_jax"):
            return jit(function, **options)
        key = _key((function, options), {})
        if key not in _MADE:
            _MADE[key] = jit(function, **options), function, options  # what has its identity in the key stays alive
        return _MADE[key][0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", once)
        yield
    _MADE.clear()


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Neither use programs that were traced before, nor keep those that are traced here."""
    before = dict(_MADE)
    _MADE.clear()
    yield
    _MADE.clear()
    _MADE.update(before)


def _key(value: object, within: dict[int, int]) -> Hashable:
    """Return a key of a value: of a function by its code and all that it holds, of other objects by what is in them.

    What may differ in another way has its identity as key. `within` has the depth of the objects around it.
    """
    if id(value) in within:
        return "again", within[id(value)]
    inner = functools.partial(_key, within=within | {id(value): len(within)})
    match value:
        case types.MethodType():
            return "method", inner(value.__func__), inner(value.__self__)
        case types.FunctionType():
            if hasattr(value, "__wrapped__"):  # by jaxtyping
                return inner(value.__wrapped__)
            held = tuple(inner(cell.cell_contents) for cell in value.__closure__ or () if _is_full(cell))
            defaults = inner(value.__defaults__), inner(value.__kwdefaults__)
            return value.__module__, value.__qualname__, value.__code__, held, defaults
        case functools.partial():
            return "partial", inner(value.func), inner(value.args), inner(value.keywords)
        case ModelDef():
            return "ModelDef", inner(value._make)
        case list() | tuple():
            return type(value), tuple(map(inner, value))
        case Mapping():
            return type(value), tuple((name, inner(one)) for name, one in value.items())
        case np.ndarray():
            return "array", value.shape, value.dtype.str, value.tobytes()
    if type(value).__module__.partition(".")[0] == "uso_jax":
        cached = functools.cached_property
        kept = {k: v for k, v in vars(value).items() if not isinstance(getattr(type(value), k, None), cached)}
        return type(value), inner(kept)
    try:
        hash(value)
    except TypeError:
        return "identity", id(value)
    return type(value), value


def _is_full(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
