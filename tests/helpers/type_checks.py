# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""beartype's checks of annotated functions, made when a function is first called.

A test process imports all packages and calls a part of their functions. jaxtyping decorates a function that is defined
in another one whenever that one is called, with the same checks.
"""

from collections.abc import Callable

from beartype import beartype

_CHECKS: dict[tuple, Callable] = {}


def checked(function: Callable) -> Callable:
    """Return a function that does what `beartype(function)` does; `--jaxtyping-packages` names it."""
    check = None

    def call(*args, **kwargs):
        nonlocal check
        if check is None:
            check = _check(function)
        return check(*args, **kwargs)

    return call


def _check(function: Callable) -> Callable:
    """Return the checks of a function that jaxtyping made: it has no body, so its signature says all."""
    code = function.__code__
    key = (
        (function.__module__, function.__qualname__, code.co_code, code.co_varnames, code.co_flags),
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount),
        (len(function.__defaults__ or ()), tuple(function.__kwdefaults__ or ())),
        tuple(function.__annotations__.items()),
    )
    try:
        if key not in _CHECKS:
            _CHECKS[key] = beartype(function)
    except TypeError:  # an annotation that has no hash
        return beartype(function)
    return _CHECKS[key]
