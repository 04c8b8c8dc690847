# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The section `data` of a configuration: sources of triplets and how they are read (docs/datasets.md)."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from uso_jax.common import schema
from uso_jax.common.errors import InputError
from uso_jax.data.readers import READERS

SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Drawn:
    """Which endless drawings a split has."""

    split: str  # name of a split of the source
    seed: int = 0  # seed of the drawings
    length: int = 1_000_000  # number of triplets before they repeat


@dataclass(frozen=True)
class Procedural:
    """Drawings of subjects in styles (uso_jax.data.drawings)."""

    size: int = 32  # pixels a side
    preserved: float = 0.5  # share of targets that keep the pose of the content image
    train: Drawn = Drawn("train")  # drawings to train on
    heldout: Drawn = Drawn("heldout_styles")  # drawings to validate on, in styles that training never sees


@dataclass(frozen=True)
class Looks:
    """Whose styles the emoji have, as relative weights."""

    artists: float = 1.0  # the design teams of the emoji
    drawn: float = 0.0  # the styles of the drawings


@dataclass(frozen=True)
class Emoji:
    """Emoji by several design teams (uso_jax.data.emoji, docs/data.md)."""

    data_dir: str = "data"  # folder of the rasterised artwork, written on first use
    manual_dir: str = ""  # folder of the downloaded tarballs, needed once
    size: int = 32  # pixels a side
    preserved: float = 0.8  # share of targets that keep the placement of the content image
    looks: Looks = Looks()  # whose styles
    train: Drawn = Drawn("train", length=10_000_000)  # emoji to train on
    heldout: Drawn = Drawn("heldout_styles", seed=1, length=100_000)  # emoji of a team that training never sees


@dataclass(frozen=True)
class Path:
    """Location of a split."""

    path: str = ""  # file, folder or URL; required by the source that is read


@dataclass(frozen=True)
class Files:
    """A source in files; sources differ in their options."""

    train: Path = Path()  # files to train on
    heldout: Path = Path()  # files to validate on


@dataclass(frozen=True)
class Rooted(Files):
    """A list or table with image paths."""

    root: str = ""  # folder that image paths are relative to; "": the folder of the file


@dataclass(frozen=True)
class Uno(Rooted):
    """UNO's training JSON."""

    several: str = "leave_out"  # items with several subjects: "leave_out", or "first" to use their first


@dataclass(frozen=True)
class UsoEval(Rooted):
    """USO's evaluation lists."""

    pictures: str = ""  # folder of target images; "": none


@dataclass(frozen=True)
class Uno1M(Files):
    """UNO-1M."""

    min_score: float = 3.5  # lowest score of a pair
    both: bool = True  # use both directions of a pair


@dataclass(frozen=True)
class Subjects200K(Files):
    """Subjects200K, in parquet files."""

    min_quality: int = 5  # lowest quality of either view
    collection: str = ""  # name of the collection to read; "": all
    both: bool = True  # use both directions of a pair


@dataclass(frozen=True)
class OmniStyle(Files):
    """OmniStyle-150K."""

    content: str = "content"  # folder of content images
    style: str = "style"  # folder of style images
    stylised: str = "OmniStyle-150K"  # folder of targets


@dataclass(frozen=True)
class SynCD(Files):
    """SynCD."""

    min_aesthetics: float = 0.0  # lowest aesthetics score
    min_dino: float = 0.0  # lowest DINO similarity of the views
    max_dino: float = 0.98  # highest DINO similarity; views above it are copies


@dataclass(frozen=True)
class StyleBooth(Files):
    """StyleBooth."""

    prompt: str = "turn it into {style}"  # prompt; "{style}" is filled in
    styles: bool = False  # use another image of the same style as the style image
    table: str = "train.csv"  # table inside the folder


@dataclass(frozen=True)
class WebDataset(Files):
    """Shards of WebDataset."""

    target: str = "target"  # name of targets in a sample
    content: str = "content"  # name of content images in a sample
    style: str = "style"  # name of style images in a sample


