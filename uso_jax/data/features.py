# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Precomputed encoder outputs in ArrayRecord files, so that training needs no encoders in memory.

    DIR/manifest.json               the source and the fingerprints of the encoders
    DIR/null.safetensors            features of the empty prompt (for dropped captions) and of absent style images:
                                    "txt", "vec", and "style" or "style_moments"
    DIR/00000.array_record          records, each a safetensors file of one example
    DIR/00000.json                  shapes of these records; written last, so its presence marks a complete shard

A record holds "target_moments" and "content_moments" [lh, lw, 2 z] (mean and log-variance of the posterior),
"style_features" [n, 3, s, c], "txt" [t, context], "vec" [vec], the labels, and "index" of the triplet in its source.
Entries of absent conditions are omitted, and "vec" where the base model has no pooled vector. Where the autoencoder
encodes style images, "style_moments" [n, lh, lw, 2 z] take the place of "style_features". Entries that begin with
"described/" are what a reward reads of the references. "mask" [rows, columns], where it was asked for, has a number
from 0 to 1 for each token of the target. Written by uso_jax.training.precompute.
"""

import hashlib
import importlib
import json
import operator
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex, TypedDict

import ml_dtypes
import numpy as np
from jaxtyping import Int32
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from uso_jax.common import atomic_files, untrusted
from uso_jax.common.errors import BadExample, InputError
from uso_jax.images.decode import MAX_PIXELS

FORMAT = 1
_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I32": np.int32, "I64": np.int64}
MANIFEST, NULL = "manifest.json", "null.safetensors"
Record = Mapping[str, np.ndarray]
_AGAIN = "precompute the features again"


class _Manifest(TypedDict):
    format: int
    fingerprint: dict[str, str]
    shards: int
    num_styles: int
    downscale: int


class _Shard(TypedDict):
    shapes: list[tuple[int, int, int, int]]
    left_out: dict[str, str]


class FeatureSource:
    """Random access to a directory of precomputed features.

    Raises:
      InputError: the directory is missing, incomplete, damaged or of another format.
    """

    def __init__(self, path: pathlib.Path | str):
        self.path = pathlib.Path(path)
        self.manifest = read_manifest(self.path)
        try:
            self._null = _load((self.path / NULL).read_bytes())
            self.style_entry = "style_moments" if "style_moments" in self._null else "style_features"
            self._null_style = self._null["style_moments" if "style_moments" in self._null else "style"]
            if "txt" not in self._null:
                raise ValueError("it has no txt")
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.path / NULL} cannot be read ({error}): precompute the features again.") from error
        shards = self.manifest["shards"]
        missing = [number for number in range(shards) if not is_done(self.path, number)]
        if missing:
            raise InputError(
                f"{self.path} lacks {len(missing)} of {shards} shards, the first is {missing[0]:05d}: run the same"
                " precompute command again to complete it."
            )
        shapes = [_shapes(self.path, number) for number in range(shards)]
        self._shapes = np.concatenate(shapes)
        files = [str(self.path / f"{number:05d}.array_record") for number, own in enumerate(shapes) if own.size]
        source = array_record("array_record_data_source").ArrayRecordDataSource
        try:
            self._records = source(files)
            whole = len(self._records) == len(self._shapes)
        except (OSError, ValueError, RuntimeError):
            whole = False
        if not whole:
            raise InputError(f"{self.path} is damaged: records are missing; precompute it again.")

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, index: SupportsIndex) -> Record:
        """Return a record as stored.

        Raises:
          BadExample: the record is damaged.
        """
        index = operator.index(index)
        try:
            return _load(self._records[index])
        except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
            raise BadExample(f"record {index} of {self.path} is damaged ({error}).") from error

    def digest(self) -> str:
        """Return a digest of the manifest, and of the sizes of all examples."""
        found = hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode())
        found.update(np.ascontiguousarray(self._shapes).tobytes())
        return found.hexdigest()[:16]

    def sizes(self) -> Int32[np.ndarray, "n 4"]:
        """Return (height, width) of every target and content image at which it was encoded."""
        return self._shapes

    def example(self, index: int, content_size: tuple[int, int], num_styles: int) -> dict[str, np.ndarray]:
        """Return a record as fixed-shape arrays; absent conditions are zeros marked invalid.

        Raises:
          InputError: the features were computed for another `num_styles`.
        """
        record, manifest = dict(self[index]), self.manifest
        del record["index"]
        if num_styles != manifest["num_styles"]:
            raise InputError(
                f"{self.path} was made for num_styles {manifest['num_styles']}, not {num_styles}: set"
                " --config.data.num_styles, or precompute it again."
            )
        record["content_valid"] = np.asarray("content_moments" in record)
        if "content_moments" not in record:
            rows, columns = (side // manifest["downscale"] for side in content_size)
            record["content_moments"] = np.zeros((rows, columns, record["target_moments"].shape[2]), np.float32)
        found = [*record.pop(self.style_entry, ())]
        record[self.style_entry] = np.stack(found + [self._null_style] * (num_styles - len(found)))
        return record | {"style_valid": np.arange(num_styles) < len(found)}

    @property
    def null_text(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Text features [t, context] and pooled vector [vec], if there is one, of the empty prompt."""
        return self._null["txt"], self._null.get("vec")


