# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Every file of JSON that a program reads: a small valid one, and the call that reads it; and damages of JSON."""

import dataclasses
import io
import json
import pathlib
import tarfile
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.numpy
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from convert import recognition
from convert.files.tensors import open_files
from uso_jax.commands import compare
from uso_jax.common import untrusted
from uso_jax.curation import selection
from uso_jax.curation.config import KeepConfig
from uso_jax.curation.store import Folder
from uso_jax.data import features, rollout_store
from uso_jax.data.readers import FileTriplets, get_reader
from uso_jax.evaluation import items, records
from uso_jax.evaluation.metrics.ocr import Reader
from uso_jax.evaluation.report.html import read_summaries
from uso_jax.evaluation.score_log import ScoreLog
from uso_jax.images import files
from uso_jax.inference import batch_jobs, styles
from uso_jax.preferences.scorer import Scorer
from uso_jax.preferences.verdicts import Verdicts
from uso_jax.vlm.client import Vlm
from uso_jax.vlm.judges import CachedJudge
from uso_jax.weights.pretrained import Defaults


@dataclasses.dataclass(frozen=True)
class Case:
    """A file, its values (one per line if `lines`), and what reads it from a folder."""

    file: str
    values: Any
    read: Callable[[pathlib.Path], Any]
    lines: bool = False
    wrap: Callable[[bytes], bytes] = lambda data: data  # the JSON inside another format

    @property
    def valid(self) -> bytes:
        rows = self.values if self.lines else [self.values]
        return "".join(json.dumps(row) + "\n" for row in rows).encode()

    def run(self, folder: pathlib.Path, data: bytes) -> Any:
        """Write the file and read it."""
        path = folder / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.wrap(data))
        return self.read(folder)


def _triplets(name: str, file: str) -> Callable[[pathlib.Path], Any]:
    def read(folder):
        source = FileTriplets(name, str(folder / file), get_reader(name)(path=str(folder / file)))
        return [source.item(index) for index in range(len(source))]

    return read


def _curation(folder: pathlib.Path) -> Any:
    rows = {
        "captions/00000.jsonl": {
            "number": 0,
            "index": 0,
            "layout": "shifted",
            "key": "a",
            "hash": "0" * 64,
            "caption": "a",
        },
        "score/00000.jsonl": {"number": 0, "style": 0.5, "subject": 0.5},
        "judge/00000.jsonl": {"number": 0, "judge": 4.0, "parts": {"ear": 4}},
        "manifest.json": {"source": {}, "examples": 1, "layouts": ["shifted"], "shard_size": 1},
    }
    for name, row in rows.items():
        if not (path := folder / name).exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(row))
    decisions = selection.decide(Folder(folder), KeepConfig(style=0.1, subject=0.1, judge=0.1, duplicates=-1))
    return [decision.record() for decision in decisions]


def _style(data: bytes) -> bytes:
    text = data.decode("utf-8", "surrogateescape").encode("utf-8", "replace").decode()
    metadata = {"format": styles.FORMAT, "tower": "t", "images": text}
    return safetensors.numpy.save({"features": np.zeros((1, 3, 4, 2), np.float32)}, metadata)


