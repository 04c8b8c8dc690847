# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""DreamBench++: 150 references of animals, people, objects and styles with nine prompts each.

DATA is the data set's folder: images/<kind>/NN.jpg and captions/<kind>/NN.txt, whose first line is the subject.
"""

import pathlib
from collections.abc import Mapping, Sequence

from uso_jax.evaluation.benchmark import Benchmark, Column, Values, images, text_lines
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.metrics.base import Metric

KINDS = ("animal", "human", "object", "style")


def prepare(data: pathlib.Path, options: Mapping[str, str]) -> Sequence[EvalItem]:
    """Return the items of the four kinds; references of kind style are style images."""
    items = []
    for kind in KINDS:
        for path in images(data / "images" / kind, f"references of kind {kind}"):
            name = pathlib.Path(path).stem
            subject, *prompts = text_lines(data / "captions" / kind / f"{name}.txt", "a subject and prompts")
            refs = {"style_refs" if kind == "style" else "content_refs": (path,)}
            for number, prompt in enumerate(prompts):
                key = f"{kind}/{name}_{number}"
                items.append(EvalItem(key, "dreambenchpp", kind, prompt, **refs, meta={"subject": subject}))
    return items


def derive(item: EvalItem, values: Values, compat: bool) -> Values:
    """Return the product of both scores."""
    return {"cp_pf": values["cp"] * values["pf"]} if {"cp", "pf"} <= values.keys() else {}


BENCHMARK = Benchmark(
    name="dreambenchpp",
    title="DreamBench++",
    source="arXiv 2406.16855; github.com/yuangpeng/dreambench_plus",
    prepare=prepare,
    metrics=(
        Metric("scales", "scales", against="all"),
        Metric("clip_i", "cosine", "clip", "all"),
        Metric("dino", "cosine", "dino", "all"),
        Metric("clip_t", "text", "clip", needs=("prompt",)),
    ),
    columns=(
        *(Column(f"CP {kind}", ("cp",), (kind,)) for kind in KINDS),
        Column("CP", ("cp",)),
        Column("PF", ("pf",)),
        Column("CP x PF", ("cp_pf",)),
        Column("CLIP-I", ("clip_i",)),
        Column("DINO", ("dino",)),
        Column("CLIP-T", ("clip_t",)),
    ),
    derive=derive,
    ours=(
        "The judge prompts are this project's; CP x PF is the mean of products. USO has no published results.",
        "The published DINO is ViT-S/8; here it is the network in --metric_weights.",
    ),
    data="folders images and captions, each with animal, human, object and style",
)
