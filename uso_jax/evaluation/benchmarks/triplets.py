# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Custom triplets in named styles (21 in the ranking that lists USO): content, style, ground-truth target.

DATA is a folder <style>/<id>/{content,style,target}.png with an optional prompt.txt, or a .jsonl file:

    {"key", "style_name", "content": path, "style": path, "target": path, "prompt": "..."}
"""

import pathlib
from collections.abc import Mapping, Sequence

from uso_jax.common import folders, untrusted
from uso_jax.common.errors import InputError
from uso_jax.evaluation import records
from uso_jax.evaluation.benchmark import Benchmark, Column, published
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.metrics.base import Metric


def prepare(data: pathlib.Path, options: Mapping[str, str]) -> Sequence[EvalItem]:
    """Return one item per triplet."""
    if data.is_file() or any(path.suffix.lower() == ".jsonl" for path in data.glob("*")):
        return [_record(where, record, data) for where, record in records.read_records(data, "see docs/evaluate.md")]
    items = []
    members: dict[pathlib.Path, dict[str, str]] = {}
    for name, path in folders.files(data) if data.is_dir() else ():
        if name.count("/") == 2:
            images = members.setdefault(pathlib.Path(path).parent, {})
            if folders.is_image(name):
                images[pathlib.Path(name).stem] = path
    for folder, files in sorted(members.items()):
        if missing := [name for name in ("content", "style", "target") if name not in files]:
            raise InputError(f"{folder} has no {missing[0]} image; a triplet needs content, style and target")
        words = folder / "prompt.txt"
        prompt = untrusted.text(words).strip() if words.is_file() else ""
        style = folder.parent.name
        items.append(_item(f"{style}/{folder.name}", style, prompt, files["content"], files["style"], files["target"]))
    if not items:
        raise InputError(f"{data} has no folders STYLE/ID; see docs/evaluate.md")
    return items


def _record(where: str, record: Mapping, data: pathlib.Path) -> EvalItem:
    folder = data if data.is_dir() else data.parent
    named = [records.text_field(record, [name], where) for name in ("content", "style", "target")]
    style, key = records.text_field(record, ["style_name"], where), records.text_field(record, ["key"], where)
    return _item(key, style, record.get("prompt") or "", *records.image_paths(named, folder, where))


def _item(key: str, style_name: str, prompt: str, content: str, style: str, target: str) -> EvalItem:
    return EvalItem(key, "triplets", style_name, prompt, (content,), (style,), target)


BENCHMARK = Benchmark(
    name="triplets",
    title="Custom triplets by style",
    source="none: the ranking names no primary source",
    prepare=prepare,
    metrics=(
        Metric("clip", "cosine", "clip", "target"),
        Metric("csd", "cosine", "csd_style", "style"),
        Metric("dino", "cosine", "dino", "content"),
        Metric("lpips", "lpips", against="target", options={"network": "alexnet"}),
        Metric("clip_t", "text", "clip", needs=("prompt",)),
    ),
    columns=(
        Column("CLIP score", ("clip",), scale=100.0, digits=2),
        Column("CLIP score by style", ("clip",), by="subset", scale=100.0, digits=2),
        Column("CSD", ("csd",)),
        Column("DINO to content", ("dino",)),
        Column("LPIPS", ("lpips",), higher_is_better=False),
        Column("CLIP-T", ("clip_t",)),
    ),
    published=published(("CLIP score",), {"USO (an aggregator's figure)": (69.39,)}),
    published_source="an aggregator; there is no primary source",
    ours=(
        "The whole protocol is this project's. CLIP score is 100 times the CLIP ViT-B/32 cosine of image and target.",
    ),
    data="folders STYLE/ID with content, style and target",
)
