# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Exceptions whose messages are written for users."""

import os
import sys
from collections.abc import Callable
from functools import wraps


class InputError(ValueError):
    """An error caused by user input; the message names the offending value and how to fix it."""


class BadExample(InputError):
    """An example of a data set that cannot be read. Training skips up to config.data.max_errors of them."""


def exit_cleanly(main: Callable) -> Callable:
    """Wrap a command's `main`: an `InputError` becomes one line on stderr and exit code 2, without a traceback.

    Characters that stdout cannot write, such as é where it is ASCII, appear as \\xe9.

    Ctrl-C exits with code 130. A closed stdout, as from `| head`, exits with code 1 and no message.
    """

    @wraps(main)
    def wrapped(*args, **kwargs):
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # names of files may be any bytes, and a terminal may be ASCII
                stream.reconfigure(errors="backslashreplace")
        try:
            result = main(*args, **kwargs)
            sys.stdout.flush()
            return result
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:
            if not _reader_left():
                raise
            # Python flushes stdout at exit, which must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)

    return wrapped


def _reader_left() -> bool:
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False
