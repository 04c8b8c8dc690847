# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Synthetic files in every schema that a reader supports: five rows of six images, some malformed."""

import io
import json
import pathlib
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from uso_jax.images import decode

NAMES = ("a", "b", "c", "d", "e", "f")
SIDE = 24


def image(name: str) -> np.ndarray:
    """Return the image of a name: noise, so that any changed pixel is detected."""
    return np.random.default_rng(ord(name)).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)


def jpeg(name: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image(name)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def decoded(name: str) -> np.ndarray:
    return decode.decode_image(jpeg(name), what=name)


def write(path: pathlib.Path, data: bytes | str | list | dict) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        data if isinstance(data, bytes) else (data if isinstance(data, str) else json.dumps(data)).encode()
    )
    return path


def tar(path: pathlib.Path, members: dict[str, bytes]) -> pathlib.Path:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def zipped(path: pathlib.Path, members: dict[str, bytes], method=zipfile.ZIP_DEFLATED) -> pathlib.Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def folder(root: pathlib.Path, part: str, names: str) -> None:
    for name in names:
        write(root / part / f"{name}.jpg", jpeg(name))


def own_json(root, ending="json"):
    folder(root, "images", "abcdef")
    p = lambda name: f"images/{name}.jpg"
    items = [
        {"prompt": "one", "content": p("a"), "styles": [p("b")], "target": p("c")},
        {"content": p("a"), "styles": [p("b")], "target": p("d")},
        {"prompt": "three", "content": None, "styles": [p("b"), p("e")], "target": p("c")},
        {"prompt": "four", "image_paths": ["", p("b")], "image_tgt_path": p("f")},
        {"prompt": "five", "target": p("f"), "key": "five", "meta": {"note": 1}},
    ]
    text = json.dumps(items) if ending == "json" else "\n".join(json.dumps(item) for item in items) + "\n\n"
    return write(root / f"triplets.{ending}", text)


def uno(root):
    folder(root, "images", "abc")
    p = lambda name: f"images/{name}.jpg"
    items = [
        {"prompt": "one", "image_paths": [p("a")], "image_tgt_path": p("c")},
        {"prompt": "two", "image_path": p("b"), "image_tgt_path": p("c")},
        {"prompt": "three", "image_paths": [p("a"), p("b")], "image_tgt_path": p("c")},  # two subjects
        {"prompt": "four", "image_paths": p("a"), "image_tgt_path": p("b")},  # no list
        {"prompt": "five", "image_paths": [], "image_tgt_path": p("b")},
    ]
    return write(root / "uno.json", items)


def uso_eval(root):
    folder(root, "refs", "ab")
    made = root / "made"
    items = [
        {"prompt": "one", "image_paths": ["refs/a.jpg"]},
        {"prompt": "", "image_paths": ["refs/a.jpg", "refs/b.jpg"]},
        {"prompt": "three", "image_paths": ["", "refs/b.jpg"], "save_dir": "third"},
        {"prompt": "four", "image_paths": ["", "refs/a.jpg", "refs/b.jpg"]},
        {"prompt": "five", "image_paths": []},
    ]
    for name, target in zip(("0", "1", "third", "3", "4"), "cdefc", strict=True):
        write(made / f"{name}_0.png", jpeg(target))
    return write(root / "eval.json", items)


def uno_1m(root, packed=False):
    row = lambda a, b, final=4.0, parts=None: {
        "img_path1": f"split1/{a}.jpg",
        "img_path2": f"split1/{b}.jpg",
        "caption": {"img_path1": f"shows {a}", "img_path2": f"shows {b}", "subject": ["thing"], "judgment": "same"},
        "vlm_filter_cot": {"score_part": parts or {"colour": 4.0}, "score_final": final},
    }
    rows = [
        row("a", "b"),
        row("c", "d", 3.0),
        row("e", "f", 131184.66, {"Overall Shape and Form": 4.0, "Record Number": 107739.0, "ID": 285811.0}),
        row("a", "c", 3.5, {"colour": 3.5, "# Output": 8.5}),
        row("b", "c") | {"caption": {"img_path1": "shows b", "img_path2": ""}},
    ]
    write(root / "labels" / "split1.json", rows)
    write(root / "labels" / "split2.json", [row("e", "f", 3.5), row("a", "b", None), row("a", "b", "4"), {}, 7])
    if packed:
        (root / "images").mkdir()
        tar(root / "images" / "split1.tar", {f"split1/{name}.jpg": jpeg(name) for name in "abcdef"})
    else:
        folder(root, "images/split1", "abcdef")
    return root


def two_views(left: str, right: str, margin=8, extra=0) -> bytes:
    """Return two images side by side with margins, encoded losslessly."""
    height, width = SIDE + 2 * margin, 2 * SIDE + 3 * margin + extra
    image = np.full((height, width, 3), 255, np.uint8)
    for number, name in enumerate((left, right)):
        x = margin + number * (SIDE + margin)
        image[margin : margin + SIDE, x : x + SIDE] = decoded(name)
    return decode.encode_png(image)


