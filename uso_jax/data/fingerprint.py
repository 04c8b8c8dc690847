# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What identifies the rows of a source: a continued run must read the same ones in the same order."""

from typing import Any

from uso_jax.data.sources import Mixture
from uso_jax.data.swapped import Swapped
from uso_jax.data.triplet import TripletSource


def fingerprint(source: TripletSource | Mixture) -> Any:
    """Return the number of examples of a source and a digest of its rows, as JSON terms; of a mixture, of each part.

    Images are not read. A source that draws its examples has no rows: its settings decide them.
    """
    if isinstance(source, Mixture):
        return [fingerprint(part) for part in source.sources]
    if isinstance(source, Swapped):
        return fingerprint(source.source)
    rows = {"rows": source.digest()} if hasattr(source, "digest") else {}
    return {"examples": len(source)} | rows
