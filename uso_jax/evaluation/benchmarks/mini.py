# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""mini-USO-Bench: drawn subjects and styles with known ground truth, which makes it possible to evaluate metrics.

DATA is a folder for the drawn references; it is created. Subjects and styles are held out. The report shows each
learned metric's rank correlation with the exact scores.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence

from uso_jax.common import atomic_files
from uso_jax.common.errors import InputError
from uso_jax.evaluation.benchmark import Benchmark, Column
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.metrics.base import Metric
from uso_jax.evaluation.metrics.counterfactual import procedural
from uso_jax.images.decode import encode_png

# subset -> (task, share of triplets whose target keeps the content's pose; otherwise the pose is unknown)
SUBSETS = {"subject": ("subject", 1.0), "style": ("style", 0.0), "combined": ("style_subject", 1.0)}
BASELINES = ("target", "copy_content", "copy_style")


def prepare(data: pathlib.Path, options: Mapping[str, str]) -> Sequence[EvalItem]:
    """Draw the references and targets of every task; also link them as the images of three baselines."""
    try:
        count, size, seed = (int(options[name]) for name in ("count", "size", "seed"))
    except ValueError as error:
        raise InputError(f"options count, size and seed of mini must be integers ({error})") from error
    items = []
    for subset, (task, preserved) in SUBSETS.items():
        source = procedural(options["split"], seed, size, task, preserved)
        for index in range(count):
            triplet, key = source[index], f"{subset}/{index:04d}"
            files = {}
            for name, image in (
                ("content", triplet.content), ("style", triplet.styles[0] if triplet.styles else None),
                ("target", triplet.target),
            ):  # fmt: skip
                if image is not None:
                    files[name] = data / subset / f"{index:04d}_{name}.png"
                    files[name].parent.mkdir(parents=True, exist_ok=True)
                    atomic_files.write_file(files[name], encode_png(image))
            only = files.get("content") or files["style"]  # stands in for a missing reference
            for model, name in zip(BASELINES, ("target", "content", "style"), strict=True):
                _link(data / "baselines" / model / f"{key}.png", files.get(name, only))
            drawn = dict(split=options["split"], seed=seed, size=size, task=task, preserved=preserved, index=index)
            meta = {"phrase": triplet.meta["phrase"], "procedural": drawn}
            refs = {f"{name}_refs": (str(files[name]),) for name in ("content", "style") if name in files}
            items.append(
                EvalItem(
                    key, "mini", subset, triplet.prompt, **refs, target=str(files["target"]), seed=3407, width=size,
                    height=size, meta=meta,
                )
            )  # fmt: skip
    return items


def _link(path: pathlib.Path, to: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.link(to, path)


_PAIRED = ("subject", "combined")
BENCHMARK = Benchmark(
    name="mini",
    title="mini-USO-Bench",
    source="this project: uso_jax/data/drawings/source.py",
    prepare=prepare,
    metrics=(
        Metric("truth", "truth", needs=("procedural",)),
        Metric("siglip_i", "cosine", "siglip", "content"),
        Metric("siglip_t", "text", "siglip", needs=("phrase",), options={"words": "phrase"}),
        Metric("csd", "cosine", "csd_style", "style"),
        Metric("csd_content", "cosine", "csd_content", "content"),
        Metric("gram", "gram", against="style"),
        Metric("lpips", "lpips", against="target", options={"network": "vgg16", "enlarge": 64}),
        Metric("clip_i", "cosine", "clip", "content"),
        Metric("dino", "cosine", "dino", "content"),
        Metric("dinov2", "cosine", "dinov2", "content"),
        Metric("clip_t", "text", "clip", needs=("prompt",)),
    ),
    columns=(
        *(
            Column(f"{subset}: {title}", (figure,), (subset,), higher_is_better=better)
            for subset in SUBSETS
            for title, figure, better in (
                ("right subject", "truth_content", True),
                ("right style", "truth_style", True),
                ("squared error", "truth_mse", False),
                ("CSD", "csd", True),
                ("SigLIP-I", "siglip_i", True),
                ("SigLIP-T", "siglip_t", True),
                ("Gram", "gram", False),
                ("LPIPS", "lpips", False),
            )
            if not (subset == "style" and title in ("right subject", "squared error", "SigLIP-I"))
            and not (subset == "subject" and title in ("right style", "CSD", "Gram"))
        ),
        Column("CLIP-I", ("clip_i",), _PAIRED),
        Column("DINO", ("dino",), _PAIRED),
        Column("DINOv2", ("dinov2",), _PAIRED),
        Column("CLIP-T", ("clip_t",)),
    ),
    ours=(
        "The whole benchmark is this project's: exact scores come from the drawing program, not from a network.",
        "The networks of --metric_weights mini also condition and reward mini; VGG-16 is independent of it.",
        "LPIPS enlarges drawings below 64 pixels a side to 64, which the original does not.",
        "Exact scores compare with counterfactuals, or with patches in the style task, where the pose is unknown.",
    ),
    options={
        "count": ("128", "items per task, of three tasks"),
        "size": ("64", "image size in pixels"),
        "seed": ("2025", "seed of the drawings"),
        "split": ("heldout", "split of the procedural source"),
    },
    data="a folder for the drawings",
    draws=True,
    scatter=("combined: right subject", "combined: right style"),
)
