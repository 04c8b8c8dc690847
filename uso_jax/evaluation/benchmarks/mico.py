# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""MICo-Bench: many references composed into one image, scored by Weighted-Ref-VIEScore.

DATA is a folder with mico_bench_{object_centric,human_centric,hoi,dere}.jsonl and their images.
"""

import pathlib
from collections.abc import Mapping, Sequence

from uso_jax.common.errors import InputError
from uso_jax.evaluation import records
from uso_jax.evaluation.benchmark import Benchmark, Column, Values, published
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.metrics.base import Metric
from uso_jax.evaluation.metrics.vlm_answers import PAIR, YES
from uso_jax.evaluation.protocol import MADE, REFERENCES, Attempts, Encoding, JudgeProtocol, Question, Text

TASKS = {"object_centric": "Object", "human_centric": "Human", "hoi": "HOI", "dere": "De&Re"}


def prepare(data: pathlib.Path, options: Mapping[str, str]) -> Sequence[EvalItem]:
    """Return the items of the four tasks."""
    items = []
    for task in TASKS:
        path = data / f"mico_bench_{task}.jsonl"
        for where, record in records.read_records(path, "MICo-Bench is four .jsonl files with images"):
            humans = record.get("human_indices") or []
            if not isinstance(humans, list) or not all(isinstance(number, int) for number in humans):
                raise InputError(f"{where}: human_indices must be a list of integers")
            reference = record.get("reference")
            reference = reference[0] if isinstance(reference, list) and reference else reference
            items.append(
                EvalItem(
                    f"{task}/{records.text_field(record, ['idx', 'ed_idx'], where)}", "mico", task,
                    records.text_field(record, ["refined_prompt", "prompt"], where),
                    records.image_paths(record.get("input"), data, where),
                    target=records.image_paths([reference], data, where)[0], meta={"human_indices": humans},
                )
            )  # fmt: skip
    return items


def derive(item: EvalItem, values: Values, compat: bool) -> Values:
    """Return the product of weight, sc and pq, from 0 to 100; with --compat a missing weight counts as 1."""
    weight = values.get("weight", 1.0 if compat else None)
    if weight is None or not {"sc", "pq"} <= values.keys():
        return {}
    return {"score": weight * values["sc"] * values["pq"]}


_PAIR = " Answer with a list of the two numbers only: [first, second]"
_FILE = Encoding(as_file=True)
JUDGE = JudgeProtocol(
    source="MICo-Bench: eval_score.py, compute_weights.py",
    texts={
        "quality": Text(
            "Give two numbers from 0 to 10 for this image: how natural it looks (light, distances, proportions), and "
            "how free it is of artefacts (distortions, blurs, wrong limbs, seams)." + _PAIR,
            "quality.txt",
        ),
        "semantics": Text(
            "The first image is a reference composition, the second was made after this instruction: {prompt}\n"
            "Give two numbers from 0 to 10: how well the second image follows the instruction, and how much its "
            "subjects resemble those of the first." + _PAIR,
            "semantics.txt",
            {"prompt": "{prompt}"},
        ),
        "source": Text(
            "Does what the first image shows appear in the second image, recognisable as the same? Answer with one "
            "word, yes or no.",
            "source.txt",
        ),
    },
    questions={
        "quality": Question((("user", ("quality", MADE)),), PAIR, PAIR),
        "semantics": Question((("user", ("semantics", REFERENCES, MADE)),), PAIR, PAIR),
        "source": Question((("user", (REFERENCES, MADE, "source")),), YES, YES, {"max_tokens": 16}),
    },
    figures=lambda item: {"pq": "quality", "sc": "semantics"},
    parameters={"temperature": 0.0},  # the presence question is decoded greedily
    references=_FILE,
    made=_FILE,
    official=Attempts(1),
)

BENCHMARK = Benchmark(
    name="mico",
    title="MICo-Bench",
    source="arXiv 2512.07348; github.com/A113N-W3I/MICo-150K, MICo-Bench",
    prepare=prepare,
    metrics=(
        Metric("viescore", "judged", against="target", judge=JUDGE),
        Metric("weight", "identity_weight", against="content", judge=JUDGE),
    ),
    columns=(
        *(Column(title, ("score",), (task,), digits=2) for task, title in TASKS.items()),
        Column("Overall", ("score",), digits=2),
        Column("weight", ("weight",)),
        Column("SC", ("sc",), digits=2),
        Column("PQ", ("pq",), digits=2),
    ),
    derive=derive,
    published=published(
        (*TASKS.values(), "Overall"),
        {
            "Gemini-3-Pro": (50.59, 54.75, 50.21, 52.13, 51.76),
            "GPT-Image-1.5": (56.66, 46.16, 52.35, 48.46, 50.60),
            "Gemini-2.5-Flash": (48.01, 41.79, 49.64, 49.44, 47.83),
            "Qwen-Image-MICo": (52.38, 21.11, 34.95, 37.42, 35.86),
            "BAGEL-MICo": (38.98, 28.45, 25.30, 44.51, 34.41),
            "OmniGen2": (44.24, 21.96, 27.44, 36.35, 31.42),
            "Qwen-Image-Edit-2509": (39.77, 20.23, 19.95, 29.92, 27.47),
            "USO (an aggregator's figure)": (38.18, None, None, None, None),
        },
    ),
    published_source="the repository's leaderboard, judge GPT-5.4; USO's figure has no primary source",
    ours=(
        "One judge answers all questions; the published script uses another model for presence.",
        "The judge prompts are this project's wording of the rubric unless --judge_prompts replaces them.",
        "--faces must hold embeddings named arcface, to which the thresholds of the weights belong.",
        "With --compat, nothing is asked again: a case whose scores cannot be read is omitted, an unclear answer about"
        " a source is no, numbers beyond 10 count, and a missing weight is 1 (of all cases, if there are no --faces)."
        " Otherwise each of them is a failure after three attempts.",
    ),
    data="the four mico_bench_*.jsonl files with their images",
)
