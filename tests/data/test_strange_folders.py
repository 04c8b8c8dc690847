# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Folders and archives as users have them: files of desktops, other endings, text of Windows, names of any bytes."""

import json
import logging
import os
import pathlib

import numpy as np
import pytest
import schemas
from PIL import Image
from reader_cases import CASES, read
from schemas import jpeg, tar, write, zipped

from uso_jax.common.errors import BadExample, InputError
from uso_jax.data.sources import open_source
from uso_jax.data.tfds.writer import prepare

CLUTTER = (".DS_Store", "._{}", "desktop.ini", "Thumbs.db", "__MACOSX/._{}", "{}~", ".{}.swp")


def litter(folder: pathlib.Path, ending: str) -> None:
    """Leave files of desktops and editors in a folder and all below."""
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for name in CLUTTER:
            write(place / name.format(f"x.{ending}"), b"no data")


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("uso_eval", "json", "uno")])
def test_files_of_desktops_are_left_out_of_every_reader(name, tmp_path):
    writer, options, wanted, left_out = CASES[name]
    path = writer(tmp_path)
    endings = {"parquet": "parquet", "subjects200k": "parquet", "webdataset": "tar", "uno_1m": "json", "syncd": "json"}
    litter(tmp_path, endings.get(name, "png"))
    source = read(name, path, **options)
    assert len(source) == len(wanted) and sorted(source.left_out.values()) == sorted(left_out.values())


@pytest.mark.parametrize("pack", [tar, zipped])
def test_files_of_desktops_are_left_out_of_archives(tmp_path, pack):
    ending = "tar" if pack is tar else "zip"
    for part in ("target", "content"):
        clutter = {name.format("x.jpg"): b"no data" for name in CLUTTER}
        pack(tmp_path / f"{part}.{ending}", {"sub/x.jpg": jpeg("a")} | clutter)
    pack(tmp_path / f"prompt.{ending}", {"x.txt": b"a cat", "__MACOSX/._x.txt": b"no data", "desktop.ini": b""})
    source = read("folder", tmp_path)
    assert len(source) == 1 and source[0].prompt == "a cat" and source[0].content is not None and not source.left_out


def test_clutter_in_a_webdataset(tmp_path):
    members = {"a.target.jpg": jpeg("a"), "a.txt": b"a cat", "._a.target.jpg": b"x", "__MACOSX/._a.txt": b"x"}
    source = read("webdataset", tar(tmp_path / "s.tar", members))
    assert len(source) == 1 and not source.left_out