def subjects200k(root):
    good = dict.fromkeys(("compositeStructure", "objectConsistency", "imageQuality"), 5)
    described = {"item": "thing", "description_0": "left", "description_1": "right", "category": "x"}
    described["description_valid"] = True
    rows = [
        (two_views("a", "b"), good, described),
        (two_views("c", "d", margin=0), good, described),
        (two_views("a", "b"), good | {"imageQuality": 4}, described),
        (two_views("a", "b"), good, described | {"description_valid": False}),
        (two_views("a", "b"), None, described),
    ]
    columns = {
        "image": [{"bytes": data, "path": None} for data, _, _ in rows],
        "collection": ["collection_2"] * 5,
        "quality_assessment": [quality for _, quality, _ in rows],
        "description": [text for _, _, text in rows],
    }
    path = root / "train-00000-of-00032.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def omnistyle(root, packed=False):
    targets = {f"{c}&&{s}.jpg": jpeg(t) for c, s, t in ("abc", "abd"[::-1], "efd")}
    targets |= {
        "a&&missing.jpg": jpeg("a"),
        "single.jpg": jpeg("a"),
        "a.jpg&&b.jpg.jpg": jpeg("f"),
        "&&b.jpg": jpeg("a"),
    }
    if packed:
        tar(root / "content.tar", {f"content/{n}.jpg": jpeg(n) for n in "abcdef"})
        tar(root / "style.tar", {f"style/{n}.jpg": jpeg(n) for n in "abcdef"})
        zipped(root / "OmniStyle-150K.zip", targets)
    else:
        folder(root, "content", "abcdef")
        folder(root, "style", "abcdef")
        for name, data in targets.items():
            write(root / "OmniStyle-150K" / name, data)
    return root


def syncd(root):
    folder(root, "set", "abcdef")
    entry = lambda names, dino, scores=None: {
        "filenames": [f"{name}.jpg" for name in names],
        "prompts": [f"shows {name}" for name in names],
        "dino_scores": dino,
        "aesthetics_scores": scores or dict.fromkeys(names, 6.5),
    }
    entries = [
        entry("abc", [[1, 0.8, 0.3], [0.8, 1, 0.99], [0.3, 0.99, 1]]),
        entry("de", [[1, 0.9], [0.9, 1]], {"d": 7, "e": 4}),
        entry("ab", [[1, 0.9]]),
        entry("ab", [[1, float("nan")], [0.9, 1]]),
        entry("ab", [[1, 0.9], [0.9, 1]]) | {"prompts": ["one"]},
    ]
    write(root / "set" / "metadata.json", [])  # the scored one is read instead
    return write(root / "set" / "metadata_with_scores.json", entries).parent


def stylebooth(root, packed=False):
    lines = [
        "EnStyle,ZhStyle,ShortStyleName,Target:FILE,Source:FILE,SearchResult:DICT",
        "Pixel Art,x,pixel,pixel/c.jpg,plain/a.jpg,{'score': 1, 'more': [2, 3]}",
        "Pixel Art,x,pixel,pixel/d.jpg,plain/b.jpg,{}",
        "Ink,y,ink,ink/e.jpg,plain/a.jpg,",
        "Ink,y",
        "Ink,y,ink,ink/missing.jpg,plain/a.jpg,{}",
    ]
    members = {"data/train.csv": "\n".join(lines).encode()}
    members |= {f"data/{name}.jpg": jpeg(name[-1]) for name in ("pixel/c", "pixel/d", "plain/a", "plain/b", "ink/e")}
    if packed:
        return zipped(root / "stylebooth.zip", members)
    for name, data in members.items():
        write(root / name, data)
    return root / "data"


def webdataset(root):
    members = {}
    for key, (content, style, target) in {"000001": "abc", "000002": "abd"}.items():
        for part, name in (("content", content), ("style", style), ("target", target)):
            members[f"x/{key}.{part}.jpg"] = jpeg(name)
    members |= {"x/000001.txt": b"one\n", "x/000002.json": b'{"caption": "two", "layout": "preserved"}'}
    members |= {"x/000003.target.jpg": jpeg("e"), "x/000003.txt": b"three", "x/000003.style2.jpg": jpeg("b")}
    members |= {"x/000004.content.jpg": jpeg("a"), "x/000005.target.jpg": jpeg("f")}
    tar(root / "shard-0001.tar", members)
    tar(root / "shard-0000.tar", {"000001.target.png": jpeg("f"), "000001.txt": b"zero"})
    return root


def plain_folder(root):
    folder(root, "target", "cdefb")
    for name, source in zip("cde", "aab", strict=True):
        write(root / "content" / f"{name}.png", jpeg(source))
    for name in "cf":
        write(root / "style" / f"{name}.jpg", jpeg("b"))
    write(root / "style_2" / "c.jpg", jpeg("e"))
    for name in "cf":
        write(root / "prompt" / f"{name}.txt", f"shows {name}\n")
    return root


def parquet(root):
    folder(root, "images", "ab")
    table = {
        "prompt": ["one", "", "three", "four", None],
        "target": [{"bytes": jpeg(name), "path": None} for name in "cdefc"],
        "content": ["images/a.jpg", "images/a.jpg", None, None, "images/b.jpg"],
        "style": [jpeg("b"), None, jpeg("b"), None, None],
    }
    path = root / "triplets.parquet"
    pq.write_table(pa.table(table), path, row_group_size=3)
    return path
