# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Readers: every schema yields its triplets, from any packaging, and counts the rows it skips."""

import pathlib
import pickle
import shutil

import encoded_images
import fsspec
import numpy as np
import pytest
import schemas
from reader_cases import CASES, read
from schemas import decoded, jpeg, tar, write, zipped

from uso_jax.common.errors import BadExample, InputError
from uso_jax.data.readers import READERS
from uso_jax.data.storage import archives, places, urls


def assert_triplets(source, wanted):
    assert len(source) == len(wanted)
    for index, (prompt, content, styles, target) in enumerate(wanted):
        triplet = source[index]
        assert (triplet.prompt, len(triplet.styles)) == (prompt, len(styles)), index
        assert np.array_equal(triplet.target, decoded(target)), (index, target)
        assert (triplet.content is None) if not content else np.array_equal(triplet.content, decoded(content))
        assert all(np.array_equal(a, decoded(b)) for a, b in zip(triplet.styles, styles, strict=True))
        assert triplet.layout == "preserved" or prompt
    assert len({source[index].key for index in range(len(source))}) == len(wanted)


def assert_left_out(source, reasons):
    assert sorted(source.left_out.values()) == sorted(reasons.values())
    for reason, count in reasons.items():
        assert [n for text, n in source.left_out.items() if reason in text] == [count]


def test_every_reader_has_a_case():
    assert set(CASES) == set(READERS)


@pytest.mark.parametrize("name", CASES)
def test_schema(name, tmp_path):
    writer, options, wanted, left_out = CASES[name]
    path = writer(tmp_path)
    options = {key: str(tmp_path / value) if key == "pictures" else value for key, value in options.items()}
    source = read(name, path, **options)
    assert_triplets(source, wanted)
    assert_left_out(source, left_out)
    assert_triplets(pickle.loads(pickle.dumps(source)), wanted)
    sizes = source.sizes()
    assert sizes.shape == (len(wanted), 4) and sizes.dtype == np.int32
    assert (sizes[:, 0] == sizes[:, 1]).all() and (sizes[:, 0] > 0).all()
    assert [bool(row[2]) for row in sizes] == [bool(content) for _, content, _, _ in wanted]


@pytest.mark.parametrize(
    ("name", "writer", "options"),
    [
        ("json", lambda root: schemas.own_json(root, "jsonl"), {}),
        ("uno_1m", lambda root: schemas.uno_1m(root, packed=True), {}),
        ("omnistyle", lambda root: schemas.omnistyle(root, packed=True), {}),
        ("stylebooth", lambda root: schemas.stylebooth(root, packed=True), {}),
    ],
)
def test_packed_otherwise(name, writer, options, tmp_path):
    assert_triplets(read(name, writer(tmp_path), **options), CASES[name][2])


@pytest.mark.parametrize("name", [name for name in CASES if name != "uso_eval"])
def test_remote(name, tmp_path):
    memory = fsspec.filesystem("memory")
    local = CASES[name][0](tmp_path)
    inside = pathlib.Path(local).relative_to(tmp_path)
    memory.put(str(tmp_path) + "/", f"/{name}/", recursive=True)
    url = f"memory://{name}/{inside}" if str(inside) != "." else f"memory://{name}"
    assert_triplets(read(name, url, **CASES[name][1]), CASES[name][2])
    memory.rm(f"/{name}", recursive=True)


def test_options(tmp_path):
    for name in ("uno", "uno_1m", "syncd", "stylebooth", "subjects200k"):
        (tmp_path / name).mkdir()
    several = read("uno", schemas.uno(tmp_path / "uno"), several="first")
    assert_triplets(several, [CASES["uno"][2][0], CASES["uno"][2][1], ("three", "a", "", "c"), *CASES["uno"][2][2:]])
    paper = read("uno_1m", schemas.uno_1m(tmp_path / "uno_1m"), min_score=4, both=False)
    assert_triplets(paper, CASES["uno_1m"][2][:1])
    one_file = read("uno_1m", tmp_path / "uno_1m" / "labels" / "split2.json")
    assert_triplets(one_file, CASES["uno_1m"][2][2:])
    assert len(read("syncd", schemas.syncd(tmp_path / "syncd"))) == 6
    styled = read("stylebooth", schemas.stylebooth(tmp_path / "stylebooth"), styles=True)
    assert_triplets(styled, [("", "a", "d", "c"), ("", "b", "c", "d")])
    with pytest.raises(InputError, match=r"no usable triplet .*not in collection_3"):
        read("subjects200k", schemas.subjects200k(tmp_path / "subjects200k"), collection="collection_3")


