# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""MultiID-Bench: people in new images; by default the one-person subset, for which USO has published results.

DATA is a folder with the parquet file of WithAnyone/MultiID-Bench, or with p1.json, p2.json, p3.json and their images,
as the official hf2bench.py writes them: a list names files relative to p1/untar, p2/untar or p3.
"""

import math
import pathlib
from collections.abc import Mapping, Sequence

from uso_jax.common.errors import InputError
from uso_jax.evaluation import records
from uso_jax.evaluation.benchmark import Benchmark, Column, Values, published
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.metrics.base import Metric

SUBSETS = ("p1", "p2", "p3")
NETWORKS = ("arcface", "facenet", "adaface")
_FOLDERS = {"p1": "p1/untar", "p2": "p2/untar", "p3": "p3"}  # of hf2bench.py's images


def prepare(data: pathlib.Path, options: Mapping[str, str]) -> Sequence[EvalItem]:
    """Return the items of the chosen subsets."""
    wanted = options["subsets"].split(",")
    if unknown := set(wanted) - set(SUBSETS):
        raise InputError(f"option subsets: unknown subset {min(unknown)!r}; known subsets: {', '.join(SUBSETS)}")
    folder, items, counts = data if data.is_dir() else data.parent, [], dict.fromkeys(SUBSETS, 0)
    for where, record in records.read_records(data, "MultiID-Bench is parquet, or p1.json to p3.json"):
        # The JSON lists have other field names, and the file name is the subset.
        subset = record.get("subset") or pathlib.Path(where.split(" item ")[0]).stem
        if subset not in wanted:
            continue
        counts[subset] += 1
        number = counts[subset] - 1
        target = records.text_field(record, ["GT", "ori_img_path"], where)
        shown = record.get("input_images", record.get("image_paths"))
        own = folder / _FOLDERS[subset]
        files = records.image_paths([target, *shown] if isinstance(shown, list) else shown, folder, where, own)
        name = record.get("ID") or record.get("name")
        name = name if name and not isinstance(name, list) else f"{number:04d}"  # in p3, the names of the people
        items.append(
            EvalItem(
                f"{subset}/{name}", "multiid", subset, records.text_field(record, ["prompt"], where), files[1:],
                target=files[0], width=0, height=0,
            )
        )  # fmt: skip
    if not items:
        raise InputError(f"{data} has no items of subset {', '.join(wanted)}; see docs/evaluate.md")
    return items


def derive(item: EvalItem, values: Values, compat: bool) -> Values:
    """With --compat, drop an image whose faces no network can compare with the references, as the official code."""
    lost = compat and not any(name.startswith("sim_ref_") for name in values)
    return dict.fromkeys(values, math.nan) if lost else {}


def _pooled(name: str) -> tuple[str, ...]:
    return tuple(f"{name}_{network}" for network in NETWORKS)


_COLUMNS = ("Sim(GT)", "Sim(Ref)", "Copy-Paste", "CLIP-I", "CLIP-T")
BENCHMARK = Benchmark(
    name="multiid",
    title="MultiID-Bench",
    source="arXiv 2510.14975; github.com/Doby-Xu/WithAnyone, MultiID-Bench",
    prepare=prepare,
    metrics=(
        Metric("faces", "faces", against="content", options={"networks": NETWORKS}),
        Metric("clip_i", "cosine", "clip", "target"),
        Metric("clip_t", "text", "clip", needs=("prompt",)),
    ),
    columns=(
        Column("Sim(GT)", _pooled("sim_gt"), ("p1",), iqr=True),
        Column("Sim(Ref)", _pooled("sim_ref"), ("p1",), iqr=True),
        Column("Copy-Paste", _pooled("copy_paste"), ("p1",), higher_is_better=False, iqr=True),
        Column("CLIP-I", ("clip_i",), ("p1",), iqr=True),
        Column("CLIP-T", ("clip_t",), ("p1",), iqr=True),
        *(Column(f"Sim(GT) {p}", _pooled("sim_gt"), (p,), iqr=True) for p in SUBSETS[1:]),
        *(Column(f"Sim(Ref) {p}", _pooled("sim_ref"), (p,), iqr=True) for p in SUBSETS[1:]),
        *(Column(f"Blending {p}", _pooled("blending"), (p,), higher_is_better=False, iqr=True) for p in SUBSETS[1:]),
    ),
    derive=derive,
    published=published(
        _COLUMNS,
        {
            "copying the reference": (0.521, None, 0.999, None, None),
            "DreamO": (0.454, 0.694, 0.303, 0.793, 0.322),
            "OmniGen": (0.398, 0.602, 0.248, None, None),
            "OmniGen2": (0.365, 0.475, 0.142, None, None),
            "FLUX.1 Kontext": (0.324, 0.408, 0.099, None, None),
            "Qwen-Image-Edit": (0.324, 0.409, 0.093, None, None),
            "GPT-4o": (0.425, 0.579, 0.178, None, None),
            "UNO": (0.304, 0.428, 0.141, 0.765, 0.314),
            "USO": (0.401, 0.635, 0.286, 0.790, 0.329),
            "UMO": (0.458, 0.732, 0.359, None, None),
            "PuLID": (0.452, 0.705, 0.315, None, None),
            "InstantID": (0.464, 0.734, 0.337, None, None),
            "InfU": (0.439, 0.630, 0.233, None, None),
            "WithAnyone": (0.460, 0.578, 0.144, None, None),
        },
    ),
    published_source="arXiv 2510.14975, one person",
    ours=(
        "CLIP is ViT-B/16; --metric_weights must contain that network.",
        "Copy-Paste and blending are means over the people in an image; Copy-Paste needs as many faces in the image as"
        " in the target and as references. The aesthetic score is omitted.",
        "By default all values count. With --compat, values beyond 1.5 interquartile ranges are dropped, and so are all"
        " values of an image whose faces no network can compare with the references, as in the published script.",
    ),
    options={"subsets": ("p1", "comma-separated subsets: p1, p2, p3")},
    data="the parquet file, or p1.json to p3.json with images",
)
