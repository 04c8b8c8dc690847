# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Triplets as what the encoders make of them, in ArrayRecord files: training on them needs no encoder.

    DIR/manifest.json               what was encoded, and by which encoders
    DIR/null.safetensors            the empty prompt, for dropped captions, and zeros for absent style images
    DIR/00000.array_record          records, each a safetensors file of one example
    DIR/00000.json                  shapes of these records; written last, so a shard that has it is whole

A record holds "target_moments" and "content_moments" [lh, lw, 2 z] (mean and log-variance of the posterior),
"style_features" [n, 3, s, c], "txt" [t, context], "vec" [vec], the labels, and "index", the triplet's place in its
source. What a triplet lacks is left out. Written by uso_jax.training.precompute.
"""

import json
import operator
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

import ml_dtypes
import numpy as np
from array_record.python import array_record_data_source, array_record_module
from jaxtyping import Int32
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from uso_jax.common import atomic_files
from uso_jax.common.errors import BadExample, InputError

FORMAT = 1
_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I32": np.int32, "I64": np.int64}
MANIFEST, NULL = "manifest.json", "null.safetensors"
Record = Mapping[str, np.ndarray]


class FeatureSource:
    """Random access to the records of a folder; `example` gives them as the pipeline's examples."""

    def __init__(self, path: pathlib.Path | str):
        self.path = pathlib.Path(path)
        self.manifest = read_manifest(self.path)
        try:
            self._null = _load((self.path / NULL).read_bytes())
        except (OSError, SafetensorError) as error:
            raise InputError(f"{self.path / NULL} cannot be read ({error}): make the features again.") from error
        shards = self.manifest["shards"]
        missing = [number for number in range(shards) if not is_done(self.path, number)]
        if missing:
            raise InputError(
                f"{self.path} lacks {len(missing)} of {shards} shards, the first is {missing[0]:05d}: run the same"
                " precompute command again to finish it."
            )
        shapes = [_shapes(self.path, number) for number in range(shards)]
        self._shapes = np.concatenate(shapes)
        files = [str(self.path / f"{number:05d}.array_record") for number, own in enumerate(shapes) if own.size]
        try:
            self._records = array_record_data_source.ArrayRecordDataSource(files)
            whole = len(self._records) == len(self._shapes)
        except (OSError, ValueError, RuntimeError):
            whole = False
        if not whole:
            raise InputError(f"{self.path} is damaged: its files do not hold the records they should; make it again.")

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, index: SupportsIndex) -> Record:
        """Give a record as it is stored."""
        index = operator.index(index)
        try:
            return _load(self._records[index])
        except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
            raise BadExample(f"record {index} of {self.path} is damaged ({error}).") from error

    def sizes(self) -> Int32[np.ndarray, "n 4"]:
        """Give (height, width) of every target and content image as it was encoded."""
        return self._shapes

    def example(self, index: int, content_size: tuple[int, int], num_styles: int) -> dict[str, np.ndarray]:
        """Give a record as an example of fixed shapes, absent conditions being zeros that are not valid."""
        record, manifest = dict(self[index]), self.manifest
        del record["index"]
        if num_styles != manifest["num_styles"]:
            raise InputError(
                f"{self.path} was made for num_styles {manifest['num_styles']}, not {num_styles}: set"
                " --config.data.num_styles, or make it again."
            )
        record["content_valid"] = np.asarray("content_moments" in record)
        if "content_moments" not in record:
            rows, columns = (side // manifest["downscale"] for side in content_size)
            record["content_moments"] = np.zeros((rows, columns, record["target_moments"].shape[2]), np.float32)
        found = [*record.pop("style_features", ())]
        record["style_features"] = np.stack(found + [self._null["style"]] * (num_styles - len(found)))
        return record | {"style_valid": np.arange(num_styles) < len(found)}

    @property
    def null_text(self) -> tuple[np.ndarray, np.ndarray]:
        """The empty prompt's features and pooled vector."""
        return self._null["txt"], self._null["vec"]


def read_manifest(path: pathlib.Path) -> dict[str, Any]:
    """Read the manifest of a folder of features."""
    try:
        found = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise InputError(f"{path} is of format {found['format']}, this program reads {FORMAT}: make it again.")
        return found
    except FileNotFoundError:
        raise InputError(f"{path} holds no features: make them with scripts/curate.py precompute.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path / MANIFEST} is not readable ({error}): make the features again.") from error


def write_manifest(path: pathlib.Path, manifest: Mapping[str, Any], nulls: Record) -> None:
    """Begin a folder of features, or go on with the same one."""
    manifest = json.loads(json.dumps({"format": FORMAT, **manifest}))
    if (path / MANIFEST).exists():
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
    """Write a shard of ((height, width) of target and content, record); it is there once it is whole.

    `left_out` may grow while the records are made.
    """
    shapes = []
    with atomic_files.beside(path / f"{number:05d}.array_record") as temporary:
        writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")  # one record, one read
        for shape, record in records:
            writer.write(save({name: np.asarray(value, order="C") for name, value in record.items()}))
            shapes.append(list(shape))
        writer.close()
    lost = {str(index): reason for index, reason in left_out.items()}
    atomic_files.write_file(path / f"{number:05d}.json", json.dumps({"shapes": shapes, "left_out": lost}).encode())


def is_done(path: pathlib.Path, number: int) -> bool:
    """Tell whether a shard is whole."""
    return (path / f"{number:05d}.json").is_file()


def _load(data: bytes) -> dict[str, np.ndarray]:
    """Read arrays as safetensors' own reader does, which for numpy knows no bfloat16."""
    read = lambda found: np.frombuffer(found["data"], _TYPES[found["dtype"]]).reshape(found["shape"])
    return {name: read(found) for name, found in deserialize(data)}


def left_out(path: pathlib.Path, number: int) -> dict[str, str]:
    """Give the reasons for which examples of a shard were left out, by index."""
    return json.loads((path / f"{number:05d}.json").read_text(encoding="utf-8"))["left_out"]


def _shapes(path: pathlib.Path, number: int) -> np.ndarray:
    found = json.loads((path / f"{number:05d}.json").read_text(encoding="utf-8"))
    return np.asarray(found["shapes"], np.int32).reshape(-1, 4)
