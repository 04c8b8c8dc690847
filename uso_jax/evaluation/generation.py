# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Generating a benchmark's images with USO. Images that exist are not generated again."""

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from uso_jax.common import progress
from uso_jax.evaluation.items import EvalItem
from uso_jax.inference import batch_jobs as jobs
from uso_jax.inference.pipeline import USOPipeline


def generate_images(
    items: Sequence[EvalItem], folder: pathlib.Path, weights: str, settings: Mapping[str, Any], *, batch_size: int = 1
) -> tuple[int, int]:
    """Generate FOLDER/KEY_j.png for every item; return the number of new images and of existing ones.

    Args:
      items: a width or height of 0 uses the default of the weights.
      folder: receives the images.
      weights: a weights directory, or "mini".
      settings: arguments of USOPipeline.request shared by all images, such as num_steps.
      batch_size: images per batch.

    Raises:
      InputError: the weights or a reference image cannot be read.
    """
    pipe = USOPipeline.from_weights(weights)
    made = had = 0
    alike = lambda one: (one.seed is None, one.seed or 0, one.num_images)
    with progress.bar(total=sum(one.num_images for one in items), desc="generating", unit="image") as bar:
        for (without, seed, count), group in itertools.groupby(sorted(items, key=alike), alike):
            job = jobs.Job(
                save_path=folder,
                settings={**settings} if without else {**settings, "seed": seed},
                num_images_per_prompt=count,
                batch_size=batch_size,
            )
            listed = [_job_item(number, one) for number, one in enumerate(group)]
            for _, now in job.run(pipe, listed, lambda *_: None):
                made, had = made + now, had + (not now)
                bar.update()
    return made, had


def _job_item(number: int, one: EvalItem) -> jobs.Item:
    arguments = {"prompt": one.prompt, "contents": list(one.content_refs), "styles": list(one.style_refs)}
    sizes = {name: value for name in ("width", "height") if (value := getattr(one, name))}
    return jobs.Item(number, arguments | sizes, one.key)
