# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Encode a data set once, for a stage that then trains without its encoders (uso_jax.data.features has the format).

The encoders are those of the run that will train: the same weights, sizes and precision. A fingerprint of all of these
is stored, and training refuses features of other encoders.
"""

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from uso_jax import mini, weights
from uso_jax.common import locks, progress
from uso_jax.common.errors import BadExample, InputError
from uso_jax.data import features
from uso_jax.data.buckets import share_out
from uso_jax.data.examples import Examples
from uso_jax.data.features import FeatureSource
from uso_jax.data.fingerprint import fingerprint as fingerprint_of_rows
from uso_jax.data.sources import Mixture, open_source
from uso_jax.data.triplet import TripletSource
from uso_jax.models.components import folders, row_of, structures
from uso_jax.models.uso import USO, Batch, to_float
from uso_jax.parallel import sharding
from uso_jax.params import Params
from uso_jax.training import rewards
from uso_jax.training.config import TrainConfig, override
from uso_jax.training.init import initial_params
from uso_jax.training.stage import StageConfig
from uso_jax.weights import pretrained
from uso_jax.weights.quantized_kernels import QuantizedUSO

ENCODERS = folders(lambda row: row.encodes)
STRUCTURES = structures(lambda row: row.encodes)
WITHOUT = structures(lambda row: row.encodes in ("style", "text"))  # of a USO that never sees an image or a prompt
_CHOICES = ("remat", "attention")  # of a run, which change no number


def fingerprint(config: TrainConfig, names: Iterable[str] = ()) -> dict[str, str]:
    """Identify encoders and the networks of rewards and judges `names` by weights, sizes, precision and preprocessing.

    Those that the system lacks are left out.
    """
    system, have = config.system, set()
    directory = mini.directory(config.model.weights) if config.model.weights else None
    if directory is not None:
        have = set(weights.components(directory)) - set(config.model.fresh)
    layers = system.transformer.projector and system.transformer.projector.layers
    with_more = {"style": [layers], "text": [system.text.tokenizers()]}  # what else decides the features
    found = {}
    wanted = dict.fromkeys((*ENCODERS, *sorted(rewards.components(names))))
    for name in (name for name in wanted if system.network(name) is not None):
        facts = [system.network(name), *with_more.get(row_of(name).encodes if name in ENCODERS else "", ())]
        numbers = pretrained.fingerprint(directory / name) if name in have else f"random numbers of seed {config.seed}"
        sizes = json.dumps([facts, config.model.frozen_dtype, numbers], default=_plain, sort_keys=True)
        found[name] = hashlib.sha256(sizes.encode()).hexdigest()[:16]
    return found


def reward_names(config: TrainConfig) -> tuple[str, ...]:
    """Return the rewards and judges of all stages of a run."""
    stages = [stage for stage in config.run_stages if stage.scored is not None]
    return tuple(dict.fromkeys(name for stage in stages for name in stage.scored.names))


def is_ready(spec: Mapping[str, Any]) -> bool:
    """Return whether a source of the configuration holds encoded data."""
    return spec["name"] == "features" or any(is_ready(part) for part in spec.get("parts", ()))


def build_system(config: TrainConfig) -> USO:
    """Return the system of a run: without encoders where all its data is encoded already.

    `uso_jax.training.preflight.check_features` checks that the encoded data suits the run.
    """
    specs = [spec for spec in (config.data.train, config.data.heldout) if is_ready(spec)]
    if not specs:
        return QuantizedUSO(config.system)
    parts = [part for spec in specs for part in spec.get("parts", [spec]) if part["name"] == "features"]
    null_text = FeatureSource(parts[-1]["path"]).null_text
    return QuantizedUSO(config.system, without=WITHOUT if len(specs) == 2 else (), null_text=null_text)


def encode_first(config: TrainConfig, folder: pathlib.Path) -> TrainConfig:
    """Encode all of a configuration's sources, and return the configuration that reads the features.

    What is there already is not made again. Every process encodes its share.

    Args:
      config: a configuration that `uso_jax.training.preflight.check_features` has accepted.
      folder: where the features of train, heldout and samples go.

    Raises:
      InputError: the folder holds features of other data or settings.
    """
    stage, count = config.run_stages[-1], jax.process_count()
    for split in config.data.splits:
        path, source = folder / split, open_source(config.data.alone(split), stage.data)
        if features.is_begun(path) and features.read_manifest(path).get("rows") != fingerprint_of_rows(source):
            if split != "samples":
                raise InputError(
                    f"the {split} data has changed since {folder} was made: restore it, or choose another --workdir"
                )
            if jax.process_index() == 0:
                shutil.rmtree(path)
            multihost_utils.sync_global_devices("removed features")
        if not features.is_complete(path):
            share = dict(shard_size=min(1024, -(-len(source) // count)), process=(jax.process_index(), count))
            precompute(config, stage, split, path, **share, rewarded=bool(reward_names(config)))
    multihost_utils.sync_global_devices("features")
    return override(config, {"data.encoded": str(folder)})


def precompute(
    config: TrainConfig,
    stage: StageConfig,
    split: str,
    path: pathlib.Path | str,
    *,
    shard_size: int = 1024,
    process: tuple[int, int] = (0, 1),
    dtype: str = "",
    rewarded: bool = False,
) -> int:
    """Encode one of a configuration's sources at a stage's sizes; return the number of examples.

    What is there already is not made again, so a stopped run goes on.

    Args:
      config: whose encoders and sources are used.
      stage: whose sizes are used.
      split: "train", "heldout", "prior" or "samples".
      path: folder of the features.
      shard_size: examples a file.
      process: which of how many; each makes its own shards, with the devices that it sees.
      dtype: of style and text features, such as "bfloat16"; "" keeps what the encoders give.
      rewarded: also keep what the run's rewards and judges read of the references.

    Raises:
      InputError: the source is not of images, settings are wrong, or there are features of other settings in `path`.
    """
    path = pathlib.Path(path)
    source = open_source(config.data.alone(split), stage.data)
    if isinstance(source, Mixture) or hasattr(source, "example"):
        raise InputError("precompute reads one source of images; mix the features instead.")
    if shard_size < 1 or not 0 <= process[0] < process[1]:
        raise InputError(
            f"shard_size {shard_size} must be positive, and process {process[0]}/{process[1]} be 0/N to N-1/N."
        )
    names = reward_names(config) if rewarded else ()
    if rewarded and not names:
        raise InputError("no stage of the run has a reward; leave out --rewards, or set its reward.scale")
    with locks.hold(path, share=process):
        return _encode(config, stage, split, path, source, shard_size, process, dtype, names)


def _encode(
    config: TrainConfig,
    stage: StageConfig,
    split: str,
    path: pathlib.Path,
    source: TripletSource,
    shard_size: int,
    process: tuple[int, int],
    dtype: str,
    names: tuple[str, ...],
) -> int:
    mesh = sharding.make_mesh(config.mesh, jax.local_devices())
    config = override(config, {"model.quantization": ""})  # encoders alone fit, and are the same for every run
    needed = {*STRUCTURES, *structures(lambda row: row.folder in rewards.components(names))}
    system = USO(config.system, without=set(USO(config.system).structures) - needed)
    with jax.set_mesh(mesh):
        params = initial_params(config, system, sharding.shardings(mesh, config.rules, system.shapes), set())
        encoder = _Encoder(config, system, params, mesh, stage, source, dtype, names)
        total = len(source)
        shards = -(-total // shard_size)
        manifest = {
            "fingerprint": fingerprint(config, names),
            "source": config.data.alone(split),
            "rows": fingerprint_of_rows(source),
            "examples": total,
            "shards": shards,
            "shard_size": shard_size,
            "dtype": dtype,
            "num_styles": config.data.num_styles,
            "downscale": config.system.autoencoder.downscale,
            "sizes": stage.bucket_sizes(config.system.pixels_per_token),
        }
        if names:
            manifest["rewards"] = names
        if stage.outside_mask < 1:
            manifest["masks"] = True
        features.write_manifest(path, manifest, encoder.nulls())
        mine = range(process[0], shards, process[1])
        lost = 0
        examples = {number: np.arange(number * shard_size, min((number + 1) * shard_size, total)) for number in mine}
        with progress.bar(total=sum(map(len, examples.values())), desc=f"encoding {split}", unit="example") as bar:
            for number, chosen in examples.items():
                if features.is_done(path, number):
                    bar.skip(len(chosen))
                else:
                    left_out: dict[int, str] = {}
                    found = encoder.records(chosen, left_out, config.data.max_errors - lost)
                    features.write_shard(path, number, _counted(found, bar), left_out)
                    bar.update(len(left_out))
                lost += len(features.left_out(path, number))
    return total


def _counted(records: Iterator, bar: progress.Bar) -> Iterator:
    for record in records:
        yield record
        bar.update()


class _Encoder:
    """The encoders of a run, and the examples of a source in the stage's sizes."""

    def __init__(
        self,
        config: TrainConfig,
        system: USO,
        params: Params,
        mesh: Mesh,
        stage: StageConfig,
        source: TripletSource,
        dtype: str,
        names: tuple[str, ...],
    ):
        self.config, self.system, self.params, self.mesh, self.stage = config, system, params, mesh, stage
        self.source, self.dtype = source, jnp.dtype(dtype) if dtype else None
        self.names = names  # of the rewards whose view of the references is kept
        self.batch_size = stage.batch_size // stage.accumulate
        self.num_threads = config.data.num_threads
        sizes = stage.bucket_sizes(config.system.pixels_per_token)
        self.shapes = share_out(
            source, sizes["target_sizes"], sizes["content_sizes"], stage.batch_size, sizes.get("smaller_sizes", ())
        )
        self._phases: dict[tuple, str] = {}  # by image shape: what is shown while a batch is encoded
        self._encode = jax.jit(self._encode_of, out_shardings=sharding.replicated(mesh))

    def nulls(self) -> dict[str, np.ndarray]:
        """Return the encoded empty prompt, and the zeros that stand for an absent style image."""
        images = jax.ShapeDtypeStruct((1, 1, *self.config.style_size(self.stage), 3), jnp.uint8)
        ((entry, style),) = jax.eval_shape(self._styles_of, self.params, images).items()
        tokens = {name: ids[None] for name, ids in self.system.null_tokens.items()}
        txt, vec = jax.jit(self.system.encode_text)(self.params, tokens)
        text = {"txt": txt} | ({} if vec is None else {"vec": vec})
        found = {name: self._cast(np.asarray(value[0])) for name, value in text.items()}
        return found | {entry.removesuffix("_features"): np.zeros(style.shape[2:], style.dtype)}

    def records(
        self, chosen: np.ndarray, left_out: dict[int, str], max_errors: int
    ) -> Iterator[tuple[tuple[int, ...], features.Record]]:
        """Yield the records of some triplets, one image shape after another; unreadable ones go to `left_out`."""
        system = self.config.system
        for shape, indices in self.shapes.items():
            own = chosen if indices is None else np.intersect1d(chosen, indices, assume_unique=True)
            examples = Examples(
                self.source, 0, None, shape, self.config.style_size(self.stage), self.config.data.num_styles,
                system.tokenize, crop_styles=system.style_encoder == "autoencoder",
                mask_cell=system.pixels_per_token if self.stage.outside_mask < 1 else 0,
            )  # fmt: skip
            for rows in self._read(examples, own, left_out):
                if len(left_out) > max_errors:
                    raise InputError(
                        f"more examples cannot be read than data.max_errors, {self.config.data.max_errors}, allows; the"
                        f" last: {list(left_out.values())[-1]}"
                    )
                yield from self._batch(rows, shape)

    def _read(
        self, examples: Examples, indices: np.ndarray, left_out: dict[int, str]
    ) -> Iterator[list[tuple[int, dict]]]:
        """Yield lists of a batch's length; the next list is read while the last one is encoded."""

        def read(index: int) -> tuple[int, dict | str]:
            try:
                return index, examples[index]
            except BadExample as error:
                return index, str(error)

        with ThreadPoolExecutor(self.num_threads) as pool:
            parts = [indices[start : start + self.batch_size] for start in range(0, len(indices), self.batch_size)]
            ahead = None
            for part in [*parts, None]:
                waiting, ahead = ahead, None if part is None else [pool.submit(read, int(index)) for index in part]
                found = [future.result() for future in waiting or ()]
                left_out |= {index: row for index, row in found if isinstance(row, str)}
                if found:
                    yield [(index, row) for index, row in found if not isinstance(row, str)]

    def _batch(self, rows: list[tuple[int, dict]], shape) -> Iterator[tuple[tuple[int, ...], features.Record]]:
        """Encode up to a batch of examples; a shorter batch is padded, so that one program serves all."""
        if not rows:
            return
        filled = [row for _, row in rows] + [rows[-1][1]] * (self.batch_size - len(rows))
        batch = {name: np.stack([row[name] for row in filled]) for name in filled[0] if name != "mask"}
        # jit with replicated results: every process may run its own batches, since its mesh is its own devices.
        with progress.phase(self._phases.setdefault(shape, "compiling the encoders")):
            made = jax.device_get(self._encode(self.params, sharding.global_batch(self.mesh, batch)))
        self._phases[shape] = "encoding"
        for number, (index, row) in enumerate(rows):
            record = {name: value[number] for name, value in made.items()}
            num_styles = int(row["style_valid"].sum())
            (styles,) = record.keys() & {"style_features", "style_moments"}
            record[styles] = record[styles][:num_styles]
            absent = {"content_moments"} if not row["content_valid"] else set()
            absent |= {styles} if not num_styles else set()
            record = {name: value for name, value in record.items() if name not in absent}
            record |= {name: np.asarray(row[name]) for name in ("subject_label", "style_label", "mask") if name in row}
            yield (*shape[0], *shape[1]), record | {"index": np.asarray(index, np.int64)}

    def _encode_of(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        system = self.system
        txt, vec = system.encode_text(params, {name: batch[name] for name in system.null_tokens})
        text = {"txt": txt} | ({} if vec is None else {"vec": vec})
        described = rewards.describe(system, params, self.names, batch)
        return {
            "target_moments": self._moments(params, batch["target"]),
            "content_moments": self._moments(params, batch["content"]),
            **self._styles_of(params, batch["style"]),
            **{name: self._cast(value) for name, value in text.items()},
            **rewards.pack_described(described),
        }

    def _moments(self, params: Params, images):
        return jnp.concatenate(self.system.module(params, "autoencoder").moments(to_float(images)), axis=-1)

    def _styles_of(self, params: Params, images) -> dict[str, jax.Array]:
        """Return the features of style images [b, n, h, w, 3] under their name in records."""
        if self.config.system.style_encoder == "siglip":
            return {"style_features": self._cast(self.system.style_features(params, images))}
        moments = self._moments(params, images.reshape(-1, *images.shape[2:]))
        return {"style_moments": moments.reshape(*images.shape[:2], *moments.shape[1:])}

    def _cast(self, value):
        return value if self.dtype is None else value.astype(self.dtype)


def _plain(value: Any) -> Any:
    found = dataclasses.asdict(value)
    return {name: item for name, item in found.items() if name not in _CHOICES}
