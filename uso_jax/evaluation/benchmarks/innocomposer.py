# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""InnoComposer-Bench: advertising posters from a subject, a text and a style.

The benchmark's data and code are unpublished. DATA is a .jsonl file, or a folder with one:

    {"key", "prompt", "subject": path, "style": path or null, "text_lines": ["...", ...], "target": path or null}
"""

import pathlib
from collections.abc import Mapping, Sequence

from uso_jax.common.errors import InputError
from uso_jax.evaluation import records
from uso_jax.evaluation.benchmark import Benchmark, Column, published
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.metrics.base import Metric


def prepare(data: pathlib.Path, options: Mapping[str, str]) -> Sequence[EvalItem]:
    """Return one item per poster."""
    folder, items = data if data.is_dir() else data.parent, []
    for where, record in records.read_records(data, "posters are lines of a .jsonl file, see docs/evaluate.md"):
        lines = record.get("text_lines") or []
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise InputError(f"{where}: text_lines must be a list of strings")
        files = {
            n: records.image_paths([record[n]], folder, where) for n in ("subject", "style", "target") if record.get(n)
        }
        key, prompt = (records.text_field(record, [name], where) for name in ("key", "prompt"))
        items.append(
            EvalItem(
                key, "innocomposer", "poster", prompt,
                files.get("subject", ()), files.get("style", ()), next(iter(files.get("target", ())), None),
                meta={"text_lines": lines},
            )
        )  # fmt: skip
    return items


BENCHMARK = Benchmark(
    name="innocomposer",
    title="InnoComposer-Bench",
    source="arXiv 2603.05898",
    prepare=prepare,
    metrics=(
        Metric("reading", "reading", needs=("text_lines",)),
        Metric("dino", "cosine", "dino", "content"),
        Metric("csd", "cosine", "csd_style", "style"),
        Metric("image_reward", "reward", needs=("prompt",)),
        Metric("fid", "fid", against="target"),
    ),
    columns=(
        Column("Sen. Acc", ("sen_acc",)),
        Column("NED", ("ned",)),
        Column("DINO", ("dino",)),
        Column("CSD", ("csd",)),
        Column("FID", ("fid",), higher_is_better=False, digits=2),
        Column("IR", ("image_reward",)),
    ),
    published=published(
        ("Sen. Acc", "NED", "DINO", "CSD", "FID", "IR"),
        {
            "FLUX.1 Kontext": (None, None, 0.831, 0.573, 76.76, None),
            "PosterMaker": (0.765, 0.848, 0.916, None, 60.55, None),
            "Qwen-Image-Edit": (0.831, 0.960, 0.922, 0.722, 69.86, None),
            "Seedream4": (0.865, 0.972, 0.864, 0.700, 64.21, None),
            "InnoAds-Composer I": (0.857, 0.976, 0.923, 0.729, 54.39, None),
            "InnoAds-Composer II": (0.847, 0.969, 0.914, 0.727, 55.24, None),
            "USO (an aggregator's figure)": (None, None, None, None, None, 0.911),
        },
    ),
    published_source="arXiv 2603.05898; USO's IR has no primary source",
    ours=(
        "Data and code are unpublished; the user supplies the items, and the protocol's details are this project's.",
        "IR-Score is not defined in the paper; IR is assumed to be ImageReward.",
        "The published IoU of subject masks is omitted because its segmentation network is not named.",
    ),
    data="a .jsonl file of posters",
)
