# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Curation of triplets (docs/curation.md): any data of configs/uso.py, and what is done with it.

python scripts/curate.py run --to DIR --config configs/curation.py         drawings and mini's experts
python scripts/curate.py run --to DIR --config configs/curation.py:flux    images, experts and judge of your own
"""

import pathlib
import runpy
import types

from ml_collections import ConfigDict


def get_config(variant: str = "mini") -> ConfigDict:
    """Give the configuration of a variant: mini or flux."""
    variants = {"mini": mini, "flux": flux}
    if variant not in variants:
        raise ValueError(f"unknown variant {variant!r}; known are {', '.join(variants)}")
    config = _uso().get_config({"flux": "flux_dev"}.get(variant, variant))
    with config.unlocked():
        config.variant, config.curation = f"curation_{variant}", ConfigDict(variants[variant]())
    return config


def curation(**changes) -> dict:
    """Give the settings of all steps; weights and the model that judges are for the user to fill in."""
    defaults = dict(
        layouts=("preserved", "shifted"),  # candidates of each image: how its content image is to lie
        limit=0,  # images to take of the source; 0: all
        shard_size=256,  # images a shard, the unit that is done or not
        seed=0,
        captions="record",  # what an image shows: the source's words, "vlm" asks the model, "none"
        caption_question=(
            "Say in one short phrase what this picture shows: its main subject and where it is. Do not mention style,"
            " medium or colours. Answer with the phrase alone."
        ),
        stylize=expert(reference="style", prompts=dict(preserved="{subject}", shifted="{subject}")),
        destylize=expert(
            reference="content",
            prompts=dict(
                preserved="turn it into a realistic photo, {caption}",
                shifted="a realistic photo of {caption}, elsewhere",
            ),
        ),
        score=dict(
            weights="",  # directory that has the networks of these rewards (uso_jax.training.rewards)
            style="csd_style",
            subject="dino_content",
            size=256,  # pixels a side that images are cut to, before each network's own preprocessing
            batch_size=16,
        ),
        vlm=dict(
            model="",  # its name at the endpoint
            base_url="",  # OpenAI-compatible, such as http://localhost:8000/v1; "": answers from the cache alone
            key_env="OPENAI_API_KEY",  # environment variable of the endpoint's key
            threads=8,  # questions at once
            timeout=120.0,  # seconds
            tries=6,  # where it is slow, busy or away
            takes=3,  # answers to hear before nonsense counts as failure
            backoff=1.0,  # seconds before the second try, then doubled
            max_tokens=1400,
            max_pixels=1024 * 1024,
            max_failures=50,  # questions in a row without answer before the step stops
        ),
        keep=dict(  # at least
            style=0.5,
            subject=0.5,
            judge=3.5,  # mean of parts, 0 to 4; negative: without a judge
            duplicates=4,  # bits of 64 that hashes of one image may differ in; -1: not looked for
        ),
    )
    return defaults | changes


def expert(**changes) -> dict:
    """Give the settings of an expert."""
    defaults = dict(
        weights="",  # weights directory of a USO or UNO
        reference="style",  # how it is shown the stylised image: as style or as content image
        prompts=dict(preserved="{caption}", shifted="{caption}"),  # by layout; {caption}, or {subject}: another's
        subjects=(),  # for {subject}; (): captions of other images of the shard
        settings=dict(),  # generation options: width, height, num_steps, guidance, ...
        batch_size=4,
        dtype="",
    )
    return defaults | changes


def flux() -> dict:
    """Give curation with experts of FLUX's size."""
    return curation()


def mini() -> dict:
    """Give curation by mini's experts (configs/mini_experts.py), in minutes on two CPU cores."""
    small = dict(batch_size=16, settings=dict(num_steps=12))
    return curation(
        limit=256,
        shard_size=32,
        stylize=expert(**small, weights="experts/stylize", prompts=dict(preserved="{subject}", shifted="{subject}")),
        destylize=expert(
            **small,
            weights="experts/destylize",
            reference="content",
            prompts=dict(preserved="{caption}", shifted="{caption} in another place"),
        ),
        score=curation()["score"] | dict(weights="mini", subject="siglip_text", size=32),
        keep=dict(style=0.5, subject=0.36, judge=-1.0, duplicates=4),
    )


def _uso() -> types.SimpleNamespace:
    """Load configs/uso.py, which has the sources."""
    return types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).with_name("uso.py"))))
