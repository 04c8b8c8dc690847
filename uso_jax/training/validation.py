# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Validation of a stage on triplets it never trains on: a loss with fixed draws, sample grids and rewards."""

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from uso_jax.data.loader import batches
from uso_jax.data.sources import Mixture, open_source
from uso_jax.data.triplet import TripletSource
from uso_jax.images import contact_sheet
from uso_jax.models.uso import USO, to_float
from uso_jax.parallel import sharding
from uso_jax.params import Params
from uso_jax.training import image_statistics, rewards
from uso_jax.training.config import TrainConfig
from uso_jax.training.objectives import OBJECTIVES
from uso_jax.training.policy import PolicyConfig
from uso_jax.training.stage import RewardConfig, StageConfig

_SEED = 20_25  # of the draws; it does not depend on the run's seed


def pipeline_options(config: TrainConfig, stage: StageConfig) -> dict:
    """Return the arguments of `uso_jax.data.loader.batches` that training and validation share."""
    return dict(
        target_size=stage.target_size,
        content_size=stage.content_size,
        style_size=config.style_size(stage),
        crop_styles=config.system.style_encoder == "autoencoder",
        num_styles=config.data.num_styles,
        tokenize=config.system.tokenize,
        num_threads=config.data.num_threads,
        max_errors=config.data.max_errors,
        mask_cell=config.system.pixels_per_token if stage.outside_mask < 1 else 0,
        **stage.bucket_sizes(config.system.pixels_per_token),
    )


