# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Progress bars with rate and remaining time; they refresh rarely when stderr is not a terminal."""

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_LOG_SECONDS = 10.0  # minimum interval between updates in a log; TQDM_MININTERVAL overrides it


def bar(iterable: Iterable | None = None, desc: str | None = None, **settings: Any) -> tqdm:
    """Create a progress bar on stderr. Takes tqdm's arguments."""
    settings.setdefault("dynamic_ncols", True)
    if not sys.stderr.isatty() and "TQDM_MININTERVAL" not in os.environ:
        settings.setdefault("mininterval", _LOG_SECONDS)
    return tqdm(iterable, desc, **settings)
