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
from uso_jax.evaluation.metrics.vlm_answers import SCORE
from uso_jax.evaluation.protocol import MADE, REFERENCES, Attempts, Encoding, JudgeProtocol, Question, Text

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


GIVEN = "The first images are references, the last was made after this instruction: {prompt}\n"
STRICTNESS = (
    " Be strict: give 10 only where nothing is wrong, and let every visible mistake cost points. Answer as "
    'JSON: {"score": <number from 0 to 10>, "reasoning": "<one sentence>"}'
)
INSTRUCTION = {"prompt": "<instruction>"}
FOLLOWING = (
    GIVEN + "How completely does the last image do what the instruction says? Look at actions, relations, "
    "attributes and place; do not judge whether the subjects are the referenced ones." + STRICTNESS
)
SHRUNK = Encoding(most=1024 * 1024, multiple=16)


def question(text: str) -> Question:
    """Return the question that shows a text, then the references and the image."""
    return Question((("user", (text, REFERENCES, MADE)),), SCORE, SCORE)


JUDGE = JudgeProtocol(
    source="omnicontext/omnicontext_score.py, test_omnicontext_score.py, openai_util.py, json_util.py",
    texts={
        "following": Text(FOLLOWING, "following.txt", INSTRUCTION),
        "consistency": Text(
            GIVEN + "Is every subject of the references that the instruction asks for the very same one in the last "
            "image? Compare faces, hair, clothes, shapes, colours, marks and text." + STRICTNESS,
            "consistency.txt",
            INSTRUCTION,
        ),
        "consistency_scene": Text(
            GIVEN + "Are the subjects and the scene of the references the very same ones in the last image? Compare "
            "faces, hair, clothes, shapes, colours, marks, and of the scene its layout and objects." + STRICTNESS,
            "consistency_scene.txt",
            INSTRUCTION,
        ),
    },
    questions={name: question(name) for name in ("following", "consistency", "consistency_scene")},
    figures=lambda item: {"pf": "following", "sc": "consistency_scene" if "scene" in item.subset else "consistency"},
    parameters={"max_tokens": 1400},
    references=SHRUNK,
    official=Attempts(3, stop=False, together=True, guess=True),
)

BENCHMARK = Benchmark(
    name="omnicontext",
    title="OmniContext",
    source="arXiv 2506.18871; github.com/VectorSpaceLab/OmniGen2, omnicontext",
    prepare=prepare,
    metrics=(Metric("judged", "judged", against="content", judge=JUDGE),),
    columns=(
        *(Column(title, ("overall",), (task,), digits=2) for task, title in TASKS.items()),
        Column("Average", combine=tuple(TASKS.values()), digits=2, partial=True),
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
        "With --compat, all three attempts are made and the last readable one counts, a question without one gets a"
        " random number, and the average is over the tasks that have images. Otherwise the first readable attempt"
        " counts, a question without one is a failure, and the average needs all tasks.",
    ),
    options={"num_images": ("1", "images per item; the published results use 3")},
    data="data.jsonl with images, or the parquet files",
)
