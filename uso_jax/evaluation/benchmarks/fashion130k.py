# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Fashion130K outfit generation: the protocol of VITON-HD on unpublished data.

DATA is a .jsonl file, or a folder with one: {"key", "prompt", "garment": path, "target": path}
"""

import pathlib
from collections.abc import Mapping, Sequence

from uso_jax.evaluation import records
from uso_jax.evaluation.benchmark import Benchmark, published
from uso_jax.evaluation.benchmarks.viton_hd import COLUMNS, METRICS, OURS
from uso_jax.evaluation.items import EvalItem


def prepare(data: pathlib.Path, options: Mapping[str, str]) -> Sequence[EvalItem]:
    """Return one item per pair of garment and photo."""
    folder, items = data if data.is_dir() else data.parent, []
    for where, record in records.read_records(data, "pairs are lines of a .jsonl file, see docs/evaluate.md"):
        named = [records.text_field(record, [name], where) for name in ("garment", "target")]
        garment, target = records.image_paths(named, folder, where)
        key, prompt = records.text_field(record, ["key"], where), records.text_field(record, ["prompt"], where)
        items.append(EvalItem(key, "fashion130k", "test", prompt, (garment,), target=target, width=768, height=1024))
    return items


BENCHMARK = Benchmark(
    name="fashion130k",
    title="Fashion130K outfit generation",
    source="arXiv 2605.10127",
    prepare=prepare,
    metrics=METRICS,
    columns=COLUMNS,
    published=published(
        ("LPIPS", "DINO", "CLIP-T"),
        {
            "DreamO": (0.657, 0.628, 0.332),
            "FLUX.1 Kontext": (0.646, 0.620, 0.326),
            "Qwen-Image-Edit": (0.634, 0.673, 0.326),
            "Any2AnyTryon": (0.658, 0.551, 0.331),
            "UMC": (0.623, 0.677, 0.332),
            "USO (an aggregator's figure)": (0.656, None, None),
        },
    ),
    published_source="arXiv 2605.10127; USO's figure has no primary source",
    ours=("Data and file format are unpublished; the user supplies the items.", *OURS),
    data="a .jsonl file of pairs",
)