@dataclass(frozen=True)
class Folder(Files):
    """A folder of images."""

    layout: str = "shifted"  # layout of triplets with a prompt: "shifted" or "preserved"
    caption: str = ""  # prompt of triplets without one, such as a trigger word


@dataclass(frozen=True)
class Split:
    """A split of a prepared data set."""

    path: str = ""  # folder of the data set
    split: str = "train"  # split of the data set


@dataclass(frozen=True)
class Triplets:
    """Triplets written by uso-curate convert."""

    train: Split = Split()  # split to train on
    heldout: Split = Split(split="heldout")  # split to validate on


@dataclass(frozen=True)
class Mixture:
    """Several sources at once."""

    weights: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(_SOURCES, 0.0))
    """How often an example comes from each source, as relative weights."""


@dataclass(frozen=True)
class Prior:
    """Regularisation images: what the base draws for a class, which training keeps (DreamBooth, arXiv 2208.12242)."""

    path: str = ""  # folder of images with NAME.txt beside NAME.png; "": none
    kind: str = "folder"  # source that reads them: "folder", or "features" for encoded ones
    caption: str = ""  # prompt of images without a text file, such as "a photo of a dog"
    share: float = 0.5  # share of training examples that are regularisation images
    loss_weight: float = 1.0  # weight of their loss; the other examples have 1


