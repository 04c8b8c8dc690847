# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A fixed TFDS data set of emoji triplets in artists' styles, as drawn by EmojiSource.

It serves comparisons that must not change with the code, and other programs; training draws triplets on demand.
TensorFlow is not required.
"""

import io
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, SupportsIndex

import tensorflow_datasets as tfds

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.data.emoji.artwork import LICENCES, TEAMS, EmojiArtwork
from uso_jax.data.emoji.source import EmojiSource
from uso_jax.data.tfds import records
from uso_jax.data.triplet import Triplet
from uso_jax.images import decode

SPLITS = ("train", "heldout_subjects", "heldout_style", "heldout")  # names in the data sets that exist
IMAGES = ("content", "style", "target")
TEXT = ("prompt", "layout", "subject", "style_subject", "content_team", "style_team")
DRAWN = ("num_train", "num_heldout", "seed", "preserved", "empty_prompt")  # settings besides the size


@dataclass(eq=False)
class EmojiConfig(tfds.core.BuilderConfig):
    """Image size in pixels, number of triplets per split, and the settings of EmojiSource."""

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
                f"emoji data: size {self.size} must be at least 8, and num_train and num_heldout at least 1."
            )
        # The name is the directory. It contains all settings that differ from the default, so that data sets with other
        # settings lie side by side.
        fields = ((name, EmojiConfig.__dataclass_fields__[name].default, getattr(self, name)) for name in DRAWN)
        changed = "".join(f"_{name}{value}" for name, default, value in fields if value != default)
        self.name = self.name or f"{self.size}px{changed}"


class EmojiTriplets(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of emoji triplets, configured by an EmojiConfig. Stores PNG files and text."""

    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version.", "2.0.0": "The triplets of EmojiSource; split heldout."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "npm pack " + " ".join(f"@iconify-json/{team}" for team in TEAMS)

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
        return self.dataset_info_from_configs(
            description="The same subjects drawn by seven design teams. Artwork: " + "; ".join(LICENCES.values()) + ".",
            features=tfds.features.FeaturesDict(
                {name: image for name in IMAGES} | {name: tfds.features.Text() for name in TEXT}
            ),
            homepage="https://iconify.design",
            disable_shuffling=True,  # the draw is random already, and key i stays example i
        )

    def _split_generators(self, dl_manager):
        config, root = self.builder_config, Path(self.data_dir).parents[2]  # data_dir is root/name/config/version
        draw = dict(size=config.size, seed=config.seed, preserved=config.preserved, empty_prompt=config.empty_prompt)
        return {
            split: self._generate_examples(
                EmojiSource(
                    data_dir=root,
                    manual_dir=Path(dl_manager.manual_dir),
                    split=split,
                    length=config.num_train if split == "train" else config.num_heldout,
                    looks={"artists": 1},
                    **draw,
                )
            )
            for split in SPLITS
        }

    def _generate_examples(self, source):
        for index in range(len(source)):
            triplet = source[index]
            images = (triplet.content, *triplet.styles, triplet.target)
            # TFDS stores the bytes of file objects unchanged, but would encode arrays with TensorFlow.
            files = (io.BytesIO(decode.encode_png(image)) for image in images)
            meta = triplet.meta
            text = (triplet.prompt, triplet.layout, meta["subject"], meta["style_subjects"][0])
            teams = (meta["content_team"], meta["team"])
            yield index, dict(zip(IMAGES, files, strict=True)) | dict(zip(TEXT, text + teams, strict=True))


def prepare(manual_dir: Path | str, data_dir: Path | str, config: EmojiConfig | None = None) -> Path:
    """Build the data set from the tarballs in `manual_dir`, unless it exists, and return its directory."""
    config = config or EmojiConfig()
    builder = EmojiTriplets(data_dir=str(data_dir), config=config)
    # TFDS' own error for a missing directory does not name the required files.
    if not builder.data_path.exists():
        EmojiArtwork(data_dir, manual_dir, size=config.size)
    download = tfds.download.DownloadConfig(manual_dir=str(manual_dir), try_download_gcs=False)
    builder.download_and_prepare(download_config=download, file_format="array_record")
    return Path(builder.data_path)


class EmojiSet:
    """Random access to a split of a data set that `prepare` built in `data_dir`.

    Raises:
      InputError: the split or data set does not exist, or there are several and `config` does not name one.
    """

    def __init__(self, data_dir: Path | str, split: str = "train", config: str | None = None):
        split = {"heldout_styles": "heldout_style"}.get(split, split)
        if split not in SPLITS:
            raise InputError(f"emoji data: unknown split {split!r}; use one of {', '.join(SPLITS)}.")
        root = Path(data_dir) / EmojiTriplets.name
        known = sorted({path.parent.parent.name for path in root.glob("*/*/dataset_info.json")})
        if not known or (config is not None and config not in known):
            wanted = f" named {config!r}" if config else ""
            raise InputError(
                f"no emoji data set{wanted} in {data_dir} (found: {', '.join(known) or 'none'}): build it with"
                " uso_jax.data.emoji.tfds.prepare."
            )
        if config is None and len(known) > 1:
            raise InputError(f"{data_dir} contains several emoji data sets: set config to one of {', '.join(known)}.")
        self.split, self.config = split, config or known[0]
        folder = root / self.config / str(EmojiTriplets.VERSION)
        if not folder.exists():
            raise InputError(f"{folder} does not exist; the data set is of another version: prepare it again.")
        # Undecoded PNG bytes: TFDS would decode them with whatever library it finds.
        undecoded = dict.fromkeys(IMAGES, tfds.decode.SkipDecoding())
        self._folder, self._data = folder, records.open_split(folder, split, undecoded)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: SupportsIndex) -> Triplet:
        index = operator.index(index)
        key = f"emoji/{self.config}/{self.split}/{index}"
        example = records.read_example(self._data, index, self._folder)
        content, style, target = (decode.decode_image(example.pop(name), what=f"{name} of {key}") for name in IMAGES)
        text = {
            name: untrusted.text(value, f"{name} of {key}") if isinstance(value, bytes) else value
            for name, value in example.items()
        }
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
