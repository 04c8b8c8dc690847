# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The exceptions a user is meant to read."""

import os
import sys
from collections.abc import Callable
from functools import wraps


class InputError(ValueError):
    """A mistake the user can mend: one clear sentence that names the thing and the remedy."""


class BadExample(InputError):
    """One example of a data set cannot be read; a run may be told to leave out a few (config.data.max_errors)."""


def exit_cleanly(main: Callable) -> Callable:
    """Wrap a command's `main`: an `InputError` becomes one line on stderr and exit code 2, without a traceback.

    A reader that has seen enough, such as `head`, ends it quietly.
    """

    @wraps(main)
    def wrapped(*args, **kwargs):
        try:
            result = main(*args, **kwargs)
            sys.stdout.flush()
            return result
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except BrokenPipeError:
            if not _reader_left():
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain as it ends
            sys.exit(1)

    return wrapped


def _reader_left() -> bool:
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False
