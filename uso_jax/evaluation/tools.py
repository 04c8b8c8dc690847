# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From the command's arguments to the tools that metrics are made with."""

import argparse
import json
import pathlib
from typing import Any

from uso_jax.errors import InputError
from uso_jax.evaluation.encoders import Networks
from uso_jax.evaluation.metric import Tools


def gather(args: argparse.Namespace, folder: pathlib.Path) -> Tools:
    """Open what was named; the judge's replies are kept in FOLDER/judge.jsonl.

    Raises:
      InputError: a file is missing or of another form.
    """
    from uso_jax.evaluation import faces, judge_texts, ocr, vlm_judge

    networks = Networks(args.metric_weights, batch_size=args.batch_size) if args.metric_weights else None
    return Tools(
        networks=networks,
        vlm=vlm_judge.of(args.judge, folder / "judge.jsonl") if args.judge else None,
        faces=faces.Embeddings.read(args.faces) if args.faces else None,
        reader=ocr.Reader.read(args.texts) if args.texts else None,
        prompts=_prompts(args.judge_prompts, judge_texts.TEXTS) if args.judge_prompts else {},
        compat=args.compat,
    )


def judge_record(tools: Tools) -> dict[str, Any] | None:
    """Say which judge answered, and from when its answers are."""
    return None if tools.vlm is None else tools.vlm.record()


def _prompts(file: str, known: Any) -> dict[str, str]:
    try:
        found = json.loads(pathlib.Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--judge_prompts {file} is not readable JSON ({error})") from error
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise InputError(f"--judge_prompts {file} must be an object of texts")
    if unknown := found.keys() - set(known):
        raise InputError(f"--judge_prompts {file}: unknown name {min(unknown)!r}; known are {', '.join(known)}")
    return found
