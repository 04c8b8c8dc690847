# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation tables of runs on drawn data, whose true images are known.

A table is a task and a split of the data source. A table whose split the source does not have is left out. The figures
of a table are means over triplets:

    content_accuracy, style_accuracy, mse   exact, from the known factors of a drawing
                                            (uso_jax.evaluation.metrics.counterfactual); the style alone where there is
                                            no content image
    content_flat_accuracy                   the same for the subject, whatever its look
    style_patch_accuracy                    the same for the style, wherever its texture begins
    judge_content_accuracy, judge_style_accuracy   by a classifier (uso_jax.models.drawing_classifier)
    text_score                              cosine of an image and the words for its subject, in SigLIP
    csd                                     cosine of the style vectors of image and style image
    lpips, gram                             distances (uso_jax.evaluation.metrics.lpips), if configured
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from uso_jax.common import progress
from uso_jax.common.errors import InputError
from uso_jax.data.loader import batches
from uso_jax.data.sources import open_source
from uso_jax.data.splits import has_split
from uso_jax.data.triplet import TASK_CONDITIONS
from uso_jax.evaluation.metrics.counterfactual import WISHES, Counterfactuals, Styles
from uso_jax.evaluation.metrics.lpips import Perceptual
from uso_jax.images.decode import cover
from uso_jax.models.uso import USO, Batch, to_float
from uso_jax.parallel import sharding
from uso_jax.params import Params
from uso_jax.training import rewards
from uso_jax.training.config import TableConfig, TrainConfig
from uso_jax.training.objectives import flow_matching
from uso_jax.training.stage import StageConfig
from uso_jax.training.validation import pipeline_options

Images = UInt8[np.ndarray, "n h w 3"]
Figures = dict[str, float]
_CLASSES = {"judge_content_accuracy": "subject_label", "judge_style_accuracy": "style_label"}  # in the heads' order
_UNSEEN = {  # by split: labels that the classifier was not trained on
    "heldout": {"subject_label"},
    "heldout_subjects": {"subject_label"},
    "heldout_families": {"style_label"},
}


class Evaluation:
    """All tables of a configuration, by name."""

    def __init__(self, config: TrainConfig, system: USO, mesh: Mesh):
        self.system, self.settings = system, config.evaluation
        # Absent conditions are masked, so one compiled program serves every task.
        changes = dict(conditions=("content", "style"), target_aspects=(), content_aspects=(), target_areas=())
        self.stage = dataclasses.replace(config.run_stages[-1], **changes)
        perceptual = Perceptual() if self.settings.perceptual else None
        jitted = lambda function: jax.jit(function, out_shardings=sharding.replicated(mesh))
        shared = dict(sample=jitted(self._sample_of), learned=jitted(self._learned_of), perceptual=perceptual)
        self.tables = {
            name: Table(table, config, self.stage, mesh, **shared) for name, table in available_tables(config).items()
        }

    def sample(self, params: Params) -> dict[str, Images]:
        """Generate the images of every table, from the same noise on every call."""
        return {name: table.sample(params) for name, table in self.tables.items()}

    def told(self, params: Params) -> dict[str, Images]:
        """Generate images from the style's words in place of its image, for tables that have them."""
        found = {name: table.told(params) for name, table in self.tables.items()}
        return {name: images for name, images in found.items() if images is not None}

    def figures(self, params: Params, made: Mapping[str, Images]) -> dict[str, Figures]:
        """Return the figures of any images, by table."""
        return {name: self.tables[name].figures(params, images) for name, images in made.items()}

    def verdicts(self, made: Mapping[str, Images]) -> dict[str, dict[str, np.ndarray]]:
        """Return the exact figures of each of any images, by table."""
        return {name: self.tables[name].verdicts(images) for name, images in made.items()}

    def baselines(self, params: Params) -> dict[str, dict[str, Figures]]:
        """Return, by table, the figures of the true targets and of either reference copied unchanged."""
        return {
            name: {row: table.figures(params, made) for row, made in table.known.items()}
            for name, table in self.tables.items()
        }

    def _sample_of(self, params: Params, batch):
        return flow_matching.sample(params, self.system, self.stage, batch, self.settings)

    def _learned_of(self, params: Params, made, batch) -> dict[str, jax.Array]:
        system, images = self.system, to_float(made)
        has = set(system.structures)
        names = {figure: reward for figure, reward in rewards.EVALUATED.items() if rewards.components([reward]) <= has}
        scores = rewards.score(system, params, images, rewards.describe(system, params, names.values(), batch))
        figures = {figure: jnp.mean(scores[reward]) for figure, reward in names.items()}
        if "judge" in has:
            logits = system.module(params, "judge")(images)
            for (name, label), values in zip(_CLASSES.items(), logits, strict=True):
                figures[name] = jnp.mean(jnp.argmax(values, -1) == batch[label])
        return figures


def available_tables(config: TrainConfig) -> dict[str, TableConfig]:
    """Return the tables of an evaluation whose split the held-out source has; the others are left out.

    Raises:
      InputError: the source does not have the split of the main table.
    """
    tables = {}
    for name, table in config.evaluation.tables.items():
        if has_split(config.data.heldout, table.split):
            tables[name] = table
        elif name == "main":
            source = config.data.heldout["name"]
            raise InputError(f"evaluation.tables.main: {source} data with these settings has no split {table.split!r}")
    return tables