class Validator:
    """The held-out batches of one stage, and the figures of a model on them."""

    def __init__(self, config: TrainConfig, system: USO, mesh: Mesh, stage: StageConfig):
        self.settings, self.system, self.mesh = config.heldout, system, mesh
        self.objective = OBJECTIVES[stage.loss]
        nothing = dict.fromkeys(("text_dropout", "content_dropout", "style_dropout", "all_dropout", "clip_cut"), 0.0)
        self.stage = dataclasses.replace(stage, batch_size=self.settings.batch_size, accumulate=1, **nothing)
        heldout = open_source(config.data.heldout, stage.data)
        self.batches = self._read(config, heldout, self.settings.num_batches)
        triplets = self.settings.batch_size if isinstance(heldout, Mixture) else len(heldout)
        self._rows = min(self.settings.grid_rows, triplets)
        self._own: list = []  # batches of the user's samples
        self._num_own = 0
        if config.data.drawn is not None:
            own = open_source(config.data.drawn)
            self._num_own = len(own)
            self._own = self._read(config, own, -(-len(own) // self.settings.batch_size))
        self._loss = jax.jit(self._loss_of, out_shardings=sharding.replicated(mesh))
        self._sample = jax.jit(self._sample_of, out_shardings=sharding.replicated(mesh))
        self._rewards = jax.jit(self._rewards_of, out_shardings=sharding.replicated(mesh))
        self._whole = jax.jit(lambda batch: batch, out_shardings=sharding.replicated(mesh))

    def _read(self, config: TrainConfig, source: TripletSource | Mixture, number: int) -> list[dict[str, np.ndarray]]:
        """Read the first batches of a source, in its order; a short source is repeated."""
        index, count = sharding.batch_share(self.mesh)
        stream = batches(
            source,
            batch_size=self.settings.batch_size,
            seed=0,
            shuffle=False,
            process_index=index,
            process_count=count,
            **pipeline_options(config, self.stage),
        )
        reading = iter(stream)
        found = list(itertools.islice(reading, number))
        reading.close()
        return found

    def loss(self, params: Params, start: Params) -> float:
        """Return the stage's loss on held-out batches, without dropout and with the same draws on every call.

        `start` has the trained parameters of before the stage, where it has a teacher.
        """
        losses = [
            self._loss(params, start, sharding.global_batch(self.mesh, batch), number)
            for number, batch in enumerate(self.batches)
        ]
        return float(np.mean(jax.device_get(losses)))

    def grid(self, params: Params, path: pathlib.Path) -> None:
        """Write a grid of the first held-out triplets: content | style | generated | target.

        The user's samples are written as a second grid, content | style | generated, into the folder `own` beside it.
        Nothing is written where the stage's objective generates no images.
        """
        if not hasattr(self.objective, "sample"):
            return
        columns = self._columns(params, self.batches[0])
        sheets = {path: {name: images[: self._rows] for name, images in columns.items()}}
        if self._own:
            parts = [self._columns(params, batch) for batch in self._own]
            own = {name: np.concatenate([part[name] for part in parts])[: self._num_own] for name in parts[0]}
            own.pop("target", None)  # it is blank
            sheets[path.parent / "own" / path.name] = own
        if jax.process_index() == 0:
            for file, columns in sheets.items():
                contact_sheet.save(contact_sheet.draw(columns), file)

    def _columns(self, params: Params, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the columns of a grid, uint8 [b, h, w, 3], of a batch and the images generated for it."""
        batch = sharding.global_batch(self.mesh, batch)
        generated, shown = jax.device_get((self._sample(params, batch), self._whole(batch)))
        columns = {}
        if "content" in self.stage.conditions and "content" in shown:
            columns["content"] = _blank_absent(shown["content"], shown["content_valid"])
        if "style" in self.stage.conditions and "style" in shown:
            columns["style"] = _blank_absent(shown["style"][:, 0], shown["style_valid"][:, 0])
        columns["generated"] = generated
        if "target" in shown:  # encoded data has no target images
            columns["target"] = shown["target"]
        return columns

    def rewards(self, params: Params) -> dict[str, float]:
        """Return the means of rewards, judges and image statistics over generated images; the stage has a reward.

        Names are "heldout_reward", "heldout_NAME" of every reward and judge, "saturation", "contrast" and, where data
        are images, "leakage".
        """
        parts = [
            jax.device_get(self._rewards(params, sharding.global_batch(self.mesh, batch))) for batch in self.batches
        ]
        sums = {name: np.sum([part[name] for part in parts], axis=0) for name in parts[0]}
        return {name: float(total / count) for name, (total, count) in sums.items() if count}

    def _loss_of(self, params: Params, start: Params, batch, number):
        stage = self.stage.at_size(*self.system.target_size(batch))
        draws = self.objective.draw(jax.random.fold_in(jax.random.key(_SEED), number), self.system, stage)
        teacher = {} if stage.teacher is None else {"teacher": {**params, **start}}
        return self.objective.loss(params, self.system, stage, batch, draws, **teacher)

    def _sample_of(self, params: Params, batch):
        stage = self.stage.at_size(*self.system.target_size(batch))
        return self.objective.sample(params, self.system, stage, batch, self.settings)

    def _rewards_of(self, params: Params, batch) -> dict[str, jax.Array]:
        """Return each figure's sum over samples, and the number of samples that have it."""
        config, images = self.stage.scored, self._sample_of(params, batch)
        names = list(config.names)
        described = rewards.describe(self.system, params, names, batch)
        scores = rewards.score(self.system, params, to_float(images), described)
        has = rewards.valid(self.system, names, batch)
        figures = {}
        if config.weights:
            every = jnp.all(jnp.stack([has[name] for name in config.weights]), axis=0)
            figures["heldout_reward"] = sum(weight * scores[name] for name, weight in config.weights.items()), every
        figures |= {f"heldout_{name}": (scores[name], has[name]) for name in names}
        all_of_them = jnp.ones(len(images), bool)
        figures["saturation"] = (image_statistics.saturation(images), all_of_them)
        figures["contrast"] = (image_statistics.contrast(images), all_of_them)
        if "target" in batch:  # encoded data has no images to compare with
            leaked = image_statistics.leakage(images, batch["style"][:, 0], batch["target"])
            figures["leakage"] = (leaked, batch["style_valid"][:, 0])
        return {name: jnp.stack([jnp.sum(jnp.where(c, x, 0.0)), jnp.sum(c)]) for name, (x, c) in figures.items()}


def is_cheating(config: RewardConfig | PolicyConfig, history: Sequence[Mapping[str, float | int]]) -> bool:
    """Return whether the last `patience` validations all had a judge down while the reward was up.

    Both are compared with the validation in which that judge was at its best. A judge is down when it has lost more
    than the tolerance since then.

    Args:
      config: patience, tolerance and the names of the judges.
      history: figures of `Validator.rewards`, oldest first.
    """
    if not config.patience or len(history) <= config.patience:
        return False

    def down(number: int, name: str) -> bool:
        now, before = history[number], [entry for entry in history[:number] if name in entry]
        if not before or name not in now:
            return False
        best = max(before, key=lambda entry: entry[name])
        return now[name] < best[name] - config.tolerance and now["heldout_reward"] > best["heldout_reward"]

    last = range(len(history) - config.patience, len(history))
    return all(any(down(number, f"heldout_{name}") for name in config.judges) for number in last)


def _blank_absent(images: np.ndarray, valid: np.ndarray) -> np.ndarray:
    return np.where(valid[:, None, None, None], images, np.uint8(240))
