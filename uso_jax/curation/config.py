# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The configuration of a curation: that of a training run, for its data, with a section `curation`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from uso_jax.common.errors import InputError
from uso_jax.data.triplet import Layout
from uso_jax.training import rewards
from uso_jax.training.config import TrainConfig
from uso_jax.vlm.config import VlmConfig

CAPTIONERS = ("record", "vlm", "none")


@dataclass(frozen=True)
class ExpertConfig:
    """A USO or UNO that generates images from a stylised one."""

    weights: str = ""  # weights directory of the USO or UNO
    reference: str = "style"  # how the stylised image is passed: as "style" or as "content" image
    prompts: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(get_args(Layout), "{caption}"))
    """Prompt by layout; "{caption}" is the image's, "{subject}" another subject."""
    subjects: tuple[str, ...] = ()  # values of "{subject}"; (): captions of other images of the shard
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Generation options by name: width, height, num_steps, guidance and so on."""
    batch_size: int = 4  # images generated at once
    dtype: str = ""  # dtype of the networks; "": that of the weights

    def __post_init__(self):
        if self.reference not in ("style", "content"):
            raise ValueError(f"reference is {self.reference!r}; use style or content")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be positive, not {self.batch_size}")


@dataclass(frozen=True)
class ScoreConfig:
    """Rewards that score style image and content image (uso_jax.training.rewards)."""

    weights: str = ""  # weights directory with the networks of the rewards
    style: str = "csd_style"  # reward that compares the style image with the target
    subject: str = "dino_content"  # reward that compares the content image with the target or with its caption
    size: int = 256  # pixels a side that images are cropped to before each network's own preprocessing
    batch_size: int = 16  # images scored at once

    def __post_init__(self):
        for name, needs in ((self.style, ("style",)), (self.subject, ("content", "prompt"))):
            rewards.check_names([name], "curation.score")
            if len(found := rewards.get(name).needs) != 1 or found[0] not in needs:
                raise ValueError(f"{name} compares with {' and '.join(found) or 'nothing'}, not with {needs[0]}")


@dataclass(frozen=True)
class KeepConfig:
    """The scores that a candidate needs to be kept."""

    style: float | None = 0.5  # lowest style score; None: any
    subject: float | None = 0.5  # lowest subject score; None: any
    judge: float | None = 3.5  # lowest mean of the judge's parts, 0 to 4; negative or None: no judge
    duplicates: int = 4  # bits of 64 in which hashes of the same image may differ; -1: keep duplicates

    def __post_init__(self):
        if self.judge is not None and self.judge < 0:  # the command line has no None
            object.__setattr__(self, "judge", None)


@dataclass(frozen=True)
class CurationConfig:
    """The settings of all steps of a curation (docs/curation.md)."""

    layouts: tuple[str, ...] = get_args(Layout)  # candidates of each image, by the layout of their content image
    limit: int = 0  # images to take from the source; 0: all
    shard_size: int = 256  # images in a shard, the unit of work that is done or not done
    seed: int = 0  # seed of prompts and noise
    captions: str = "record"  # captions of images: "record" takes the source's, "vlm" asks the model, or "none"
    caption_question: str = (
        "Say in one short phrase what this picture shows: its main subject and where it is. Do not mention style,"
        " medium or colours. Answer with the phrase alone."
    )
    """Question that asks the model for a caption."""
    stylize: ExpertConfig = ExpertConfig()  # expert that makes style images
    destylize: ExpertConfig = ExpertConfig(reference="content")  # expert that makes content images
    score: ScoreConfig = ScoreConfig()  # scores of candidates
    vlm: VlmConfig = VlmConfig()  # vision-language model
    keep: KeepConfig = KeepConfig()  # scores that a candidate needs

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


@dataclass(frozen=True)
class CurationRunConfig(TrainConfig):
    """A training run's configuration, for its data, with that of a curation."""

    curation: CurationConfig = CurationConfig()  # settings of the curation's steps


def curation_of(config: TrainConfig) -> CurationConfig:
    """Return the section `curation`.

    Raises:
      InputError: the configuration has none.
    """
    if not isinstance(config, CurationRunConfig):
        raise InputError("this configuration has no section curation: use --config configs/curation.py.")
    return config.curation
