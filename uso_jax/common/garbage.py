# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the garbage collector does not look at."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """Import modules inside without garbage collection, and leave what they made out of all later ones.

    The modules of a command live as long as its process. To look through their 250,000 objects again and again
    takes a fifth of the time of a short command (docs/performance.md).
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
