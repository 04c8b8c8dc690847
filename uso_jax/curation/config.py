# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The section `curation` of a configuration (configs/curation.py says what each value is for), checked and frozen."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from uso_jax.common.errors import InputError
from uso_jax.data.triplet import Layout
from uso_jax.training import rewards
from uso_jax.vlm.client import Vlm

CAPTIONERS = ("record", "vlm", "none")


@dataclass(frozen=True)
class ExpertConfig:
    """A USO or UNO that makes images from a stylised one, which it is shown as `reference`: style or content."""

    weights: str
    reference: str
    prompts: Mapping[str, str]  # by layout; "{subject}" and "{caption}" are filled in
    subjects: tuple[str, ...]
    settings: Mapping[str, Any]  # generation options by name
    batch_size: int
    dtype: str

    def __post_init__(self):
        if self.reference not in ("style", "content"):
            raise ValueError(f"reference is {self.reference!r}; use style or content")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be positive, not {self.batch_size}")


@dataclass(frozen=True)
class ScoreConfig:
    """Which rewards score style image and content image, and whose weights these read.

    The style image is compared with the target; the content image too, or, by a reward that needs a prompt, with its
    caption.
    """

    weights: str
    style: str
    subject: str
    size: int
    batch_size: int

    def __post_init__(self):
        for name, needs in ((self.style, ("style",)), (self.subject, ("content", "prompt"))):
            rewards.check_names([name], "curation.score")
            if len(found := rewards.REWARDS[name].needs) != 1 or found[0] not in needs:
                raise ValueError(f"{name} compares with {' and '.join(found) or 'nothing'}, not with {needs[0]}")


@dataclass(frozen=True)
class VlmConfig:
    """The model that judges and captions."""

    model: str
    base_url: str
    key_env: str
    threads: int
    timeout: float
    tries: int
    takes: int
    backoff: float
    max_tokens: int
    max_pixels: int
    max_failures: int

    def open(self, folder: pathlib.Path, process: int) -> Vlm:
        """Give the model, with a cache in a folder for each process; without base_url it answers from these alone."""
        names = ("timeout", "tries", "takes", "backoff", "max_tokens", "max_pixels")
        options = {name: getattr(self, name) for name in names}
        if not self.model:
            raise InputError("this step asks a vision-language model: set --config.curation.vlm.model and .base_url.")
        caches = dict(cache=folder / f"answers_{process}.jsonl", replay=sorted(folder.glob("answers_*.jsonl")))
        return Vlm(self.model, self.base_url, api_key=os.environ.get(self.key_env), **caches, **options)


@dataclass(frozen=True)
class KeepConfig:
    """What a candidate must reach to be kept; None does not ask for that score."""

    style: float | None
    subject: float | None
    judge: float | None
    duplicates: int  # hashes that differ in no more bits than this are of one image; -1: no such filter


@dataclass(frozen=True)
class CurationConfig:
    """Everything that the steps of a curation need."""

    layouts: tuple[str, ...]
    limit: int
    shard_size: int
    seed: int
    captions: str
    caption_question: str
    stylize: ExpertConfig
    destylize: ExpertConfig
    score: ScoreConfig
    vlm: VlmConfig
    keep: KeepConfig

    def __post_init__(self):
        if self.captions not in CAPTIONERS:
            raise ValueError(f"captions is {self.captions!r}; use one of {', '.join(CAPTIONERS)}")
        if not self.layouts or set(self.layouts) - set(get_args(Layout)) or len(set(self.layouts)) < len(self.layouts):
            raise ValueError(f"layouts is {self.layouts!r}; it lists preserved, shifted or both")
        if self.limit < 0 or self.shard_size < 1:
            raise ValueError("limit must not be negative, and shard_size be positive")
        for name in ("stylize", "destylize"):
            if missing := set(self.layouts) - set(getattr(self, name).prompts):
                raise ValueError(f"{name}.prompts lacks {', '.join(sorted(missing))}")


def from_section(section: Mapping[str, Any] | None) -> CurationConfig:
    """Build and check the configuration of a curation.

    Raises:
      InputError: there is no such section, or a value makes no sense; the message names it.
    """
    if section is None:
        raise InputError("this configuration has no section curation: use --config configs/curation.py.")
    judge = section["keep"]["judge"]
    section = dict(section) | {"keep": dict(section["keep"]) | {"judge": None if judge < 0 else judge}}
    parts = dict(stylize=ExpertConfig, destylize=ExpertConfig, score=ScoreConfig, vlm=VlmConfig, keep=KeepConfig)
    try:
        values = {name: _tuples(value) for name, value in section.items()}
        values |= {name: part(**_tuples(values[name])) for name, part in parts.items()}
        return CurationConfig(**_tuples(values))
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"config.curation: {error}") from error


def plain(config: Any) -> dict[str, Any]:
    """Give a part of the configuration in JSON terms."""
    return dataclasses.asdict(config)


def _tuples(values: Any) -> Any:
    if not isinstance(values, Mapping):
        return tuple(values) if isinstance(values, list) else values
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
