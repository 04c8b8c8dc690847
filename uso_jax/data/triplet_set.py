# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Triplets of any source as a TFDS data set in ArrayRecord files, written and read without TensorFlow.

Image files go in as they are, byte for byte, so that a picture is the same by every route; what has no file (drawn
pictures, views cut from a larger image) is stored as PNG.
"""

import io
import json
import operator
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int32

from uso_jax.data import images
from uso_jax.data.pipeline import Source
from uso_jax.data.places import Place
from uso_jax.data.readers import FileTriplets
from uso_jax.data.record import Triplet, task_of
from uso_jax.errors import BadExample, InputError

_THREADS = 8
_AHEAD = 64  # triplets that are read before they are written
# Of one machine. Beam's newer runner for it would download a program.
_BEAM = ("--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=0")


class _AsStored(tfds.decode.SkipDecoding):
    """TFDS would decode images by whatever library it finds; of sequences it does not know how not to."""

    def decode_batch_example_np(self, example):
        return example


class Triplets(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of triplets; `sources` are to be set before it prepares, and `specs` if Beam is to read them."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}

    sources: Mapping[str, Source]
    limit: int
    max_errors: int
    specs: Mapping[str, Mapping[str, Any]]

    def _info(self) -> tfds.core.DatasetInfo:
        image, text = tfds.features.Image(shape=(None, None, 3)), tfds.features.Text()
        pictures = dict(content=tfds.features.Sequence(image), styles=tfds.features.Sequence(image), target=image)
        return self.dataset_info_from_configs(
            description="Triplets of content, style and target images; content holds one image or none.",
            features=tfds.features.FeaturesDict(pictures | dict.fromkeys(("prompt", "layout", "key", "meta"), text)),
            disable_shuffling=True,  # example i stays example i; training shuffles
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.sources}

    def _generate_examples(self, split: str):
        source = self.sources[split]
        total = min(len(source), self.limit or len(source))
        if not self.specs:
            return self._in_order(split, source, total)
        from uso_jax.data import beam_set

        return beam_set.reading(split, self.specs[split], total, Path(self.data_path))

    def _in_order(self, split: str, source: Source, total: int) -> Iterator[tuple[int, dict[str, Any]]]:
        lost, sizes = [], []
        for found in _ahead(source, total):
            if isinstance(found, BadExample):
                lost.append(found)
                if len(lost) > self.max_errors:
                    raise _too_many(lost, self.max_errors)
                continue
            example, size = found
            sizes.append(size)
            yield len(sizes) - 1, example
        np.save(sizes_file(Path(self.data_path), split), np.asarray(sizes, np.int32))


def prepare(
    sources: Mapping[str, Source],
    data_dir: Path | str,
    name: str,
    *,
    limit: int = 0,
    max_errors: int = 0,
    specs: Mapping[str, Mapping[str, Any]] | None = None,
    beam_options: Sequence[str] = (),
) -> Path:
    """Write splits of triplets as DATA_DIR/triplets/NAME/1.0.0; gives the folder, at once if it is there already.

    Args:
      sources: by split.
      data_dir: where data sets lie.
      name: of this one.
      limit: triplets to take of each; 0 takes all.
      max_errors: triplets that may be unreadable, and are left out, before this is an error.
      specs: by split, what `open_source` opens; with these Apache Beam's workers read, encode and write, each for
        itself, and data_dir must be a folder that all of them see.
      beam_options: of the pipeline, such as ["--runner=FlinkRunner"]; by default all cores of this machine.
    """
    builder = Triplets(data_dir=str(data_dir), config=tfds.core.BuilderConfig(name=name))
    builder.sources, builder.limit, builder.max_errors, builder.specs = sources, limit, max_errors, specs or {}
    download = tfds.download.DownloadConfig(try_download_gcs=False)
    path = Path(builder.data_path)
    if not specs or path.exists():
        builder.download_and_prepare(download_config=download, file_format="array_record")
        return path
    try:
        from apache_beam.options.pipeline_options import PipelineOptions

        from uso_jax.data import beam_set
    except ImportError as error:
        raise InputError('reading by Apache Beam needs it: pip install "uso_jax[beam]".') from error
    download.beam_options = PipelineOptions([*_BEAM, *beam_options])
    builder.download_and_prepare(download_config=download, file_format="array_record")
    lost = [reason for split in sources for reason in beam_set.lost(path, split)]
    if len(lost) > max_errors:
        shutil.rmtree(path)
        raise _too_many(lost, max_errors)
    return path


def _too_many(lost: Sequence[Any], max_errors: int) -> InputError:
    return InputError(f"{len(lost)} triplets cannot be read, and data.max_errors is {max_errors}; the last: {lost[-1]}")


class TripletSet:
    """Random access to a split of a data set that `prepare` wrote; `path` is its folder."""

    def __init__(self, path: Path | str, split: str = "train"):
        self.path, self.split = Path(path), split
        if not (self.path / "dataset_info.json").is_file():
            raise InputError(
                f"{path} holds no data set: make one with scripts/curate.py convert, which says its folder."
            )
        builder = tfds.builder_from_directory(str(self.path))
        if split not in builder.info.splits:
            raise InputError(f"{path} has no split {split!r}; it has {', '.join(builder.info.splits)}.")
        undecoded = dict.fromkeys(("content", "styles", "target"), _AsStored())
        self._data = builder.as_data_source(split, decoders=undecoded)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: SupportsIndex) -> Triplet:
        index = operator.index(index)
        example = self._data[index]
        key = f"{self.path.parent.name}/{_text(example['key'])}"
        decode = lambda data, what: images.decode(bytes(data), what=f"{what} of {key} ({self.path})")
        content = [decode(data, "content") for data in example["content"]]
        styles = tuple(decode(data, "style") for data in example["styles"])
        return Triplet(
            prompt=_text(example["prompt"]),
            content=content[0] if content else None,
            styles=styles,
            target=decode(example["target"], "target"),
            task=task_of(content=bool(content), styles=bool(styles)),
            layout=_text(example["layout"]),
            key=key,
            meta=json.loads(_text(example["meta"])),
        )

    def sizes(self) -> Int32[np.ndarray, "n 4"]:
        """Give (height, width) of every target and content image, 0 where there is none."""
        return np.load(sizes_file(self.path, self.split), allow_pickle=False)


def sizes_file(path: Path, split: str) -> Path:
    """Give where a data set keeps the sizes of a split's pictures."""
    return path / f"sizes_{split}.npy"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _ahead(source: Source, total: int) -> Iterator[tuple[dict[str, Any], tuple[int, ...]] | BadExample]:
    """Read triplets in order, some of them ahead; one that cannot be read is given as its error."""

    def read(index: int):
        try:
            return encoded(source, index)
        except BadExample as error:
            return error

    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, total, _AHEAD):
            yield from pool.map(read, range(start, min(start + _AHEAD, total)))