def _image(data: bytes) -> bytes:
    import io

    info, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_itxt(files.KEY, data.decode("utf-8", "replace"))
    Image.new("RGB", (2, 2)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _summary(folder: pathlib.Path) -> Any:
    (folder / "m" / "items.csv").write_text("key,number,subset,clip\na,0,s,0.5\n")
    return read_summaries(folder, None)


def _roll_outs(folder: pathlib.Path) -> Any:
    with tarfile.open(folder / "s" / "00000.tar", "w") as archive:
        for name in ("0.png", "1.png"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return rollout_store.groups(folder)


def _header(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data + bytes(8)


ITEM = {
    "key": "a",
    "benchmark": "mini",
    "prompt": "a cat",
    "content_refs": ["a.png"],
    "num_images": 2,
    "meta": {"x": 1},
}
LINE = {"key": "a", "number": 0, "metric": "m", "of": "0", "values": {"m": 0.5}}
SUMMARY = {
    "benchmark": "mini", "model": "m", "mode": "strict", "date": "2026-01-01", "complete": True, "images": "x",
    "pictures": {"requested": 1}, "table": {"A": {"value": 0.5, "low": 0.1, "high": 0.9, "n": 1}},
    "metrics": {"m": {"requested": 1}}, "problems": [{"key": "a", "number": 0, "metric": "", "reason": "r"}],
    "skipped": [], "extra": ["b.png"], "judge": None,
}  # fmt: skip
RUN = {
    "evaluation": {"after": {"acc": 0.5}, "before": {"acc": 0.1}},
    "stages": [{"name": "s", "reward": [{"step": 1}]}],
}
UNO = {"img_path1": "a.png", "img_path2": "b.png", "caption": {"img_path1": "x", "img_path2": "y", "subject": ["z"]}}
UNO |= {"vlm_filter_cot": {"score_part": {"colour": 4.0}, "score_final": 4.0}}
SYNCD = {"filenames": ["a.png", "b.png"], "prompts": ["x", "y"], "dino_scores": [[1, 0.5], [0.5, 1]]}
SYNCD |= {"aesthetics_scores": {"a": 6.0, "b": 6.0}}
KEPT = {"of": "0", "reply": "4", "judge": "j", "date": "2026-01-01"}
FEATURES = {"format": 1, "fingerprint": {"t5": "0"}, "shards": 1, "num_styles": 1, "downscale": 8}

KEYS = {"left": "s/0/0/a", "right": "s/0/1/b"}
SCORER = {"rewards": {"csd_style": 1}, "weights": [0.5, 1, -1.0], "offset": 0.1, "networks": {"csd": "0"}}
SCORER |= {"pairs": [30, 8], "accuracy": 0.75, "format": "uso_jax preference 1"}
ROLL_OUT = {"number": 0, "source": 0, "index": 3, "image": "ab", "scores": {"a": 0.5}, "advantage": 0.1}
ROLL_OUT |= {"request": 0, "prompt": "a cat"}

CASES = {
    "choices of people": Case(
        "preferences.jsonl",
        [{"id": "1", "better": "left"} | KEYS, {"undo": "1"}],
        lambda f: Verdicts(f).read(),
        lines=True,
    ),
    "scorer of preferences": Case("s.json", SCORER, lambda f: Scorer.read(f / "s.json")),
    "rows of roll-outs": Case("s/00000.jsonl", [ROLL_OUT, ROLL_OUT | {"number": 1}], _roll_outs, lines=True),
    "items of an evaluation": Case("items.jsonl", [ITEM], lambda f: items.read_items(f, "mini"), lines=True),
    "scores": Case("s.jsonl", [LINE, LINE | {"number": 1}], lambda f: ScoreLog(f / "s.jsonl"), lines=True),
    "summary of an evaluation": Case("m/summary.json", SUMMARY, _summary),
    "summary of a run": Case("r/summary.json", RUN, lambda f: compare.main([f"a={f}/r"])),
    "data of a benchmark": Case("d.json", [{"a": 1}], lambda f: list(records.read_records(f / "d.json", "see docs"))),
    "texts": Case("t.json", {"0": ["a line"]}, lambda f: Reader.read(f / "t.json")),
    "judge": Case("j.jsonl", [KEPT], lambda f: CachedJudge(f / "j.jsonl", None), lines=True),
    "answers": Case(
        "c.jsonl", [{"key": "0", "answer": "a"}], lambda f: Vlm("m", "http://x", cache=f / "c.jsonl"), lines=True
    ),
    "manifest of a curation": Case(
        "manifest.json", {"source": {}, "examples": 1, "layouts": ["shifted"], "shard_size": 1}, _curation
    ),
    "captions": Case(
        "captions/00000.jsonl",
        [
            {
                "number": 0,
                "index": 0,
                "layout": "shifted",
                "key": "a",
                "hash": "0" * 64,
                "caption": "a",
                "place": ["a.png"],
            }
        ],
        _curation,
        lines=True,
    ),
    "scores of a curation": Case(
        "score/00000.jsonl", [{"number": 0, "style": 0.5, "subject": 1}], _curation, lines=True
    ),
    "judge of a curation": Case(
        "judge/00000.jsonl", [{"number": 0, "judge": 4.0, "parts": {"ear": 4}}], _curation, lines=True
    ),
    "features": Case("manifest.json", FEATURES, features.read_manifest),
    "shard of features": Case(
        "00000.json", {"shapes": [[8, 8, 0, 0]], "left_out": {"1": "r"}}, lambda f: features.left_out(f, 0)
    ),
    "items to generate": Case(
        "e.json", [{"prompt": "a", "save_dir": "x", "seed": 3}], lambda f: batch_jobs.read_items(f / "e.json")
    ),
    "an example of upstream": Case(
        "config.json", {"prompt": "a", "seed": 3}, lambda f: batch_jobs.read_items(f / "config.json")
    ),
    "style": Case(
        "s.safetensors",
        [{"path": "a.png", "sha256": "0"}],
        lambda f: styles.read_style(f / "s.safetensors"),
        wrap=_style,
    ),
    "record of an image": Case(
        "i.png", {"format": 1, "request": {}}, lambda f: files.read_record(f / "i.png"), wrap=_image
    ),
    "pipeline": Case("pipeline.json", {"width": 64, "guidance": 4.0}, Defaults.read),
    "sizes for an import": Case("c.json", {"flux": {"depth": 2}}, lambda f: recognition.read_config(f / "c.json")),
    "index of shards": Case(
        "w.index.json", {"weight_map": {"a": "b.safetensors"}}, lambda f: open_files([f / "w.index.json"])
    ),
    "safetensors": Case(
        "w.safetensors",
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
        lambda f: open_files([f / "w.safetensors"]),
        wrap=_header,
    ),
    "triplets": Case(
        "t.json",
        [{"prompt": "a", "content": "a.png", "target": "b.png", "meta": {"x": 1}}],
        _triplets("json", "t.json"),
    ),
    "uno": Case(
        "t.json", [{"prompt": "a", "image_paths": ["a.png"], "image_tgt_path": "b.png"}], _triplets("uno", "t.json")
    ),
    "uso_eval": Case(
        "t.json", [{"prompt": "a", "image_paths": ["a.png"], "save_dir": "b"}], _triplets("uso_eval", "t.json")
    ),
    "uno_1m": Case("labels/s.json", [UNO], _triplets("uno_1m", "labels/s.json")),
    "syncd": Case("m.json", [SYNCD], _triplets("syncd", "m.json")),
    "any": Case("x.json", {"a": [1, "b"]}, lambda f: untrusted.json(f / "x.json")),
}

WHOLE = (
    b"", b"\n", b"{}", b"[]", b"null", b"true", b"0", b'"a"', b"[[]]", b"[{}]", b"[null]", b"{}\n{}", b"[" * 100_000,
    b'{"a":' * 100_000, b"\0" * 4096, b"\xef\xbb\xbf", b"\xff\xfe{\0}\0", b"NaN", b"[1e999]", b"9" * 5000, b"{'a': 1}",
    b'{"a": "\\ud83d"}', b'{"a": "\\u0000"}', b'{"a": 1, "a": 1}', b"\r\n{}\r\n", "é".encode("latin-1"),
)  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, 0, -1, 2**63, 2**64, 10**400, 1e308, -0.5, "", "x", "../x", "/etc/passwd", "\ud83d", "a\0b", "\u2028",
    "C:\\x", [], [None], [[]], {}, {"": 0}, [1] * 9,
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, case: Case) -> bytes:
    """Draw a damaged version of a case's file: bytes of power cuts and editors, or a value of another kind."""
    valid = case.valid
    at = draw(st.integers(0, len(valid)))
    kind = draw(st.sampled_from(("whole", "cut", "hole", "latin-1", "twice", "byte", "odd", "odd", "odd", "gone")))
    if kind == "whole":
        return draw(st.sampled_from(WHOLE))
    if kind == "cut":
        return valid[:at]
    if kind == "hole":
        return valid[:at] + bytes(draw(st.sampled_from((1, 64)))) + valid[at:]
    if kind == "latin-1":
        return valid[:at] + b"\xe9" + valid[at:]
    if kind == "twice":
        return valid + valid
    if kind == "byte":
        return valid[:at] + draw(st.binary(min_size=1, max_size=1)) + valid[at + 1 :]
    values = json.loads(valid) if not case.lines else [json.loads(line) for line in valid.splitlines()]
    places = list(_places(values))
    holder, key = draw(st.sampled_from(places))
    if kind == "gone":
        del holder[key]
    else:
        holder[key] = draw(st.sampled_from(ODD))
    rows = values if case.lines else [values]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _places(value: Any):
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from _places(inner)