class Table:
    """The held-out triplets of one task and split, and the figures of images made for them."""

    def __init__(
        self,
        table: TableConfig,
        config: TrainConfig,
        stage: StageConfig,
        mesh: Mesh,
        *,
        sample: Callable[[Params, Batch], jax.Array],
        learned: Callable[[Params, Images, Batch], dict[str, jax.Array]],
        perceptual: Perceptual | None,
    ):
        self.tokenize, self.mesh = config.system.text.tokenize, mesh
        self._sample, self._learned, self._perceptual = sample, learned, perceptual
        settings, size = config.evaluation, config.evaluation.batch_size
        spec = dict(config.data.heldout) | {"split": table.split}
        source = open_source(spec, WISHES | {"tasks": {table.task: 1.0}})
        # Read in order, so that triplets, which know the truth, and batches are the same examples.
        reading = dict(batch_size=size, seed=0, shuffle=False, repeat=False)
        stream = batches(source, **reading, **pipeline_options(config, stage))
        self.batches = [batch for _, batch in zip(range(settings.num_triplets // size), stream, strict=False)]
        if not self.batches:
            raise InputError(
                f"evaluation.num_triplets {settings.num_triplets} is less than one batch, evaluation.batch_size {size},"
                " or the held-out source has fewer triplets; choose a smaller batch_size"
            )
        self.triplets = [source[number] for number in range(len(self.batches) * size)]
        self.has_content, self.has_style = TASK_CONDITIONS[table.task]
        if self.has_style:  # at the targets' size; SigLIP may read another one
            height, width = self.batches[0]["target"].shape[1:3]
            self._styles = np.stack([cover(t.styles[0], (height, width)) for t in self.triplets])
        self.judge = None
        self._last: tuple[Images, dict[str, np.ndarray]] | None = None
        if self.has_content:
            self.judge = Counterfactuals(source, self.triplets, styles=self.has_style)
        elif self.has_style:
            self.judge = Styles(source, self.triplets)
        tell = getattr(source, "told", None) if self.has_style else None
        self._told = tell and [self.tokenize(tell(triplet)) for triplet in self.triplets]
        labels = {label for label in _CLASSES.values() if all((b[label] >= 0).all() for b in self.batches)}
        known = labels - _UNSEEN.get(table.split, set())
        self.unknown = {name for name, label in _CLASSES.items() if label not in known}
        if not self.has_style:
            self.unknown.add("csd")  # there is no style to compare with

    @property
    def known(self) -> dict[str, Images]:
        """Images that need no model: the targets and the references, as [n, h, w, 3] bytes."""
        found = {"target": self._all("target")}
        if self.has_content:
            found["copy_content"] = self._all("content")
        if self.has_style:
            found["copy_style"] = self._styles
        return found

    def sample(self, params: Params) -> Images:
        """Generate an image for every triplet."""
        return self._generate(params, self.batches)

    def told(self, params: Params) -> Images | None:
        """Generate an image for every triplet without the style image, from its words; None if the source has none."""
        if self._told is None:
            return None
        batches = []
        for number, batch in enumerate(self.batches):
            part = self._told[number * len(batch["target"]) : (number + 1) * len(batch["target"])]
            words = {name: np.stack([tokens[name] for tokens in part]) for name in part[0]}
            batches.append(batch | words | {"style_valid": np.zeros_like(batch["style_valid"])})
        return self._generate(params, batches)

    def _generate(self, params: Params, batches: Sequence[Mapping[str, np.ndarray]]) -> Images:
        shown = progress.bar(batches, "generating images", unit="batch", leave=False)
        return np.concatenate([np.asarray(self._sample(params, sharding.whole_batch(self.mesh, b))) for b in shown])

    def figures(self, params: Params, images: Images) -> Figures:
        """Return the figures of any images, one image per triplet."""
        learned = []
        for number, batch in enumerate(self.batches):
            part = slice(number * len(batch["target"]), (number + 1) * len(batch["target"]))
            phrases = [self.tokenize(t.meta["phrase"])["t5_ids"] for t in self.triplets[part]]
            found = self._learned(params, images[part], batch | {"t5_ids": np.stack(phrases)})
            learned.append({name: np.mean(value) for name, value in found.items()})
        figures = {name: float(np.mean([part[name] for part in learned])) for name in learned[0]}
        exact = {name: float(np.mean(values)) for name, values in self.verdicts(images).items()}
        found = exact | figures | self._distances(images)
        return {name: value for name, value in found.items() if name not in self.unknown}

    def verdicts(self, images: Images) -> dict[str, np.ndarray]:
        """Return the exact figures of every image; those of the images that were judged last are kept."""
        if self._last is None or self._last[0] is not images:
            self._last = images, self.judge.per_image(images) if self.judge else {}
        return self._last[1]

    def columns(self, made: Mapping[str, Images]) -> dict[str, Images]:
        """Return the columns of a contact sheet: references, the model's images, and targets."""
        columns = {name.removeprefix("copy_"): images for name, images in self.known.items() if name != "target"}
        return columns | made | {"target": self._all("target")}

    def _distances(self, images: Images) -> Figures:
        if self._perceptual is None:
            return {}
        columns = {name.removeprefix("copy_"): made for name, made in self.known.items()}
        return self._perceptual.distances(columns | {"made": images}, "made")

    def _all(self, name: str) -> np.ndarray:
        return np.concatenate([batch[name] for batch in self.batches])
