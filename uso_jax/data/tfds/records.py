# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Encode triplets as TFDS examples, and read them back as a source.

An example holds the image files of content (zero or one), styles and target, the prompt, layout, key and JSON metadata.
Image sizes are kept beside the records in sizes_SPLIT.npy, so that bucketing does not need to read images.
"""

import hashlib
import io
import json
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int32

from uso_jax.common import untrusted
from uso_jax.common.errors import BadExample, InputError
from uso_jax.data.readers.source import FileTriplets
from uso_jax.data.storage.places import Place
from uso_jax.data.triplet import Triplet, TripletSource, task_of
from uso_jax.images import decode as images

_AGAIN = "prepare the data set again"


class _AsStored(tfds.decode.SkipDecoding):
    """Skips decoding, which TFDS would do with whatever library it finds; extends SkipDecoding to sequences."""

    def decode_batch_example_np(self, example):
        return example


class TripletSet:
    """Random access to a split of a data set that `writer.prepare` wrote to `path`.

    Raises:
      InputError: the data set or the split does not exist, or the data set is damaged.
    """

    def __init__(self, path: Path | str, split: str = "train"):
        self.path, self.split = Path(path), split
        if not (self.path / "dataset_info.json").is_file():
            raise InputError(f"{path} holds no data set: create one with uso-curate convert, which prints its path.")
        self._data = open_split(self.path, split, dict.fromkeys(("content", "styles", "target"), _AsStored()))

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: SupportsIndex) -> Triplet:
        index = operator.index(index)
        example = read_example(self._data, index, self.path)
        key = f"{self.path.parent.name}/{_text(example['key'])}"
        decode = lambda data, what: images.decode_image(bytes(data), what=f"{what} of {key} ({self.path})")
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
            meta=untrusted.json(_text(example["meta"]), dict, f"meta of {key} ({self.path})"),
        )

    def digest(self) -> str:
        """Return a digest of the names and lengths of the split's files."""
        files = sorted(path for path in self.path.glob(f"*-{self.split}.*") if path.is_file())
        facts = [[path.name, path.stat().st_size] for path in files]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def sizes(self) -> Int32[np.ndarray, "n 4"]:
        """Return (height, width) of every target and content image, 0 where there is none."""
        path = sizes_file(self.path, self.split)
        try:
            found = np.load(path, allow_pickle=False)
            if found.dtype != np.int32 or found.shape != (len(self), 4):
                raise ValueError(f"{found.dtype} {list(found.shape)}")
            return found
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path} is damaged ({error}): {_AGAIN}") from error


def open_split(folder: Path, split: str, decoders: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """Open a split of a directory that TFDS wrote.

    Raises:
      InputError: the directory is damaged, or has no such split.
    """
    for name in ("dataset_info.json", "features.json"):
        untrusted.json(folder / name, dict, missing=f"{folder} has no {name}: {_AGAIN}", remedy=_AGAIN)
    try:
        builder = tfds.builder_from_directory(str(folder))
        splits = tuple(builder.info.splits)
        opened = builder.as_data_source(split, decoders=dict(decoders)) if split in splits else None
    except Exception as error:  # TFDS and its readers raise exceptions of many kinds
        raise InputError(f"{folder} is not a readable data set ({_reason(error)}): {_AGAIN}") from error
    if opened is None:
        raise InputError(f"{folder} has no split {split!r}; it has {', '.join(splits)}.")
    return opened


def read_example(data: Sequence[dict[str, Any]], index: int, folder: Path) -> dict[str, Any]:
    """Return an example of an opened split.

    Raises:
      BadExample: the record is damaged.
    """
    if not 0 <= index < len(data):
        raise IndexError(f"example {index} of {len(data)}")
    try:
        return data[index]
    except Exception as error:  # readers of records raise exceptions of many kinds
        raise BadExample(f"example {index} of {folder} is damaged ({_reason(error)}).") from error


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:200]


def sizes_file(path: Path, split: str) -> Path:
    """Return the path of the image sizes of a split."""
    return path / f"sizes_{split}.npy"


def _text(value: Any) -> str:
    return untrusted.text(value, "the text of an example") if isinstance(value, bytes) else str(value)


def encode_example(source: TripletSource, index: int) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Encode a triplet as a TFDS example; original image files are kept byte for byte.

    Returns:
      The example, and (height, width, height, width) of target and content.

    Raises:
      BadExample: an image cannot be read.
      InputError: the triplet has no target.
    """
    triplet = source[index]  # images are decoded even if their bytes are kept, to find broken ones here
    if triplet.target is None:
        raise InputError(f"triplet {triplet.key!r} has no target image, so it cannot be used for training.")
    item = source.item(index) if isinstance(source, FileTriplets) else None

    def file(image: images.Pixels, place: Place | None) -> io.BytesIO:
        # TFDS stores the bytes of file objects unchanged, but would encode arrays with TensorFlow.
        kept = place is not None and place.view < 0
        return io.BytesIO(place.read() if kept else images.encode_png(np.ascontiguousarray(image)))

    content = [] if triplet.content is None else [file(triplet.content, item and item.content)]
    places = item.styles if item else [None] * len(triplet.styles)
    size = lambda image: (0, 0) if image is None else image.shape[:2]
    example = {
        "content": content,
        "styles": [file(image, place) for image, place in zip(triplet.styles, places, strict=True)],
        "target": file(triplet.target, item and item.target),
        "prompt": triplet.prompt,
        "layout": triplet.layout,
        "key": item.key if item else triplet.key,
        "meta": json.dumps({name: value for name, value in triplet.meta.items() if _is_plain(value)}),
    }
    return example, (*size(triplet.target), *size(triplet.content))


def _is_plain(value: Any) -> bool:
    """Return whether a value is JSON-serialisable; poses and styles of drawn triplets are not."""
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_plain(item) for name, item in value.items())
    return (
        value is None
        or isinstance(value, str | int | float | bool)
        or (isinstance(value, list | tuple) and all(map(_is_plain, value)))
    )