def test_items_to_generate_from_have_no_target(tmp_path):
    assert read("uso_eval", schemas.uso_eval(tmp_path))[1].target is None


# ---------------------------------------------------------------------------------------------------- bad input


def test_a_shifted_layout_without_words_is_found_before_training(tmp_path):
    members = {"a.target.jpg": jpeg("a"), "a.content.jpg": jpeg("b"), "a.json": b'{"layout": "shifted"}'}
    with pytest.raises(InputError, match="a shifted layout needs a prompt"):
        read("webdataset", tar(tmp_path / "s.tar", members))


def test_tar_with_a_damaged_member(tmp_path):
    path = tar(tmp_path / "s.tar", {f"{n}.target.jpg": jpeg("a") for n in "ab"} | {"a.txt": b"a", "b.txt": b"b"})
    whole = path.read_bytes()
    second = archives.list_members(str(path))["b.target.jpg"].start
    path.write_bytes(whole[:second] + b"\0" * 300 + whole[second + 300 :])
    source = read("webdataset", path)
    assert np.array_equal(source[0].target, decoded("a"))
    with pytest.raises(BadExample, match=r"s\.tar:b\.target\.jpg .*cannot be decoded"):
        source[1]
    path.write_bytes(whole[: second - 512] + b"x" * 512 + whole[second:])  # the header before it
    with pytest.raises(InputError, match="is damaged after byte"):
        read("webdataset", path)
    path.write_bytes(whole[: second + 10])
    with pytest.raises(InputError, match=r"ends in the middle of 'b.target.jpg'"):
        read("webdataset", path)
    path.write_bytes(b"no tar")
    with pytest.raises(InputError, match="not a readable tar file"):
        read("webdataset", path)
    write(tmp_path / "all.tar.gz", b"")
    with pytest.raises(InputError, match="compressed as a whole"):
        archives.list_members(str(tmp_path / "all.tar.gz"))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b.jpg", "C:/x.jpg", "..\\x.jpg"])
def test_names_that_lead_out(name, tmp_path):
    with pytest.raises(InputError, match="outside its folder"):
        archives.list_members(str(tar(tmp_path / "s.tar", {name: b"x"})))
    with pytest.raises(InputError, match="outside its folder"):
        archives.list_members(str(zipped(tmp_path / "s.zip", {name: b"x"})))
    with pytest.raises(InputError, match=r"item 0 names .* outside its folder"):
        read("json", write(tmp_path / "t.json", [{"prompt": "x", "target": name}]))
    with pytest.raises(InputError, match="outside its folder"):
        read("json", write(tmp_path / "t.json", [{"prompt": "x", "target": "gs://bucket/x.png"}]))


def test_root_allows_other_folders(tmp_path):
    schemas.own_json(tmp_path)
    moved = tmp_path / "lists" / "triplets.json"
    moved.parent.mkdir()
    shutil.move(tmp_path / "triplets.json", moved)
    assert_triplets(read("json", moved, root=str(tmp_path)), CASES["json"][2])


def test_duplicates(tmp_path):
    items = [{"prompt": "x", "target": "a.png", "key": "same"}] * 2
    with pytest.raises(InputError, match="two triplets have the key 'same'"):
        read("json", write(tmp_path / "t.json", items))
    folder = tmp_path / "folder"
    schemas.plain_folder(folder)
    write(folder / "target" / "c.png", jpeg("c"))
    with pytest.raises(InputError, match="two images 'c'"):
        read("folder", folder)
    with pytest.warns(UserWarning, match="Duplicate name"):
        zipped(tmp_path / "s.zip", {"a.jpg": b"x"})
        import zipfile

        with zipfile.ZipFile(tmp_path / "s.zip", "a") as file:
            file.writestr("a.jpg", b"y")
    with pytest.raises(InputError, match=r"'a\.jpg' twice"):
        archives.list_members(str(tmp_path / "s.zip"))


def test_zip_bombs(tmp_path, monkeypatch):
    path = zipped(tmp_path / "s.zip", {"a.jpg": b"\0" * 100_000})
    whole = path.read_bytes()
    monkeypatch.setattr(urls, "MAX_BYTES", 50_000)
    with pytest.raises(InputError, match="would unpack to 100000 bytes"):
        archives.list_members(str(path))
    # The directory lies about what comes out: no more is unpacked than it says.
    at = whole.rindex(b"PK\1\2") + 24
    path.write_bytes(whole[:at] + (1000).to_bytes(4, "little") + whole[at + 4 :])
    with pytest.raises(BadExample, match="does not unpack to the 1000 bytes"):
        archives.list_members(str(path))["a.jpg"].read()