def array_record(module: str = "array_record_module") -> Any:
    """Return a module of the package array_record.

    Raises:
      InputError: it is not installed, as on Windows, for which it has no wheel.
    """
    try:
        return importlib.import_module(f"array_record.python.{module}")
    except ImportError as error:
        raise InputError(
            "encoded data needs the package array_record, which Windows has no wheel of: use WSL, or train on the"
            " images themselves (--config.data.encode_first=False); docs/platforms.md"
        ) from error


def read_manifest(path: pathlib.Path) -> dict[str, Any]:
    """Read the manifest of a directory of features.

    Raises:
      InputError: it is missing, unreadable or of another format.
    """
    missing = f"{path} holds no features: create them with uso-curate precompute."
    found = untrusted.json(path / MANIFEST, dict, missing=missing, remedy=_AGAIN)
    if found.get("format") != FORMAT:
        raise InputError(f"{path} has format {found.get('format')}, expected {FORMAT}: precompute it again.")
    found = untrusted.json(path / MANIFEST, _Manifest, remedy=_AGAIN)
    if found["shards"] < 1 or found["downscale"] < 1:
        raise InputError(f"{path / MANIFEST} is damaged (its sizes make no sense); {_AGAIN}")
    return found


def write_manifest(path: pathlib.Path, manifest: Mapping[str, Any], nulls: Record) -> None:
    """Create a directory of features, or continue one that has the same manifest.

    Raises:
      InputError: the directory holds features of other settings.
    """
    manifest = untrusted.recorded({"format": FORMAT, **manifest})
    if is_begun(path):
        found = read_manifest(path)
        if differs := sorted(name for name in manifest.keys() | found.keys() if manifest.get(name) != found.get(name)):
            raise InputError(
                f"{path} holds features of other settings ({', '.join(differs)} differ): choose another --to."
            )
        return
    path.mkdir(parents=True, exist_ok=True)
    atomic_files.write_file(path / NULL, save(dict(nulls)))
    atomic_files.write_file(path / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def write_shard(
    path: pathlib.Path, number: int, records: Iterable[tuple[Sequence[int], Record]], left_out: Mapping[int, str]
) -> None:
    """Write a shard atomically.

    Args:
      path: directory of features.
      number: of the shard.
      records: (height, width, height, width) of target and content, and the arrays of each example.
      left_out: reasons by index for omitted examples; it may grow while `records` is consumed.
    """
    shapes = []
    with atomic_files.beside(path / f"{number:05d}.array_record") as temporary:
        # One record, one read.
        writer = array_record("array_record_module").ArrayRecordWriter(str(temporary), "group_size:1")
        for shape, record in records:
            writer.write(save({name: np.asarray(value, order="C") for name, value in record.items()}))
            shapes.append(list(shape))
        writer.close()
    lost = {str(index): reason for index, reason in left_out.items()}
    atomic_files.write_file(path / f"{number:05d}.json", json.dumps({"shapes": shapes, "left_out": lost}).encode())


def is_begun(path: pathlib.Path) -> bool:
    """Return whether a directory holds features, complete or not."""
    return (path / MANIFEST).exists()


def is_complete(path: pathlib.Path) -> bool:
    """Return whether a directory holds all shards of its features."""
    return is_begun(path) and all(is_done(path, number) for number in range(read_manifest(path)["shards"]))


def is_done(path: pathlib.Path, number: int) -> bool:
    """Return whether a shard is complete."""
    return (path / f"{number:05d}.json").is_file()


def _load(data: bytes) -> dict[str, np.ndarray]:
    """Deserialise safetensors bytes to numpy arrays; unlike safetensors.numpy, this supports bfloat16."""
    read = lambda found: np.frombuffer(found["data"], _TYPES[found["dtype"]]).reshape(found["shape"])
    return {name: read(found) for name, found in deserialize(data)}


def left_out(path: pathlib.Path, number: int) -> dict[str, str]:
    """Return why examples of a shard were omitted, by index."""
    return _shard(path, number)["left_out"]


def _shapes(path: pathlib.Path, number: int) -> np.ndarray:
    shapes = _shard(path, number)["shapes"]
    if not all(0 <= side <= MAX_PIXELS for shape in shapes for side in shape):
        raise InputError(f"{path / f'{number:05d}.json'} is damaged (a size makes no sense); {_AGAIN}")
    return np.asarray(shapes, np.int32).reshape(-1, 4)


def _shard(path: pathlib.Path, number: int) -> "_Shard":
    return untrusted.json(path / f"{number:05d}.json", _Shard, remedy=_AGAIN)
