# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Triplets of any source as a TFDS data set in ArrayRecord files, written and read without TensorFlow.

Image files go in as they are, byte for byte, so that an image is the same by every route; what has no file (drawn
images, views cut from a larger image) is stored as PNG.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from uso_jax.common.errors import BadExample, InputError
from uso_jax.data.tfds.records import encode_example, sizes_file
from uso_jax.data.triplet import TripletSource

_THREADS = 8
_AHEAD = 64  # triplets that are read before they are written
# Of one machine. Beam's newer runner for it would download a program.
_BEAM = ("--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=0")


class Triplets(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of triplets; `sources` are to be set before it prepares, and `specs` if Beam is to read them."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}

    sources: Mapping[str, TripletSource]
    limit: int
    max_errors: int
    specs: Mapping[str, Mapping[str, Any]]

    def _info(self) -> tfds.core.DatasetInfo:
        image, text = tfds.features.Image(shape=(None, None, 3)), tfds.features.Text()
        images = dict(content=tfds.features.Sequence(image), styles=tfds.features.Sequence(image), target=image)
        return self.dataset_info_from_configs(
            description="Triplets of content, style and target images; content holds one image or none.",
            features=tfds.features.FeaturesDict(images | dict.fromkeys(("prompt", "layout", "key", "meta"), text)),
            disable_shuffling=True,  # example i stays example i; training shuffles
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.sources}

    def _generate_examples(self, split: str):
        source = self.sources[split]
        total = min(len(source), self.limit or len(source))
        if not self.specs:
            return self._in_order(split, source, total)
        from uso_jax.data.tfds import beam

        return beam.read_split(split, self.specs[split], total, Path(self.data_path))

    def _in_order(self, split: str, source: TripletSource, total: int) -> Iterator[tuple[int, dict[str, Any]]]:
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
    sources: Mapping[str, TripletSource],
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

        from uso_jax.data.tfds import beam
    except ImportError as error:
        raise InputError('reading by Apache Beam needs it: pip install "uso_jax[beam]".') from error
    download.beam_options = PipelineOptions([*_BEAM, *beam_options])
    builder.download_and_prepare(download_config=download, file_format="array_record")
    lost = [reason for split in sources for reason in beam.pop_lost(path, split)]
    if len(lost) > max_errors:
        shutil.rmtree(path)
        raise _too_many(lost, max_errors)
    return path


def _too_many(lost: Sequence[Any], max_errors: int) -> InputError:
    return InputError(f"{len(lost)} triplets cannot be read, and data.max_errors is {max_errors}; the last: {lost[-1]}")


def _ahead(source: TripletSource, total: int) -> Iterator[tuple[dict[str, Any], tuple[int, ...]] | BadExample]:
    """Read triplets in order, some of them ahead; one that cannot be read is given as its error."""

    def read(index: int):
        try:
            return encode_example(source, index)
        except BadExample as error:
            return error

    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, total, _AHEAD):
            yield from pool.map(read, range(start, min(start + _AHEAD, total)))
