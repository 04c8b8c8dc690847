# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The one error about everything that a weights directory lacks, with the commands that bring it."""

import pathlib
from collections.abc import Sequence

from uso_jax.common.errors import InputError
from uso_jax.models.components import COMPONENTS


def missing_components(
    directory: pathlib.Path, absent: Sequence[str], why: str, more: Sequence[str] = ()
) -> InputError:
    """Return the error.

    Args:
      directory: the weights directory.
      absent: folders of all components that it lacks.
      why: what they are needed for, as the rest of a sentence that ends with their names.
      more: further ones that `why` names.
    """
    releases = {row.folder: row.release for row in reversed(COMPONENTS.values())}  # the first row of a folder counts
    named = list(
        dict.fromkeys(found for name in [*absent, *more] if (found := releases.get(name) or _ADAPTERS.get(name)))
    )
    download = f"uso-convert download {' '.join(named)}, then " if named else ""
    return InputError(
        f"{directory} has no {', '.join(absent)}{why}; get what is missing with: {download}"
        f"uso-convert import FILE ... --to {directory}"
    )


_ADAPTERS = {"lora": "uso", "projector": "uso"}
