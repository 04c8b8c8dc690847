# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The readers that `fuzz.py` tries, as a table: valid files to damage, and the function that reads one.

To add a reader, add a line to TARGETS: `name: Target(samples, read)`.
"""

import gzip
import io
import json
import pathlib
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import emoji_files
import encoded_images
import numpy as np
import safetensors.numpy
import schemas
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]
Path = pathlib.Path


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
      samples: writes valid files or folders into an empty folder.
      read: reads a damaged copy of one of them; it may raise InputError only.
    """

    samples: Callable[[Path], Any]
    read: Callable[[Path], Any]


# -------------------------------------------------------------------------------------------------------- samples


def _images(folder: Path) -> None:
    for kind in encoded_images.KINDS:
        (folder / kind).write_bytes(encoded_images.sample(kind))
    grey = encoded_images.chunk(b"tRNS", b"\1\2")
    (folder / "hidden").write_bytes(encoded_images.png(16, 0, [bytes(range(16))] * 8, 8, grey))
    image, buffer = Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)), io.BytesIO()
    image.save(buffer, "TIFF", compression="tiff_lzw")
    (folder / "lzw").write_bytes(buffer.getvalue())
    image.save(folder / "progressive", "JPEG", progressive=True)
    image.convert("P").save(folder / "animated", "GIF", save_all=True, append_images=[image.convert("P")])


def _json(folder: Path) -> None:
    items = [
        {"prompt": "a fox", "image_paths": [], "seed": 3},
        {"prompt": "ein Fuchs \U0001f98a", "width": 48},
    ]
    (folder / "list").write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")
    (folder / "objects").write_text("\n".join(map(json.dumps, items)), encoding="utf-8")
    (folder / "marked").write_text("\ufeff" + json.dumps(items, indent=1), encoding="utf-8")


def _jobs(folder: Path) -> None:
    _json(folder)
    for other in ("objects", "marked"):
        (folder / other).unlink()


def _records(folder: Path) -> None:
    from uso_jax.images import files

    record = {"format": 1, "request": {"prompt": "a fox", "contents": [], "styles": [], "seed": 3}}
    files.write_image(folder / "image.png", Image.new("RGB", (8, 8)), record)
    (folder / "image.json").unlink()


def _styles(folder: Path) -> None:
    from uso_jax.inference import styles

    images = ({"name": "a.png", "sha256": "0" * 64},)
    styles.write_style(
        folder / "ink.safetensors", styles.StyleEmbedding(np.zeros((1, 3, 4, 8), np.float32), "x", images)
    )
    for left in folder.glob(".*"):
        left.unlink()


def _archives(folder: Path) -> None:
    png = encoded_images.sample("PNG")
    members = {"a.target.png": png, "a.content.jpg": encoded_images.sample("JPEG"), "a.txt": b"a fox", "a.json": b"{}"}
    with tarfile.open(folder / "set.tar", "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with zipfile.ZipFile(folder / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def _tables(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    png = {"bytes": encoded_images.sample("PNG"), "path": "a.png"}
    pq.write_table(pa.table({"target": [png] * 3, "prompt": ["a fox"] * 3}), folder / "set.parquet")


def _checkpoints(folder: Path) -> None:
    tensors = {f"double_blocks.{i}.processor.qkv_lora1.down.weight": np.ones((4, 8), np.float32) for i in range(3)}
    safetensors.numpy.save_file(tensors, folder / "lora.safetensors", {"format": "pt"})


def _weights(folder: Path) -> None:
    for name in ("csd", "judge"):
        shutil.copytree(ROOT / "uso_jax/mini/weights" / name, folder / f"w-{name}" / name)


def _icons(folder: Path) -> None:
    emoji_files.write_tarball(folder, "noto")
    raw = gzip.decompress((folder / "iconify-json-noto-1.2.3.tgz").read_bytes())
    (folder / "plain.tar").write_bytes(raw)  # which is packed again after it was damaged


# -------------------------------------------------------------------------------------------------------- readers


def _read_image(path: Path) -> None:
    from uso_jax.common.errors import InputError
    from uso_jax.images import decode, opening

    try:
        size = opening.image_size(path, what="image x", limits=opening.UPLOADS)
    except InputError:
        size = None
    for mode in ("upstream", "displayed"):
        pixels, _ = decode.read_image(path, what="image x", limits=opening.UPLOADS, mode=mode)
    assert size is None or pixels.shape[:2] == size, f"the header says {size}, the pixels {pixels.shape}"


def _read_json(path: Path) -> None:
    from uso_jax.common import untrusted

    untrusted.json_items(path)


def _read_jobs(path: Path) -> None:
    from uso_jax.inference import batch_jobs

    batch_jobs.read_items(str(path))


def _read_lines(path: Path) -> None:
    from uso_jax.common import untrusted

    list(untrusted.json_lines(path))


def _read_record(path: Path) -> None:
    from uso_jax.images import files
    from uso_jax.inference import records

    records.from_record(files.read_record(path), path.parent)


def _read_style(path: Path) -> None:
    from uso_jax.inference import styles

    styles.read_style(path.rename(path.with_suffix(".safetensors")))


def _read_triplets(name: str, ending: str) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        from uso_jax.data.sources import open_source

        source = open_source({"name": name, "path": str(path.rename(path.with_suffix(ending)))})
        source.sizes()
        for index in range(min(len(source), 4)):
            source[index]

    return read


def _read_members(path: Path) -> None:
    from uso_jax.data.storage import archives

    for place in archives.list_members(str(path.rename(path.with_suffix(".zip")))).values():
        place.read()


def _read_checkpoint(path: Path) -> None:
    from convert.files import tensors

    for file in tensors.open_files([path.rename(path.with_suffix(".safetensors"))]):
        repr(file)


def _read_weights(path: Path) -> None:
    from uso_jax import weights

    for component in weights.components(path):
        weights.config(path, component)
        weights.load(path, component, weights.shapes(path, component))


def _read_icons(path: Path) -> None:
    from uso_jax.data.emoji import iconify

    data = path.read_bytes()
    if data[:2] != b"\x1f\x8b":
        path.write_bytes(gzip.compress(data, 1))
    icons = iconify.read_icon_set(path, "noto")
    for name in sorted(icons.names())[:2]:
        icons.render(name, 16)


TARGETS: dict[str, Target] = {
    "images": Target(_images, _read_image),
    "json": Target(_json, _read_json),
    "json lines": Target(_json, _read_lines),
    "batch jobs": Target(_jobs, _read_jobs),
    "records": Target(_records, _read_record),
    "style files": Target(_styles, _read_style),
    "tar": Target(_archives, _read_triplets("webdataset", ".tar")),
    "zip": Target(_archives, _read_members),
    "parquet": Target(_tables, _read_triplets("parquet", ".parquet")),
    "subjects200k": Target(schemas.subjects200k, _read_triplets("subjects200k", ".parquet")),
    "checkpoints": Target(_checkpoints, _read_checkpoint),
    "weights": Target(_weights, _read_weights),
    "icon sets": Target(_icons, _read_icons),
}
