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
from uso_jax.evaluation.benchmarks.omnicontext import overall
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.metrics.base import Metric

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
    """Return "overall" of composition, and "dis" of distinction, the mean of accuracy and F1."""
    dis = {"dis": (values["accuracy"] + values["f1"]) / 2} if "f1" in values else {}
    return {**overall(item, values, compat), **dis}


def _published(name: str, com: Sequence[float], dis: Sequence[float], total: Sequence[float]) -> dict[str, Values]:
    columns = (*_COM.values(), *_DIS.values(), "COM", "DIS", "Overall")
    return published(columns, {name: (*com, *dis, *total)})


BENCHMARK = Benchmark(
    name="sconeeval",
    title="SconeEval",
    source="arXiv 2512.12675; github.com/Ryann-Ran/Scone",
    prepare=prepare,
    metrics=(
        Metric("judged", "instruction", against="content", options={"labelled": True, "rounds": 3}),
        Metric("distinction", "presence", against="content", subsets=DISTINCTION, options={"rounds": 3}),
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
    ours=("The judge prompts are this project's wording of the rubric unless --judge_prompts replaces them.",),
    options={"num_images": ("3", "images per item")},
    data="data.jsonl with images",
)
