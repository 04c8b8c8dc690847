# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Write triplets of any source as a TFDS data set in ArrayRecord files, without TensorFlow.

Image files are copied byte for byte, so an image decodes identically from either place. Images without a file (drawn
ones, and views cut from a larger image) are stored as PNG. Large sources can be read by Apache Beam (see `beam`).
"""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from uso_jax.common import locks
from uso_jax.common.errors import BadExample, InputError
from uso_jax.data.tfds.records import encode_example, sizes_file
from uso_jax.data.triplet import TripletSource

_LOG = logging.getLogger("uso_jax.data")
_THREADS = 8
_AHEAD = 64  # triplets read ahead of writing
# The local runner. Beam's newer one (Prism) would download a binary.
_BEAM = ("--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=0")


class Triplets(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of triplets. Set the annotated attributes before preparing; `specs` is empty without Beam."""

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
            disable_shuffling=True,  # keeps the order of the source; training shuffles
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
    """Write splits of triplets to DATA_DIR/triplets/NAME/1.0.0, unless it exists, and return this directory.

    Args:
      sources: triplets by split.
      data_dir: parent directory of data sets.
      name: of this data set.
      limit: number of triplets per split; 0 means all.
      max_errors: number of unreadable triplets that are skipped before an error is raised.
      specs: descriptions of the sources by split, see `open_source`. If set, Apache Beam workers read, encode and write
        the data, and all of them must have access to `data_dir`.
      beam_options: pipeline options, such as ["--runner=FlinkRunner"]. The default uses all cores of this machine.

    Raises:
      InputError: more than `max_errors` triplets are unreadable, or Apache Beam is not installed.
    """
    builder = Triplets(data_dir=str(data_dir), config=tfds.core.BuilderConfig(name=name))
    if masked := [split for split, source in sources.items() if getattr(source, "num_masks", 0)]:
        _LOG.warning("masks of %s are not kept in this format: train on the files themselves", ", ".join(masked))
    builder.sources, builder.limit, builder.max_errors, builder.specs = sources, limit, max_errors, specs or {}
    download = tfds.download.DownloadConfig(try_download_gcs=False)
    with locks.hold(Path(builder.data_path).parent):
        for left in Path(builder.data_path).parent.glob("incomplete.*"):  # by a writer that was killed
            shutil.rmtree(left, ignore_errors=True)
        return _prepare(builder, download, beam_options)


def _prepare(builder: Triplets, download: tfds.download.DownloadConfig, beam_options: Sequence[str]) -> Path:
    path, specs = Path(builder.data_path), builder.specs
    if not specs or path.exists():
        builder.download_and_prepare(download_config=download, file_format="array_record")
        return path
    try:
        from apache_beam.options.pipeline_options import PipelineOptions

        from uso_jax.data.tfds import beam
    except ImportError as error:
        raise InputError('Apache Beam is not installed: pip install "uso_jax[beam]".') from error
    download.beam_options = PipelineOptions([*_BEAM, *beam_options])
    builder.download_and_prepare(download_config=download, file_format="array_record")
    lost = [reason for split in builder.sources for reason in beam.pop_lost(path, split)]
    if len(lost) > builder.max_errors:
        shutil.rmtree(path)
        raise _too_many(lost, builder.max_errors)
    return path


def _too_many(lost: Sequence[Any], max_errors: int) -> InputError:
    count = len(lost)
    return InputError(f"{count} triplets cannot be read, and data.max_errors is {max_errors}; last error: {lost[-1]}")


def _ahead(source: TripletSource, total: int) -> Iterator[tuple[dict[str, Any], tuple[int, ...]] | BadExample]:
    """Yield encoded triplets in order, reading ahead with threads; an unreadable triplet yields its error."""

    def read(index: int):
        try:
            return encode_example(source, index)
        except BadExample as error:
            return error

    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, total, _AHEAD):
            yield from pool.map(read, range(start, min(start + _AHEAD, total)))