def encoded(source: Source, index: int) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Give an example with images as files, and the (height, width) of target and content."""
    triplet = source[index]  # decoded even where the bytes are kept: a broken image is found now
    if triplet.target is None:
        raise InputError(f"triplet {triplet.key!r} has no target: it is for generating from, not for training.")
    item = source.item(index) if isinstance(source, FileTriplets) else None

    def file(picture: images.Picture, place: Place | None) -> io.BytesIO:
        # File objects, since TFDS takes their bytes as they are; it would encode an array with TensorFlow.
        kept = place is not None and place.view < 0
        return io.BytesIO(place.read() if kept else images.encode_png(np.ascontiguousarray(picture)))

    content = [] if triplet.content is None else [file(triplet.content, item and item.content)]
    places = item.styles if item else [None] * len(triplet.styles)
    size = lambda picture: (0, 0) if picture is None else picture.shape[:2]
    example = {
        "content": content,
        "styles": [file(picture, place) for picture, place in zip(triplet.styles, places, strict=True)],
        "target": file(triplet.target, item and item.target),
        "prompt": triplet.prompt,
        "layout": triplet.layout,
        "key": item.key if item else triplet.key,
        "meta": json.dumps({name: value for name, value in triplet.meta.items() if _is_plain(value)}),
    }
    return example, (*size(triplet.target), *size(triplet.content))


def _is_plain(value: Any) -> bool:
    """Tell whether JSON can hold a value; poses and styles of drawn triplets it cannot."""
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_plain(item) for name, item in value.items())
    return (
        value is None
        or isinstance(value, str | int | float | bool)
        or (isinstance(value, list | tuple) and all(map(_is_plain, value)))
    )
