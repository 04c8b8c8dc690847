# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The tokenizer that lies beside a text encoder's weights, copied with them so that a weights directory is complete.

Published encoders have it in their own folder, or, where encoders of a pipeline lie in folders called text_encoder and
text_encoder_2, in a neighbour called tokenizer or tokenizer_2.
"""

import pathlib
import shutil

from uso_jax import weights
from uso_jax.common.errors import InputError

VOCABULARIES = ("tokenizer.json", "spiece.model", "vocab.json")  # one of them makes a folder a tokenizer's
FILES = (*VOCABULARIES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "config.json")


def copy(component: str, weights_file: pathlib.Path, directory: str | pathlib.Path) -> pathlib.Path | None:
    """Copy a text encoder's tokenizer into a weights directory; give its folder there, or None if there is none.

    Raises:
      InputError: it could not be written; one that was there is untouched.
    """
    own = weights_file.absolute().parent
    beside = own.parent / own.name.replace("text_encoder", "tokenizer")
    source = next((f for f in (own, beside) if any((f / name).is_file() for name in VOCABULARIES)), None)
    if source is None:
        return None
    target = weights.tokenizer(directory, component)
    temporary, old = (target.with_name(f".{target.name}.{end}") for end in ("partial", "old"))
    try:
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir()
        for name in FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, temporary / name)
        if target.exists():
            target.rename(old)
        temporary.rename(target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}; free some space and copy {source} there") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return target