@dataclass(frozen=True)
class DataConfig:
    """Sources of triplets, and how they are read."""

    source: str = "json"  # source to train on: a section of this one, or "mixture"
    procedural: Procedural = Procedural()  # drawings
    emoji: Emoji = Emoji()  # emoji by several design teams
    json: Rooted = Rooted()  # JSON list of items
    uno: Uno = Uno()  # UNO's training JSON
    uso_eval: UsoEval = UsoEval()  # USO's evaluation lists
    uno_1m: Uno1M = Uno1M()  # UNO-1M
    subjects200k: Subjects200K = Subjects200K()  # Subjects200K
    omnistyle: OmniStyle = OmniStyle()  # OmniStyle-150K
    syncd: SynCD = SynCD()  # SynCD
    stylebooth: StyleBooth = StyleBooth()  # StyleBooth
    webdataset: WebDataset = WebDataset()  # WebDataset shards
    folder: Folder = Folder()  # folder of images
    parquet: Rooted = Rooted()  # parquet files
    triplets: Triplets = Triplets()  # written by uso-curate convert
    features: Files = Files()  # encoder outputs, written by uso-curate precompute
    other: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Sections of further sources, by name; `kind` names the source where it is not the name of the section."""
    mixture: Mixture = field(default_factory=Mixture)  # shares of sources, where source is "mixture"
    prior: Prior = Prior()  # regularisation images beside the source's
    heldout_share: float = 0.0
    """Share of a source's training triplets, at least one, to validate on where its heldout names no path; 0: none."""
    encode_first: bool = False
    """Encode all images and prompts before training, into WORKDIR/features, so that training holds no encoder."""
    encoded: str = ""  # folder that holds the features of all splits, in place of `source`; set by encode_first
    samples: str = ""
    """JSON list of prompts, content and style images that are drawn with every sample grid; "": none."""
    num_styles: int = 1  # largest number of style images in a triplet
    num_threads: int = 2  # threads that read and decode, in each worker process if there are any
    num_workers: int = 0  # processes that read and decode; 0: threads only
    max_errors: int = 0  # number of unreadable examples that are skipped before the run stops

    @property
    def sections(self) -> dict[str, Mapping[str, Any]]:
        """The sections of all sources, by name."""
        return {name: schema.plain(getattr(self, name)) for name in _SOURCES} | dict(self.other)

    def check(self) -> None:
        """Raise InputError if `source` or a source of the mixture is unknown."""
        self._spec(self.source, "train")
        if not 0 <= self.heldout_share < 1:
            raise InputError(f"config: data.heldout_share must be at least 0 and below 1, not {self.heldout_share}")
        if self.prior.kind not in ("folder", "features"):
            raise InputError(f"config: data.prior.kind must be folder or features, not {self.prior.kind!r}")
        if not 0 < self.prior.share < 1 or self.prior.loss_weight < 0:
            raise InputError(
                "config: data.prior.share must lie between 0 and 1 and loss_weight be positive, not"
                f" {self.prior.share} and {self.prior.loss_weight}"
            )

    @property
    def train(self) -> dict[str, Any]:
        """The training source with its regularisation images, as `open_source` takes it."""
        return self._with_prior(self.alone("train"), self.alone("prior"))

    @property
    def heldout(self) -> dict[str, Any]:
        """The held-out source, as `open_source` takes it."""
        return self.alone("heldout")

    @property
    def drawn(self) -> dict[str, Any] | None:
        """The source of `samples`, as `open_source` takes it."""
        return self.alone("samples") if self.samples else None

    @property
    def splits(self) -> tuple[str, ...]:
        """The sources that this section names: train, heldout, and if there are any prior and samples."""
        further = {"prior": self.prior.path, "samples": self.samples}
        return (*SPLITS, *(name for name, path in further.items() if path))

    def alone(self, split: str) -> dict[str, Any]:
        """Return one of `splits`, as `open_source` takes it."""
        return self._encoded(split) or self._own(split)

    def asked(self) -> dict[str, Any]:
        """Return the training source, as `open_source` takes it, whether it is encoded or not."""
        return self._with_prior(self._own("train"), self._own("prior"))

    def _own(self, split: str) -> dict[str, Any]:
        if split == "samples":
            return {"name": "samples", "path": self.samples}
        if split == "prior":
            caption = {"caption": self.prior.caption} if self.prior.kind == "folder" else {}
            return {"name": self.prior.kind, "path": self.prior.path} | caption
        return self._spec(self.source, split)

    def _with_prior(self, spec: dict[str, Any], prior: dict[str, Any]) -> dict[str, Any]:
        if not self.prior.path:
            return spec
        parts = spec["parts"] if spec["name"] == "mixture" else [spec | {"weight": 1.0}]
        rest = (1 - self.prior.share) / sum(part["weight"] for part in parts)
        weighed = {} if self.prior.loss_weight == 1 else {"loss_weight": self.prior.loss_weight}
        own = [part | {"weight": rest * part["weight"]} for part in parts]
        return {"name": "mixture", "parts": [*own, prior | {"weight": self.prior.share} | weighed]}

    def _encoded(self, split: str) -> dict[str, Any]:
        return {"name": "features", "path": os.path.join(self.encoded, split)} if self.encoded else {}

    def _spec(self, name: str, split: str) -> dict[str, Any]:
        """Return the name of a source and its arguments: those of both splits, then those of one."""
        if name == "mixture":
            weights = {name: weight for name, weight in sorted(self.mixture.weights.items()) if weight}
            self._check("data.mixture.weights", weights)
            return {"name": name, "parts": [self._spec(part, split) | {"weight": w} for part, w in weights.items()]}
        self._check("data.source", [name])
        section = dict(self.sections[name])
        own = {name: section.pop(name, {}) for name in SPLITS}
        kind = section.pop("kind", name)
        if self.heldout_share and kind in READERS and not own["heldout"].get("path"):
            return {"name": kind} | section | own["train"] | {"part": split, "heldout_share": self.heldout_share}
        return {"name": kind} | section | own[split]

    def _check(self, what: str, names) -> None:
        known = [*self.sections, *(["mixture"] if what == "data.source" else [])]
        for name in names:
            if name not in known:
                raise InputError(f"config: {what} {name!r} is unknown; known are {', '.join(known)}")


_SOURCES = tuple(
    part.name
    for part in dataclasses.fields(DataConfig)
    if dataclasses.is_dataclass(part.type) and part.name not in ("mixture", "prior")
)
