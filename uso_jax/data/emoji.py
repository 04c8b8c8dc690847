# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Triplets of real artwork: the same things drawn by seven design teams.

    content = (subject s, team A)    style = (another subject t, team B)    target = (subject s, team B)

A style is a team and its ground: the target has the ground of the style image, the content has one of its own. With
layout "preserved" the target keeps the content's placement, with "shifted" it has another. Splits:

    train              seen subjects, seen teams
    heldout_subjects   about a tenth of the subjects, never seen in train
    heldout_style      seen subjects, but the style is that of a team never seen in train (emojione)

The artwork is not part of this project: put the seven npm tarballs into a folder (the error for a missing one holds
the command) and give it to `EmojiSource`, which prepares the set when it is first asked for. Nothing needs TensorFlow.
"""

import functools
import io
import operator
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float32, UInt8
from PIL import Image

from uso_jax.data import images
from uso_jax.data.iconify import IconSet, common_subjects, find_tarballs, read_icon_set
from uso_jax.data.record import Triplet
from uso_jax.errors import InputError

# Each team's artwork keeps its own licence; a data set made from it must carry these notices.
LICENCES = {
    "twemoji": "Twemoji, CC-BY-4.0",
    "noto": "Noto Emoji, Apache-2.0",
    "noto-v1": "Noto Emoji (v1), Apache-2.0",
    "openmoji": "OpenMoji, CC-BY-SA-4.0",
    "fluent-emoji": "Fluent Emoji, MIT",
    "fluent-emoji-flat": "Fluent Emoji Flat, MIT",
    "emojione": "Emoji One (v2), CC-BY-4.0",
}
TEAMS = tuple(LICENCES)
HELDOUT_TEAM = "emojione"
SPLITS = ("train", "heldout_subjects", "heldout_style")
IMAGES = ("content", "style", "target")
SENTENCES = ("the {}", "a picture of the {}", "the {} somewhere else", "here is the {}")
DRAWN = ("num_train", "num_heldout", "seed", "preserved", "empty_prompt")  # settings of the draw, beside the size
CACHE_BYTES = 512 * 2**20


@dataclass(eq=False)
class EmojiConfig(tfds.core.BuilderConfig):
    """Image size in pixels, triplets per split, and the seed of the draw."""

    name: str = ""
    size: int = 64
    num_train: int = 20_000
    num_heldout: int = 1_000
    seed: int = 0
    preserved: float = 0.5
    empty_prompt: float = 0.5

    def __post_init__(self):
        if self.size < 8 or self.num_train < 1 or self.num_heldout < 1:
            raise InputError(
                f"emoji data: size {self.size} must be at least 8, and the numbers of triplets at least 1."
            )
        # The name is the folder: it says all that is not the default, so that data sets made differently lie side by
        # side and none is taken for another.
        fields = ((name, EmojiConfig.__dataclass_fields__[name].default, getattr(self, name)) for name in DRAWN)
        changed = "".join(f"_{name}{value}" for name, default, value in fields if value != default)
        self.name = self.name or f"{self.size}px{changed}"


class EmojiTriplets(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of the emoji triplets; wants an EmojiConfig, writes encoded PNG and text only."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "npm pack " + " ".join(f"@iconify-json/{team}" for team in TEAMS)

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
        text = ("prompt", "layout", "subject", "style_subject", "content_team", "style_team")
        return self.dataset_info_from_configs(
            description="The same subjects drawn by seven design teams. Artwork: " + "; ".join(LICENCES.values()) + ".",
            features=tfds.features.FeaturesDict(
                {name: image for name in IMAGES} | {name: tfds.features.Text() for name in text}
            ),
            homepage="https://iconify.design",
            disable_shuffling=True,  # the draw is random already, and key i stays example i
        )

    def _split_generators(self, dl_manager):
        paths = find_tarballs(Path(dl_manager.manual_dir), TEAMS)
        grid = EmojiGrid([read_icon_set(paths[team], team) for team in TEAMS], self.builder_config.size)
        return {split: self._generate_examples(grid, split) for split in SPLITS}

    def _generate_examples(self, grid, split):
        config = self.builder_config
        for index in range(config.num_train if split == "train" else config.num_heldout):
            yield index, grid.draw(config, split, index)


class EmojiGrid:
    """Subjects x teams, rendered on demand."""

    def __init__(self, teams: list[IconSet], size: int):
        self.teams = {team.name: team for team in teams}
        names = common_subjects(teams)
        self.seen = tuple(name for name in names if not is_heldout(name))
        self.heldout = tuple(name for name in names if is_heldout(name))
        if len(self.seen) < 2 or not self.heldout:
            raise InputError(
                f"emoji data: the {len(teams)} icon sets share {len(self.seen)} seen and {len(self.heldout)} held-out"
                " subjects; at least 2 and 1 are needed: get the published sets again with npm pack."
            )
        self.size = size
        # Drawn at twice the size: a placement only ever shrinks it, which keeps edges clean.
        self.icon = functools.lru_cache(max(64, CACHE_BYTES // (16 * size * size)))(self._icon)

    def _icon(self, team: str, name: str) -> Image.Image:
        # Premultiplied, so that resizing does not mix in the colour of transparent pixels.
        return Image.fromarray(self.teams[team].render(name, 2 * self.size)).convert("RGBa")

    def draw(self, config: EmojiConfig, split: str, index: int) -> dict[str, io.BytesIO | str]:
        """Draw example `index` of a split, which depends on (seed, split, index) alone."""
        rng = np.random.default_rng([config.seed, SPLITS.index(split), index])
        subject = _pick(rng, self.heldout if split == "heldout_subjects" else self.seen)
        other = _pick(rng, [name for name in self.seen if name != subject])
        trained = [team for team in self.teams if team != HELDOUT_TEAM]
        team_b = HELDOUT_TEAM if split == "heldout_style" else _pick(rng, trained)
        team_a = _pick(rng, [team for team in trained if team != team_b])
        preserved = rng.random() < config.preserved
        place, place_content, place_style = (_placement(rng) for _ in range(3))
        ground, ground_content = _ground(rng, self.size), _ground(rng, self.size)
        sentence = _pick(rng, SENTENCES).format(subject.replace("-", " "))
        if preserved:
            sentence = "" if rng.random() < config.empty_prompt else SENTENCES[0].format(subject.replace("-", " "))
        return {
            "content": _png(self._compose(team_a, subject, place if preserved else place_content, ground_content)),
            "style": _png(self._compose(team_b, other, place_style, ground)),
            "target": _png(self._compose(team_b, subject, place, ground)),
            "prompt": sentence,
            "layout": "preserved" if preserved else "shifted",
            "subject": subject,
            "style_subject": other,
            "content_team": team_a,
            "style_team": team_b,
        }

    def _compose(self, team: str, name: str, placement, ground) -> UInt8[np.ndarray, "size size 3"]:
        scale, x, y = placement
        side = max(4, round(scale * self.size))
        icon = np.asarray(self.icon(team, name).resize((side, side), Image.Resampling.LANCZOS), np.float32)
        top, left = round(y * (self.size - side)), round(x * (self.size - side))
        picture = ground.copy()
        window = picture[top : top + side, left : left + side]
        window *= 1.0 - icon[..., 3:] / 255.0
        window += icon[..., :3]
        return (picture + 0.5).clip(0, 255).astype(np.uint8)


def is_heldout(subject: str) -> bool:
    """Say whether a subject is held out of training: by its name alone, so that it never changes."""
    return zlib.crc32(subject.encode()) % 10 == 0


def prepare(manual_dir: Path | str, data_dir: Path | str, config: EmojiConfig | None = None) -> Path:
    """Build the data set from the tarballs in `manual_dir`; gives the folder, at once if it is already there."""
    config = config or EmojiConfig()
    builder = EmojiTriplets(data_dir=str(data_dir), config=config)
    # Before TFDS does anything: its own error for a missing folder does not say which files are wanted.
    if not builder.data_path.exists():
        find_tarballs(Path(manual_dir), TEAMS)
    download = tfds.download.DownloadConfig(manual_dir=str(manual_dir), try_download_gcs=False)
    builder.download_and_prepare(download_config=download, file_format="array_record")
    return Path(builder.data_path)


class EmojiSource:
    """Random access to a split of the set in `data_dir`, which is first made from `manual_dir` if there is none.

    `config` names the data set where `data_dir` holds several.
    """

    def __init__(
        self, data_dir: Path | str, split: str = "train", config: str | None = None, manual_dir: Path | str = ""
    ):
        if split not in SPLITS:
            raise InputError(f"emoji data: unknown split {split!r}; use one of {', '.join(SPLITS)}.")
        root = Path(data_dir) / EmojiTriplets.name
        known = _prepared(root)
        if not known and manual_dir:
            prepare(manual_dir, data_dir)
            known = _prepared(root)
        if not known or (config is not None and config not in known):
            wanted = f" named {config!r}" if config else ""
            raise InputError(
                f"no emoji data set{wanted} in {data_dir} (found: {', '.join(known) or 'none'}): set manual_dir to the"
                " folder of the downloaded tarballs to make it."
            )
        if config is None and len(set(known)) > 1:
            raise InputError(f"{data_dir} holds several emoji data sets: set config to one of {', '.join(known)}.")
        self.split, self.config = split, config or known[0]
        folder = root / self.config / str(EmojiTriplets.VERSION)
        if not folder.exists():
            raise InputError(f"{folder} does not exist; the data set is of another version: prepare it again.")
        # The PNG bytes are taken as they are: TFDS would decode them by whatever library it finds.
        undecoded = dict.fromkeys(IMAGES, tfds.decode.SkipDecoding())
        self._data = tfds.builder_from_directory(str(folder)).as_data_source(split, decoders=undecoded)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: SupportsIndex) -> Triplet:
        index = operator.index(index)
        key = f"emoji/{self.config}/{self.split}/{index}"
        example = self._data[index]
        content, style, target = (images.decode(example.pop(name), what=f"{name} of {key}") for name in IMAGES)
        text = {name: value.decode() if isinstance(value, bytes) else value for name, value in example.items()}
        return Triplet(
            prompt=text.pop("prompt"),
            content=content,
            styles=(style,),
            target=target,
            task="style_subject",
            layout=text.pop("layout"),
            key=key,
            meta=text,
        )


def _prepared(root: Path) -> list[str]:
    return sorted(path.parent.parent.name for path in root.glob("*/*/dataset_info.json"))


def _pick(rng: np.random.Generator, names):
    return names[rng.integers(len(names))]


def _png(image) -> io.BytesIO:
    # A file object, since TFDS takes its bytes as they are; it would encode an array with TensorFlow.
    return io.BytesIO(images.encode_png(image))


def _placement(rng: np.random.Generator) -> tuple[float, float, float]:
    """Draw a scale (share of the picture) and a place from left to right and from top to bottom (0..1)."""
    return float(rng.uniform(0.62, 0.92)), float(rng.random()), float(rng.random())


def _ground(rng: np.random.Generator, size: int) -> Float32[np.ndarray, "size size 3"]:
    """Draw a quiet ground that runs from one pastel to a near one, top to bottom."""
    top = rng.uniform(140, 250, 3)
    low = (top + rng.uniform(-45, 45, 3)).clip(90, 255)
    ramp = np.linspace(0.0, 1.0, size)[:, None]
    return np.repeat((top + (low - top) * ramp).astype(np.float32)[:, None], size, axis=1)
