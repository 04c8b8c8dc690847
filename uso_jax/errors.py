# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The exceptions a user is meant to read."""

import sys
from collections.abc import Callable
from functools import wraps


class InputError(ValueError):
    """A mistake the user can mend: one clear sentence that names the thing and the remedy."""


class BadExample(InputError):
    """One example of a data set cannot be read; a run may be told to leave out a few (config.data.max_errors)."""


def exit_cleanly(main: Callable) -> Callable:
    """Wrap a command's `main`: an `InputError` becomes one line on stderr and exit code 2, without a traceback."""

    @wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return wrapped