def saved(path: pathlib.Path, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(schemas.image("a")).save(path, kind)


def test_every_ending_that_decodes_is_accepted(tmp_path):
    kinds = {"avif": "AVIF", "jfif": "JPEG", "gif": "GIF", "JPE": "JPEG", "Tiff": "TIFF", "webp": "WEBP", "bmp": "BMP"}
    for ending, kind in kinds.items():
        for part in ("target", "style"):
            saved(tmp_path / part / f"{ending}.{ending}", kind)
        write(tmp_path / "prompt" / f"{ending}.TXT", b"a cat")
    source = read("folder", tmp_path)
    assert len(source) == len(kinds) and not source.left_out
    assert {source[index].task for index in range(len(source))} == {"style"}
    members = {path.name.replace(".", ".target.", 1): path.read_bytes() for path in (tmp_path / "target").iterdir()}
    texts = {f"{ending}.txt": b"a cat" for ending in kinds}
    assert len(read("webdataset", tar(tmp_path / "all.tar", members | texts))) == len(kinds)


def test_every_unused_file_is_counted_and_named(tmp_path, caplog):
    for name in ("x", "y", "z"):
        write(tmp_path / "target" / f"{name}.jpg", jpeg("a"))
        write(tmp_path / "prompt" / f"{name}.txt", b"a cat")
    write(tmp_path / "style" / "x.jpg", jpeg("b"))
    write(tmp_path / "style" / "y.psd", b"8BPS")
    write(tmp_path / "style" / "w.jpg", jpeg("b"))
    for number in range(5):
        write(tmp_path / "target" / f"notes{number}.txt", b"x")
    with caplog.at_level(logging.WARNING):
        source = read("folder", tmp_path)
    assert source.left_out == {"not an image": 6, "no target of its name": 1}
    said = caplog.text
    assert "notes0.txt" in said and "6 skipped" in said and ", ...)" in said and "style/w" in said
    assert "2 of 3 triplets have no style: y, z" in said


def test_unused_members_and_files_are_counted(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    members = {"a.target.jpg": jpeg("a"), "a.txt": b"a cat", "a.depth.png": b"x", "a.cls": b"1"}
    tar(shards / "0.TAR", members)
    write(shards / "readme.md", b"x")
    source = read("webdataset", shards)
    assert sorted(source.left_out.values()) == [1, 2] and len(source) == 1
    (tmp_path / "p").mkdir()
    schemas.parquet(tmp_path / "p")
    write(tmp_path / "p" / "readme.md", b"x")
    assert "not a .parquet file" in read("parquet", tmp_path / "p").left_out


@pytest.mark.parametrize("reader", ["folder", "webdataset"])
def test_text_of_windows(tmp_path, reader):
    def source(text: bytes):
        if reader == "webdataset":
            return read("webdataset", tar(tmp_path / "s.tar", {"a.target.jpg": jpeg("a"), "a.txt": text}))
        write(tmp_path / "target" / "a.jpg", jpeg("a"))
        write(tmp_path / "prompt" / "a.txt", text)
        return read("folder", tmp_path)

    assert source(b"\xef\xbb\xbfa cat\r\non a mat\r\n")[0].prompt == "a cat\non a mat"
    assert source("a\u2028cat".encode())[0].prompt == "a\u2028cat"
    with pytest.raises(InputError, match=r"a\.txt is not UTF-8 text \(byte 0x92 in line 1\); save it as UTF-8"):
        source("a cat\u2019s".encode("cp1252"))


@pytest.mark.parametrize("ending", ["json", "JSONL", "jsonl", "JSON", "txt"])
@pytest.mark.parametrize("form", ["list", "lines"])
@pytest.mark.parametrize("name", ["json", "uno", "uso_eval"])
def test_a_list_and_lines_under_any_name(tmp_path, ending, form, name):
    write(tmp_path / "images" / "a.jpg", jpeg("a"))
    prompt = "a\u2028cat\u0085"
    item = {"json": {"target": "images\\a.jpg"}, "uso_eval": {"image_paths": [".\\images\\a.jpg"]}}.get(
        name, {"image_tgt_path": "images\\a.jpg", "image_path": "images/a.jpg"}
    )
    rows = [json.dumps({"prompt": prompt, **item}, ensure_ascii=False)] * 2
    text = f"[{','.join(rows)}]" if form == "list" else "\r\n".join(rows) + "\r\n"
    path = write(tmp_path / f"triplets.{ending}", "\ufeff" + text)
    source = read(name, path)
    assert len(source) == 2 and source[1].prompt == prompt


def test_absolute_paths_of_windows_are_one_sentence(tmp_path):
    for target in ("C:\\a.jpg", "\\\\server\\a.jpg", "..\\a.jpg", "a\\..\\..\\b.jpg"):
        path = write(tmp_path / "t.json", [{"prompt": "x", "target": target}])
        with pytest.raises(InputError, match=r"t\.json, item 0 names .* outside its folder"):
            read("json", path)


def test_the_config_of_an_example_of_upstream(tmp_path):
    for name in ("ref1", "ref2", "ref3"):
        write(tmp_path / f"{name}.jpg", jpeg("a"))
    config = {"prompt": "x", "image_ref1": "ref1.jpg", "image_ref3": "ref3.jpg", "seed": 3407, "useage": "a case"}
    (triplet,) = (read("uso_eval", write(tmp_path / "config.json", json.dumps(config, indent=1)))[0],)
    assert triplet.content is not None and len(triplet.styles) == 1
    config = {"prompt": "x", "image_ref2": "ref2.jpg", "seed": 3407}
    triplet = read("uso_eval", write(tmp_path / "config.json", config))[0]
    assert triplet.content is None and len(triplet.styles) == 1


def test_names_of_any_bytes_work_from_folder_to_data_set(tmp_path):
    raw = tmp_path / "raw"
    for part in ("target", "content"):
        path = raw / part / os.fsdecode(b"caf\xe9.jpg")
        write(path, jpeg("a"))
    source = read("folder", raw)
    assert source.item(0).key == r"caf\xe9" and np.array_equal(source[0].target, schemas.decoded("a"))
    assert source.sizes().tolist() == [[24, 24, 24, 24]]
    kept = open_source({"name": "triplets", "path": str(prepare({"train": source}, tmp_path / "data", "bytes"))})
    assert kept[0].key.endswith(r"caf\xe9") and np.array_equal(kept[0].target, source[0].target)
    (raw / "target" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"broken")
    with pytest.raises(BadExample, match=r"caf\\xe9\.jpg"):
        read("folder", raw)[0]


@pytest.mark.parametrize("name", ["folder", "webdataset", "parquet", "stylebooth", "omnistyle", "syncd"])
@pytest.mark.parametrize("kind", ["fifo", "link"])
def test_fifos_and_links_that_lead_out_are_refused(tmp_path, name, kind):
    root = tmp_path / "root"
    root.mkdir()
    path = pathlib.Path(CASES[name][0](root))
    folder = root if path.is_file() else path
    folder = folder / "target" if name == "folder" else folder / "content" if name == "omnistyle" else folder
    secret = write(tmp_path / "secret.parquet", b"PAR1")
    if kind == "fifo":
        os.mkfifo(folder / "x.jpg")
    else:
        (folder / "x.jpg").symlink_to(secret)
    with pytest.raises(InputError, match=r"x\.jpg is (not a regular file|a link to .*secret)"):
        read(name, root if path.is_file() else path)


def test_a_fifo_in_a_list_is_one_sentence(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    source = read("json", write(tmp_path / "t.json", [{"prompt": "x", "target": "a.jpg"}]))
    with pytest.raises(BadExample, match=r"a\.jpg.*is not a file"):
        source[0]
    os.mkfifo(tmp_path / "f.json")
    with pytest.raises(InputError, match=r"f\.json is not a file"):
        read("json", tmp_path / "f.json")


def test_a_bomb_in_a_zip_is_still_refused(tmp_path):
    zipped(tmp_path / "target.zip", {"x.jpg": bytes(1 << 20)})
    buffer = bytearray((tmp_path / "target.zip").read_bytes())
    at = buffer.rindex(b"PK\1\2") + 24
    buffer[at : at + 4] = (1 << 31).to_bytes(4, "little")
    (tmp_path / "target.zip").write_bytes(buffer)
    with pytest.raises(InputError, match="would unpack to"):
        read("folder", tmp_path)
