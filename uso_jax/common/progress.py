# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Progress bars with rate and remaining time: alive on a terminal, now and then in a log."""

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_LOG_SECONDS = 10.0  # between two states of a bar that nobody watches; TQDM_MININTERVAL sets another


def bar(iterable: Iterable | None = None, desc: str | None = None, **settings: Any) -> tqdm:
    """Make a bar on stderr; arguments are tqdm's."""
    settings.setdefault("dynamic_ncols", True)
    if not sys.stderr.isatty() and "TQDM_MININTERVAL" not in os.environ:
        settings.setdefault("mininterval", _LOG_SECONDS)
    return tqdm(iterable, desc, **settings)
