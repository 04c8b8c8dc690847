# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The table that a training of mini ends with: whether the style arrives and the content stays.

Judged on triplets that have a content image and a style image, and whose layout is preserved, so that the exact judge
of `factors` applies; `judge_*` are a classifier's opinion (uso_jax.models.judge), `text_score` is the mean cosine of a
picture and the words for its subject in SigLIP, `csd` that of the style vectors of picture and style image.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8
from PIL import Image

from uso_jax import grid, rewards, sharding
from uso_jax.config import TrainConfig
from uso_jax.data.pipeline import batches, open_source
from uso_jax.evaluation.factors import Counterfactuals
from uso_jax.heldout import pipeline_options
from uso_jax.objectives import flow_matching
from uso_jax.params import Params
from uso_jax.system import System, to_float

LEARNED = {"csd": "csd_style", "text_score": "siglip_text"}  # figure -> reward
JUDGES = {*rewards.components(LEARNED.values()), "judge"}  # the weights components that are read
TASK = dict(tasks=dict(style_subject=1.0), preserved=1.0, style_words=0.0)


class Evaluation:
    """Held-out triplets of the procedural source, and the figures of pictures made for them."""

    def __init__(self, config: TrainConfig, system: System, mesh: Mesh):
        self.settings, self.system, self.mesh = config.evaluation, system, mesh
        size, self.stage = self.settings.batch_size, config.stages[-1]
        self.stage = dataclasses.replace(
            self.stage, conditions=("content", "style"), target_aspects=(), content_aspects=()
        )
        source = open_source(dict(config.data.heldout) | {"split": self.settings.split}, TASK)
        # Reading in order, so that the triplets with their truth and the batches are the same examples.
        stream = batches(
            source, batch_size=size, seed=0, shuffle=False, repeat=False, **pipeline_options(config, self.stage)
        )
        self.batches = [batch for _, batch in zip(range(self.settings.num_triplets // size), stream, strict=False)]
        self.triplets = [source[number] for number in range(len(self.batches) * size)]
        self.judge = Counterfactuals(source, self.triplets)
        # What the classifier can know: labels that the source gives, of classes that training has.
        unseen = {
            "heldout": {"subject_label"},
            "heldout_subjects": {"subject_label"},
            "heldout_families": {"style_label"},
        }
        known = {name for name in ("subject_label", "style_label") if all((b[name] >= 0).all() for b in self.batches)}
        self.classes = known - unseen.get(self.settings.split, set())
        self._sample = jax.jit(self._sample_of, out_shardings=sharding.replicated(mesh))
        self._learned = jax.jit(self._learned_of, out_shardings=sharding.replicated(mesh))

    def sample(self, params: Params) -> UInt8[np.ndarray, "n h w 3"]:
        """Let the model make a picture for every triplet, from the same noise every time."""
        made = [np.asarray(self._sample(params, sharding.global_batch(self.mesh, batch))) for batch in self.batches]
        return np.concatenate(made)

    def baselines(self, params: Params) -> dict[str, dict[str, float]]:
        """Give the figures of the true targets, and of handing back either reference unchanged."""
        return {
            "target": self.figures(params, self._all("target")),
            "copy_content": self.figures(params, self._all("content")),
            "copy_style": self.figures(params, self._all("style")[:, 0]),
        }

    def figures(self, params: Params, images: UInt8[np.ndarray, "n h w 3"]) -> dict[str, float]:
        """Judge any pictures, one a triplet."""
        learned = []
        for number, batch in enumerate(self.batches):
            size = len(batch["target"])
            part = slice(number * size, (number + 1) * size)
            phrases = [self.system.config.text.tokenize(t.meta["phrase"])["t5_ids"] for t in self.triplets[part]]
            learned.append(jax.device_get(self._learned(params, images[part], batch | {"t5_ids": np.stack(phrases)})))
        figures = {name: float(np.mean([part[name] for part in learned])) for name in learned[0]}
        return self.judge.score(images) | figures

    def sheet(
        self, before: UInt8[np.ndarray, "n h w 3"], after: UInt8[np.ndarray, "n h w 3"], rows: int
    ) -> Image.Image:
        """Lay references, the model's pictures before and after training, and targets side by side."""
        columns = {"content": self._all("content"), "style": self._all("style")[:, 0], "before": before, "after": after}
        return grid.draw({name: images[:rows] for name, images in (columns | {"target": self._all("target")}).items()})

    def _all(self, name: str) -> np.ndarray:
        return np.concatenate([batch[name] for batch in self.batches])

    def _sample_of(self, params: Params, batch):
        return flow_matching.sample(params, self.system, self.stage, batch, self.settings)

    def _learned_of(self, params: Params, pictures, batch) -> dict[str, jax.Array]:
        system, images = self.system, to_float(pictures)
        has = set(system.structures)
        names = {figure: reward for figure, reward in LEARNED.items() if rewards.components([reward]) <= has}
        scores = rewards.score(system, params, images, rewards.describe(system, params, names.values(), batch))
        figures = {figure: jnp.mean(scores[reward]) for figure, reward in names.items()}
        if "judge" in has:
            logits = system.module(params, "judge")(images)
            for name, label, values in zip(("content", "style"), ("subject_label", "style_label"), logits, strict=True):
                if label in self.classes:
                    figures[f"judge_{name}_accuracy"] = jnp.mean(jnp.argmax(values, -1) == batch[label])
        return figures
