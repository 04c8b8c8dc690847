# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A user's images: a flat folder, the triplets that are held out, what reads a path, and samples to draw."""

import json
import shutil

import numpy as np
import pytest
import schemas
from schemas import decoded, jpeg, write, zipped

from uso_jax.common.errors import InputError
from uso_jax.data import recognition
from uso_jax.data.config import DataConfig, Folder, Path, Rooted, WebDataset
from uso_jax.data.readers import FileTriplets, get_reader
from uso_jax.data.samples import Samples
from uso_jax.data.sources import open_source


def folder(root, **options):
    return FileTriplets("folder", str(root), get_reader("folder")(root, **options))


def flat(root):
    """Write the triplets of `schemas.plain_folder` into one folder."""
    schemas.plain_folder(root / "parts")
    for file in sorted((root / "parts").rglob("*.*")):
        part = file.parent.name
        suffix = "" if part in ("target", "prompt") else f".{part}"
        write(root / "flat" / f"{file.stem}{suffix}{file.suffix}", file.read_bytes())
    return root / "flat"


def rows(source):
    names = lambda place: place and decoded_name(place)
    return {
        item.key: (item.prompt, names(item.content), [names(one) for one in item.styles], item.layout)
        for item in map(source.item, range(len(source)))
    }


def decoded_name(place):
    return np.asarray(place.decode("")).tobytes()


def test_a_flat_folder_equals_one_of_parts(tmp_path):
    path = flat(tmp_path)
    one, other = folder(tmp_path / "parts"), folder(path)
    assert rows(one) == rows(other) and len(one) >= 3
    assert one.left_out.total() == other.left_out.total()
    packed = zipped(tmp_path / "flat.zip", {file.name: file.read_bytes() for file in path.iterdir()})
    assert rows(folder(packed)) == rows(other)


def test_a_caption_for_all(tmp_path):
    path = flat(tmp_path)
    found = rows(folder(path, caption="in zxq style"))
    assert len(found) == len(folder(path)) + sum(folder(path).left_out.values()) - len(other_parts(path))
    prompts = {key: row[0] for key, row in found.items()}
    assert prompts["c"] == "shows c" and prompts["d"] == "in zxq style"
    assert {row[3] for row in found.values()} == {"shifted"}


def other_parts(path):
    """Return files without a target."""
    targets = {
        file.name.split(".")[0] for file in path.iterdir() if file.name.count(".") == 1 and file.suffix != ".txt"
    }
    return [file for file in path.iterdir() if file.name.split(".")[0] not in targets]


def test_what_is_not_part_of_a_flat_folder_is_named(tmp_path):
    write(tmp_path / "a.jpg", jpeg("a"))
    write(tmp_path / "a.txt", "an a")
    write(tmp_path / "notes.pdf", "x")
    write(tmp_path / "more" / "b.jpg", jpeg("b"))
    source = folder(tmp_path)
    assert len(source) == 1 and sum(source.left_out.values()) == 2
    write(tmp_path / "a.png", jpeg("b"))
    with pytest.raises(InputError, match="two target images 'a'"):
        folder(tmp_path)
    shutil.rmtree(tmp_path / "more")
    write(tmp_path / "content" / "a.jpg", jpeg("b"))
    with pytest.raises(InputError, match="has no target"):
        folder(tmp_path)


def test_held_out_triplets_stay_held_out(tmp_path):
    def split(count):
        items = [{"prompt": f"{n}", "target": "a.jpg", "key": f"key{n}"} for n in range(count)]
        write(tmp_path / "list.json", json.dumps(items))
        data = DataConfig(source="json", json=Rooted(train=Path(str(tmp_path / "list.json"))), heldout_share=0.1)
        parts = [open_source(spec) for spec in (data.train, data.heldout)]
        return [{part.item(index).key for index in range(len(part))} for part in parts]

    train, held = split(40)
    assert len(held) == 4 and not train & held and len(train | held) == 40
    _, more = split(41)
    assert len(more & held) >= 3  # at most one is replaced
    assert [len(part) for part in split(2)] == [1, 1]
    with pytest.raises(InputError, match="one usable triplet"):
        split(1)


def test_a_path_of_its_own_is_not_split():
    files = WebDataset(train=Path("x"), heldout=Path("y"))
    data = DataConfig(source="webdataset", webdataset=files, heldout_share=0.1)
    assert data.heldout["path"] == "y" and "part" not in data.train
    data = DataConfig(source="folder", folder=Folder(train=Path("x"), caption="c"), heldout_share=0.1)
    assert data.heldout == {"name": "folder", "path": "x", "layout": "shifted", "caption": "c"} | {
        "part": "heldout",
        "heldout_share": 0.1,
    }


def test_the_reader_of_a_path(tmp_path):
    assert recognition.recognise(str(flat(tmp_path))) == "folder"
    assert recognition.recognise(str(tmp_path / "parts")) == "folder"
    assert recognition.count("folder", str(tmp_path / "parts")) == 5
    cases = {
        "a.JSON": "json",
        "a.jsonl": "json",
        "a.zip": "folder",
        "shards/a.tar": "webdataset",
        "t/a.parquet": "parquet",
    }
    for name, reader in cases.items():
        write(tmp_path / name, "x")
        assert recognition.recognise(str(tmp_path / name)) == reader
    assert recognition.recognise(str(tmp_path / "shards")) == "webdataset"
    assert recognition.recognise(str(tmp_path / "t")) == "parquet"
    write(tmp_path / "a.docx", "x")
    with pytest.raises(InputError, match=r"a\.docx is no folder"):
        recognition.recognise(str(tmp_path / "a.docx"))
    with pytest.raises(InputError, match="nothing does not exist"):
        recognition.recognise(str(tmp_path / "nothing"))


def test_samples(tmp_path):
    write(tmp_path / "a.jpg", jpeg("a"))
    write(tmp_path / "b.jpg", jpeg("b"))
    items = [{"content": "a.jpg", "styles": ["b.jpg"]}, {"prompt": "x"}, {"image_paths": ["", "b.jpg"]}]
    write(tmp_path / "own.json", json.dumps(items))
    source = Samples(str(tmp_path / "own.json"))
    assert [source[index].task for index in range(3)] == ["style_subject", "text", "style"]
    assert np.array_equal(source[0].content, decoded("a")) and source[0].target.std() == 0
    write(tmp_path / "bad.json", json.dumps([{"prompt": "x", "target": "a.jpg"}]))
    with pytest.raises(InputError, match="unknown keys target"):
        Samples(str(tmp_path / "bad.json"))
    assert (source.sizes()[:, :2] > 4096).all()  # the loader makes the largest square that a stage has