def test_other_broken_containers(tmp_path):
    write(tmp_path / "s.zip", b"no zip")
    with pytest.raises(InputError, match="not a readable zip file"):
        archives.list_members(str(tmp_path / "s.zip"))
    with pytest.raises(InputError, match="not a readable parquet file"):
        read("parquet", write(tmp_path / "t.parquet", b"no parquet"))
    with pytest.raises(InputError, match="no column image"):
        read("subjects200k", schemas.parquet(tmp_path))
    with pytest.raises(InputError, match=r"is not a folder, a .tar or a .zip"):
        read("stylebooth", tmp_path / "nothing")
    with pytest.raises(InputError, match=r"has no target, target.tar"):
        read("folder", tmp_path)
    with pytest.raises(InputError, match="has no folder labels"):
        read("uno_1m", tmp_path)
    with pytest.raises(InputError, match="gunzip it"):
        root = schemas.uno_1m(tmp_path / "uno")
        shutil.rmtree(root / "images" / "split1")
        write(root / "images" / "split1.tar.gz", b"")
        read("uno_1m", root)


def test_view_without_two_squares(tmp_path):
    import pyarrow.parquet as pq

    path = schemas.subjects200k(tmp_path)
    table = pq.read_table(path)
    images = [{"bytes": schemas.two_views("a", "b", extra=40), "path": None}] * 5
    pq.write_table(table.set_column(0, "image", [images]), path)
    with pytest.raises(BadExample, match="two squares side by side"):
        read("subjects200k", path)[0]


def test_missing_image_is_a_bad_example(tmp_path):
    path = schemas.own_json(tmp_path)
    (tmp_path / "images" / "c.jpg").unlink()
    source = read("json", path)
    with pytest.raises(BadExample, match=r"c\.jpg \(item 0 of .*\) does not exist"):
        source[0]
    assert source.sizes()[0].tolist() == [0, 0, schemas.SIDE, schemas.SIDE]


def test_parquet_with_text_that_is_not_utf_8(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    broken = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xb1"))
    table = pa.table({"prompt": broken, "target": pa.array([b"x"])})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet is damaged .*UTF8"):
        read("parquet", tmp_path / "a.parquet")


def test_parquet_with_columns_of_other_types(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def refused(prompt, target):
        pq.write_table(pa.table({"prompt": prompt, "target": target}), tmp_path / "a.parquet")
        with pytest.raises(InputError) as caught:
            read("parquet", tmp_path / "a.parquet")
        return str(caught.value)

    for values in ([{"Bytes": b"x"}], [{"path": "a.png"}], [{"bytes": "x"}]):
        assert "column target is a struct<" in refused(["a"], values) and 'needs "bytes"' in refused(["a"], values)
    for values in ([3], [True], [["a.png"]]):
        assert "column target is a " in refused(["a"], values)
    assert "column prompt is a int64" in refused([3], [b"x"])
    far = pa.array([2**62], pa.timestamp("us"))
    assert "column prompt is a timestamp" in refused(far, [b"x"])

    png = encoded_images.sample("PNG")
    table = pa.table({"prompt": pa.array(["a"]).dictionary_encode(), "target": pa.array([png], pa.large_binary())})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read("parquet", tmp_path / "a.parquet")[0].prompt == "a"


def test_parquet_with_fewer_rows_than_it_says(tmp_path, monkeypatch):
    source = read("parquet", schemas.parquet(tmp_path))
    table, starts = places._table(source.path)
    monkeypatch.setattr(places, "_table", lambda path: (table, [0, starts[-1] + 9]))
    with pytest.raises(BadExample, match=r"damaged: its row group has \d rows only"):
        places.Place(source.path, "target", row=starts[-1] + 3).read()


def test_subjects200k_with_columns_of_other_types(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = schemas.subjects200k(tmp_path)
    table = pq.read_table(path)

    def refused(name, column, message):
        pq.write_table(table.set_column(table.schema.names.index(name), name, column), path)
        with pytest.raises(InputError, match=message):
            read("subjects200k", path)

    refused("description", pa.array([{"description_0": 1, "description_1": 2}] * 5), "3 skipped: invalid descriptions")
    refused("quality_assessment", pa.array([5] * 5), "5 skipped: no quality assessment")
    places = pa.py_buffer(np.arange(6, dtype=np.int32).tobytes())
    broken = pa.StringArray.from_buffers(5, places, pa.py_buffer(b"a\xb1bcd"))
    refused("collection", broken, r"parquet is damaged .*UTF8")
