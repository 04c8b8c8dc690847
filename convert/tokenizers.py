# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Copy the tokenizer beside a text encoder's weights, so that a weights directory is complete.

Published encoders have it in their own folder. Pipelines with folders text_encoder and text_encoder_2 have it in
neighbours called tokenizer and tokenizer_2.
"""

import pathlib
import shutil

from uso_jax import weights
from uso_jax.common import locks
from uso_jax.common.errors import InputError

VOCABULARIES = ("tokenizer.json", "spiece.model", "vocab.json")  # a folder with one of them holds a tokenizer
FILES = (
    *VOCABULARIES,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
)


def copy_tokenizer(component: str, weights_file: pathlib.Path, directory: str | pathlib.Path) -> pathlib.Path | None:
    """Copy a text encoder's tokenizer into a weights directory; return its folder there, or None if none is found.

    Raises:
      InputError: the tokenizer could not be written; an existing one is untouched.
    """
    own = weights_file.absolute().parent
    beside = own.parent / own.name.replace("text_encoder", "tokenizer")
    source = next((f for f in (own, beside) if any((f / name).is_file() for name in VOCABULARIES)), None)
    if source is None:
        return None
    target = weights.tokenizer(directory, component)
    temporary, old = (target.with_name(f".{target.name}.{end}") for end in ("partial", "old"))
    with locks.hold(target.parent, target.name):
        return _copy(source, target, temporary, old)


def _copy(source: pathlib.Path, target: pathlib.Path, temporary: pathlib.Path, old: pathlib.Path) -> pathlib.Path:
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
