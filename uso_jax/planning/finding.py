# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One result of an examination."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from uso_jax.common.errors import InputError

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """What was examined, its state, what was found, and what to do about it ("" if nothing).

    A problem stops a run. A note does not, but may surprise.
    """

    subject: str
    state: State
    text: str
    remedy: str = ""


def check(subject: str, text: str, function: Callable, *arguments) -> Finding:
    """Call a check that raises InputError; `text` describes its success."""
    try:
        function(*arguments)
    except InputError as error:
        return Finding(subject, "problem", str(error))
    return Finding(subject, "ok", text)
