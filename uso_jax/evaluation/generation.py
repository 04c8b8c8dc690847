# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Generating a benchmark's images with USO. Images that exist are not generated again."""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence

from uso_jax.common import progress
from uso_jax.evaluation.items import EvalItem
from uso_jax.inference import batch_jobs
from uso_jax.inference.options import GenerationOptions
from uso_jax.inference.pipeline import USOPipeline
from uso_jax.inference.reporter import Reporter


def generate_images(
    items: Sequence[EvalItem],
    folder: pathlib.Path,
    weights: str,
    options: GenerationOptions,
    *,
    batch_size: int = 1,
    verify: bool = False,
    adapters: Sequence[tuple[str, float]] = (),
    projector: str | None = None,
    merge: bool = True,
    quantize_activations: bool = False,
) -> tuple[int, int]:
    """Generate FOLDER/KEY_j.png for every item. Return how many were generated now, and how many existed.

    Args:
      items: of the benchmark; a size of 0 is the weights' default.
      folder: of the images.
      weights: a weights directory, or "mini".
      options: of all images; an item's size and seed come before these.
      batch_size: images at once.
      verify: compare the files of the weights with their SHA-256 first.
      adapters: paths and strengths of adapters, added to the weights.
      projector: style projector in place of the weights' own.
      merge: merge the weights' own adapters, see `USOPipeline.from_weights`.
      quantize_activations: products in 8 bits, see there too.

    Raises:
      InputError: the weights or a reference image cannot be read.
    """
    pipe = USOPipeline.from_weights(
        weights,
        verify=verify,
        adapters=adapters,
        projector=projector,
        merge=merge,
        quantize_activations=quantize_activations,
    )
    made = had = 0
    # The seed and the number of images belong to a job, so each job takes the items that agree in them.
    alike = lambda one: (one.seed is None, one.seed or 0, one.num_images)
    with progress.bar(total=sum(one.num_images for one in items), desc="generating", unit="image") as bar:
        for (without, seed, count), group in itertools.groupby(sorted(items, key=alike), alike):
            job = batch_jobs.Job(
                save_path=folder,
                options=options if without else dataclasses.replace(options, seed=seed),
                num_images_per_prompt=count,
                batch_size=batch_size,
            )
            listed = [_job_item(number, one) for number, one in enumerate(group)]
            with Reporter() as reporter:
                for _, now in job.run(pipe, listed, reporter):
                    reporter.close()
                    made, had = made + now, had + (not now)
                    (bar.update if now else bar.skip)()
    return made, had


def _job_item(number: int, one: EvalItem) -> batch_jobs.Item:
    sizes = {name: value for name in ("width", "height") if (value := getattr(one, name))}
    return batch_jobs.Item(number, one.prompt, one.content_refs, one.style_refs, sizes, one.key)
