# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""SconeEval: composing subjects, and distinguishing requested subjects from others in the references.

DATA is a folder with data.jsonl and images.
"""

import pathlib
from collections.abc import Mapping, Sequence

from uso_jax.common.errors import InputError
from uso_jax.evaluation import records
from uso_jax.evaluation.benchmark import Benchmark, Column, Values, published
from uso_jax.evaluation.benchmarks.omnicontext import (
    FOLLOWING,
    GIVEN,
    INSTRUCTION,
    SHRUNK,
    STRICTNESS,
    overall,
    question,
)
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.metrics.base import Metric
from uso_jax.evaluation.metrics.vlm_answers import DIGIT, YES
from uso_jax.evaluation.protocol import MADE, REFERENCES, Attempts, JudgeProtocol, Question, Text

COMPOSITION = ("composition_single", "composition_multi")
DISTINCTION = tuple(f"distinction_{n}_{kind}" for n in ("single", "multi") for kind in ("cross", "intra"))
_SHORT = {name: name.replace("composition_", "comp. ").replace("distinction_", "dist. ").replace("_", " ") for name in
          (*COMPOSITION, *DISTINCTION)}  # fmt: skip
_COM = {task: f"COM {short}" for task, short in _SHORT.items()}
_DIS = {task: f"DIS {_SHORT[task]}" for task in DISTINCTION}


def prepare(data: pathlib.Path, options: Mapping[str, str]) -> Sequence[EvalItem]:
    """Return all items."""
    folder, items = data if data.is_dir() else data.parent, []
    for where, record in records.read_records(data, "SconeEval is data.jsonl with images"):
        images = records.image_paths(record.get("input_images"), folder, where)
        subjects, labels = record.get("subject_list"), record.get("subject_label")
        if not _nested(subjects, labels, len(images)):
            raise InputError(
                f"{where}: subject_list and subject_label must be lists of lists of equal lengths, one per image"
            )
        task = records.text_field(record, ["task_type"], where)
        if task not in _COM:
            raise InputError(f"{where}: unknown task_type {task!r}; known types: {', '.join(_COM)}")
        items.append(
            EvalItem(
                f"{task}/{records.text_field(record, ['key'], where)}", "sconeeval", task,
                records.text_field(record, ["instruction"], where), images,
                num_images=int(options["num_images"]), seed=1234,
                meta={"case_type": record.get("case_type", ""), "subject_list": subjects, "subject_label": labels},
            )
        )  # fmt: skip
    return items


def _nested(subjects, labels, count: int) -> bool:
    lists = lambda value: isinstance(value, list) and len(value) == count and all(isinstance(x, list) for x in value)
    if not lists(subjects) or not lists(labels):
        return False
    known = all(label in (0, 1) for row in labels for label in row)
    named = all(isinstance(name, str) for row in subjects for name in row)
    return known and named and [len(row) for row in subjects] == [len(row) for row in labels]


def derive(item: EvalItem, values: Values, compat: bool) -> Values:
    """Return "overall" of composition, and "dis" of distinction, the mean of accuracy and F1.

    With --compat, the latter is rounded to thousandths, as in calculate_statistics.py.
    """
    dis = (values["accuracy"] + values["f1"]) / 2 if "f1" in values else None
    return {**overall(item, values, compat), **({} if dis is None else {"dis": round(dis, 3) if compat else dis})}


def with_scene(item: EvalItem) -> bool:
    """Return whether the rubric with the scene applies: the code of a case with a scene has an S."""
    return "scene" in item.subset or "S" in item.meta.get("case_type", "")


_NAMED = "Look only at the subjects that the instruction names, and ignore all others in the references. "
JUDGE = JudgeProtocol(
    source="eval/s2i/sconeeval: bench_score.py, test_score.py, json_util.py, calculate_statistics.py",
    texts={
        "following": Text(FOLLOWING, "following.txt", INSTRUCTION),
        "labelled": Text(
            GIVEN + _NAMED + "Is each of them the very same one in the last image?" + STRICTNESS,
            "consistency.txt",
            INSTRUCTION,
        ),
        "labelled_scene": Text(
            GIVEN
            + _NAMED
            + "Is each of them, and the scene that it names, the very same in the last image?"
            + STRICTNESS,
            "consistency_scene.txt",
            INSTRUCTION,
        ),
        "presence": Text(
            "The first image shows, among others, this subject: {subject}. Does the same subject appear in the second "
            "image? Answer with one word, yes or no.",
            "presence.txt",
            {"subject": "<subject>"},
        ),
    },
    questions={name: question(name) for name in ("following", "labelled", "labelled_scene")}
    | {"presence": Question((("user", ("presence", REFERENCES, MADE)),), YES, DIGIT)},
    figures=lambda item: {"pf": "following", "sc": "labelled_scene" if with_scene(item) else "labelled"},
    parameters={"max_tokens": 1400},
    references=SHRUNK,
    rounds=3,
    official=Attempts(3, together=True),
)


def _published(name: str, com: Sequence[float], dis: Sequence[float], total: Sequence[float]) -> dict[str, Values]:
    columns = (*_COM.values(), *_DIS.values(), "COM", "DIS", "Overall")
    return published(columns, {name: (*com, *dis, *total)})


BENCHMARK = Benchmark(
    name="sconeeval",
    title="SconeEval",
    source="arXiv 2512.12675; github.com/Ryann-Ran/Scone",
    prepare=prepare,
    metrics=(
        Metric("judged", "judged", against="content", judge=JUDGE),
        Metric("distinction", "presence", against="content", subsets=DISTINCTION, judge=JUDGE),
    ),
    columns=(
        *(Column(title, ("overall",), (task,), digits=2) for task, title in _COM.items()),
        *(Column(title, ("dis",), (task,), digits=2) for task, title in _DIS.items()),
        Column("COM", combine=tuple(_COM.values()), digits=2),
        Column("DIS", combine=tuple(_DIS.values()), digits=2),
        Column("Overall", combine=("COM", "DIS"), digits=2),
    ),
    derive=derive,
    published=_published("USO", (8.03, 5.19, 7.96, 7.14, 5.10, 5.07), (8.50, 6.51, 6.25, 5.57), (6.41, 6.71, 6.56))
    | published(("Overall",), {"UNO": (6.62,), "OmniGen2": (7.60,), "Scone": (8.50,)})
    | published((_COM["composition_single"],), {"GPT-4o": (8.92,), "Qwen-Image-Edit-2509": (8.54,), "BAGEL": (7.14,)}),
    published_source="arXiv 2512.12675, judge gpt-4.1, three images per item, each scored three times",
    ours=(
        "The judge prompts are this project's wording of the rubric unless --judge_prompts replaces them.",
        "The published code asks all questions of an image again if one reply cannot be read; here it asks both scores"
        " again, or all questions of presence. With --compat, and in both cases it gives up after three attempts.",
    ),
    options={"num_images": ("3", "images per item")},
    data="data.jsonl with images",
)
