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

from uso_jax import preprocess, sharding
from uso_jax.config import TrainConfig
from uso_jax.data.pipeline import batches, open_source
from uso_jax.data.procedural import SUBJECTS
from uso_jax.evaluation.factors import Counterfactuals
from uso_jax.heldout import pipeline_options
from uso_jax.models.clip import unit
from uso_jax.objectives import flow_matching
from uso_jax.params import Params
from uso_jax.system import System, to_float

TASK = dict(tasks=dict(style_subject=1.0), preserved=1.0, style_words=0.0)


class Evaluation:
    """Held-out triplets of the procedural source, and the figures of pictures made for them."""

    def __init__(self, config: TrainConfig, system: System, mesh: Mesh):
        self.settings, self.system, self.mesh = config.evaluation, system, mesh
        size, self.stage = self.settings.batch_size, config.stages[-1]
        self.stage = dataclasses.replace(self.stage, conditions=("content", "style"))
        source = open_source(dict(config.data.heldout) | {"split": self.settings.split}, TASK)
        # Reading in order, so that the triplets with their truth and the batches are the same examples.
        stream = batches(
            source, batch_size=size, seed=0, shuffle=False, repeat=False, **pipeline_options(config, self.stage)
        )
        self.batches = [batch for _, batch in zip(range(self.settings.num_triplets // size), stream, strict=False)]
        self.triplets = [source[number] for number in range(len(self.batches) * size)]
        self.judge = Counterfactuals(source, self.triplets)
        self._sample = jax.jit(self._sample_of, out_shardings=sharding.replicated(mesh))
        self._learned = jax.jit(self._learned_of, out_shardings=sharding.replicated(mesh))

    def model(self, params: Params) -> dict[str, float]:
        """Give the figures of what the model makes."""
        made = [np.asarray(self._sample(params, sharding.global_batch(self.mesh, batch))) for batch in self.batches]
        return self.pictures(params, np.concatenate(made))

    def baselines(self, params: Params) -> dict[str, dict[str, float]]:
        """Give the figures of the true targets, and of handing back either reference unchanged."""
        stack = lambda name: np.concatenate([batch[name] for batch in self.batches])
        return {
            "target": self.pictures(params, stack("target")),
            "copy_content": self.pictures(params, stack("content")),
            "copy_style": self.pictures(params, stack("style")[:, 0]),
        }

    def pictures(self, params: Params, images: np.ndarray) -> dict[str, float]:
        """Give the figures of any pictures, one a triplet."""
        learned = []
        for number, batch in enumerate(self.batches):
            size = len(batch["target"])
            part = slice(number * size, (number + 1) * size)
            phrases = [
                self.system.config.text.tokenize(SUBJECTS[t.meta["subject"]].phrase) for t in self.triplets[part]
            ]
            arrays = {
                "images": images[part],
                "style": batch["style"][:, 0],
                "ids": np.stack([p["t5_ids"] for p in phrases]),
            }
            arrays |= {name: batch[name] for name in ("subject_label", "style_label")}
            learned.append(jax.device_get(self._learned(params, arrays)))
        figures = {name: float(np.mean([part[name] for part in learned])) for name in learned[0]}
        return self.judge.score(images) | figures

    def _sample_of(self, params: Params, batch):
        return flow_matching.sample(params, self.system, self.stage, batch, self.settings)

    def _learned_of(self, params: Params, arrays) -> dict[str, jax.Array]:
        system, images = self.system, to_float(arrays["images"])
        figures = {}
        if "siglip_text" in system.structures:
            seen = unit(system.module(params, "siglip")(images).pooler_output)
            said = unit(system.module(params, "siglip_text")(arrays["ids"]))
            figures["text_score"] = jnp.mean(jnp.sum(seen * said, axis=-1))
        if "judge" in system.structures:
            subject, style = system.module(params, "judge")(images)
            figures["judge_content_accuracy"] = jnp.mean(jnp.argmax(subject, -1) == arrays["subject_label"])
            figures["judge_style_accuracy"] = jnp.mean(jnp.argmax(style, -1) == arrays["style_label"])
        if "csd" in system.structures:
            encoder = system.module(params, "csd")
            size = encoder.config.image_size
            ready = dataclasses.replace(preprocess.CSD, size=size, short_side=size).device
            vectors = [encoder(ready(x)).style for x in (images, to_float(arrays["style"]))]
            figures["csd"] = jnp.mean(jnp.sum(vectors[0] * vectors[1], axis=-1))
        return figures
