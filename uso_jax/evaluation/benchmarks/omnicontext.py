# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""OmniContext: eight tasks with reference characters, objects and scenes, judged by a vision-language model.

DATA is a folder with data.jsonl and images (the JSONL mirror), or with the parquet files of OmniGen2/OmniContext.
"""

import pathlib
from collections.abc import Mapping, Sequence

from uso_jax.evaluation import records
from uso_jax.evaluation.benchmark import Benchmark, Column, Values, published
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.metrics.base import Metric

TASKS = {
    "single_character": "Single Char", "single_object": "Single Obj", "multi_character": "Multi Char",
    "multi_object": "Multi Obj", "multi_character_object": "Multi C+O", "scene_character": "Scene Char",
    "scene_object": "Scene Obj", "scene_character_object": "Scene C+O",
}  # fmt: skip


def prepare(data: pathlib.Path, options: Mapping[str, str]) -> Sequence[EvalItem]:
    """Return the English items."""
    folder, items = data if data.is_dir() else data.parent, []
    for where, record in records.read_records(data, "OmniContext is data.jsonl with images, or parquet"):
        if record.get("instruction_language", "en") in ("en", "english", "English"):
            task = records.text_field(record, ["task_type"], where)
            items.append(
                EvalItem(
                    f"{task}/{records.text_field(record, ['key'], where)}", "omnicontext", task,
                    records.text_field(record, ["instruction"], where),
                    records.image_paths(record.get("input_images"), folder, where),
                    num_images=int(options["num_images"]), seed=0,
                )
            )  # fmt: skip
    return items


def overall(item: EvalItem, values: Values, compat: bool) -> Values:
    """Return the geometric mean of both scores."""
    return {"overall": (values["pf"] * values["sc"]) ** 0.5} if {"pf", "sc"} <= values.keys() else {}


BENCHMARK = Benchmark(
    name="omnicontext",
    title="OmniContext",
    source="arXiv 2506.18871; github.com/VectorSpaceLab/OmniGen2, omnicontext",
    prepare=prepare,
    metrics=(Metric("judged", "instruction", against="content", options={"random_on_failure": True}),),
    columns=(
        *(Column(title, ("overall",), (task,), digits=2) for task, title in TASKS.items()),
        Column("Average", combine=tuple(TASKS.values()), digits=2),
        Column("PF", ("pf",), by="subset", digits=2),
        Column("SC", ("sc",), by="subset", digits=2),
    ),
    derive=overall,
    published=published(
        (*TASKS.values(), "Average"),
        {
            "UNO": (7.15, 6.72, 3.56, 6.46, 4.90, 2.72, 4.89, 4.76, 5.14),
            "USO": (8.03, 7.55, 3.32, 6.10, 4.56, 2.77, 5.38, 5.09, 5.35),
            "OmniGen2": (8.17, 7.63, 7.26, 7.03, 7.56, 7.02, 6.90, 6.64, 7.28),
            **{
                name: (*[None] * 8, value)
                for name, value in {
                    "BAGEL": 6.03,
                    "Qwen-Image-Edit-2509": 7.60,
                    "Echo-4o": 7.95,
                    "Scone": 8.01,
                    "Gemini-2.5-Flash-Image": 8.07,
                    "GPT-4o": 8.78,
                }.items()
            },
        },
    ),
    published_source="arXiv 2512.12675 (Scone), judge gpt-4.1, three images per item, each scored three times",
    ours=(
        "The judge prompts are this project's wording of the rubric unless --judge_prompts replaces them.",
        "With another judge, USO's single-character score is 6.70 instead of 8.03; compare scores of one judge only.",
        "--compat repeats the published script: the last of three rounds counts, and an answer that cannot be parsed"
        " becomes a random number.",
    ),
    options={"num_images": ("1", "images per item; the published results use 3")},
    data="data.jsonl with images, or the parquet files",
)
