# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""VITON-HD outfit generation: a photo of a person from a garment and a prompt, compared with the real photo.

DATA is VITON-HD's folder of one split, such as test, with image/ and cloth/, and optionally prompts.jsonl with one
{"id": "00001_00", "prompt": "..."} per line.
"""

import pathlib
from collections.abc import Mapping, Sequence

from uso_jax.common.errors import InputError
from uso_jax.evaluation import records
from uso_jax.evaluation.benchmark import Benchmark, Column, images, published
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.metrics.base import Metric

TEMPLATE = "A photograph of a model, from the knees up, who wears this garment, in front of a light grey wall."
METRICS = (
    Metric("lpips", "lpips", against="target", options={"network": "alexnet"}),
    Metric("dinov2", "cosine", "dinov2", "target"),
    Metric("clip_t", "text", "clip", needs=("prompt",)),
)
COLUMNS = (
    Column("LPIPS", ("lpips",), higher_is_better=False),
    Column("DINO", ("dinov2",)),
    Column("CLIP-T", ("clip_t",)),
)
OURS = (
    "The LPIPS network is not named; here it is AlexNet, version 0.1, on images resized to the real photo's size.",
    "DINO is the cosine of DINOv2 embeddings.",
    "FFA needs foreground masks and is undefined in public; it is omitted.",
)


def prepare(data: pathlib.Path, options: Mapping[str, str]) -> Sequence[EvalItem]:
    """Return one item per garment, paired with the photo of the same name."""
    prompts, file = {}, data / "prompts.jsonl"
    if file.exists():
        for where, record in records.read_records(file, ""):
            prompts[records.text_field(record, ["id"], where)] = records.text_field(record, ["prompt"], where)
    photos, items = {pathlib.Path(p).stem: p for p in images(data / "image", "photos")}, []
    for cloth in images(data / "cloth", "garments"):
        name = pathlib.Path(cloth).stem
        if name not in photos:
            raise InputError(f"{cloth} has no photo of the same name in {data / 'image'}; add it or remove the garment")
        prompt = prompts.get(name, TEMPLATE)
        items.append(
            EvalItem(name, "viton_hd", "paired", prompt, (cloth,), target=photos[name], width=768, height=1024)
        )
    return items


BENCHMARK = Benchmark(
    name="viton_hd",
    title="VITON-HD outfit generation",
    source="arXiv 2605.10127 (the task); github.com/shadow2496/VITON-HD (the data)",
    prepare=prepare,
    metrics=METRICS,
    columns=COLUMNS,
    published=published(
        ("LPIPS", "DINO"),
        {"UMC zero-shot": (0.515, 0.812), "UMC": (0.476, 0.835), "USO (an aggregator's figure)": (0.585, None)},
    ),
    published_source="arXiv 2605.10127; USO's figure has no primary source",
    ours=("The paper's prompts are unpublished; without prompts.jsonl all items share one prompt.", *OURS),
    data="VITON-HD's test folder, with image and cloth",
)
