# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Changed bytes in weights directories and style files are found, whichever file they are in; so are lies and NaN."""

import json
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.__main__ import main
from uso_jax import mini, weights
from uso_jax.common.errors import InputError
from uso_jax.inference import styles
from uso_jax.weights import integrity, safetensors_store
from uso_jax.weights.manifest_text import FORMAT, parse_struct

FORMAT_2 = pathlib.Path(__file__).parent / "format_2"
PARAMS = {
    "block/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7,
    "block/bias": np.ones(5, ml_dtypes.bfloat16),
    "scale": np.float16(3).reshape(()),
}
SECTIONS = {"clip": {"layer_norm_eps": 1e-5, "num_attention_heads": 4, "vocab_size": 1024}}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("weights") / "w"
    weights.save(directory, "clip", PARAMS, {"config": SECTIONS, "sources": [{"file": "x", "sha256": "0" * 64}]})
    return directory


def everything(directory):
    """Return what a program uses of a component: its values and its sizes."""
    loaded = weights.load(directory, "clip", weights.shapes(directory, "clip"))
    values = {path: (str(value.dtype), np.asarray(value).tobytes()) for path, value in loaded.items()}
    return values, weights.manifest(directory, "clip")["config"]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(where=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255), number=st.integers(0, 1))
def test_flipped_bytes(written, tmp_path_factory, where, mask, number):
    whole = everything(written)
    copy = tmp_path_factory.mktemp("flipped") / "w"
    shutil.copytree(written, copy)
    file = sorted(path for path in copy.rglob("*") if path.is_file())[number]
    content = bytearray(file.read_bytes())
    content[int(where * len(content))] ^= mask
    file.write_bytes(content)
    try:
        assert everything(copy) == whole
    except InputError as error:
        assert str(copy) in str(error)


def test_every_byte_of_the_parameters_is_covered(written, tmp_path):
    shutil.copytree(written, tmp_path / "w")
    file = tmp_path / "w" / "clip" / "params.safetensors"
    content = file.read_bytes()
    for place in range(0, len(content), 11):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(InputError, match=r"params.safetensors cannot be read .*; import or copy the clip again"):
            weights.load(tmp_path / "w", "clip", weights.shapes(tmp_path / "w", "clip"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"dtype": "mixed"', '"dtype": "bfloat16"', "its dtype is bfloat16, but its parameters are mixed"),
        ("float16[]", "complex64[]", "the dtype complex64 is not one of bfloat16"),
        ("float16[]", "object[]", "the dtype object is not one of"),
        ("float16[]", "bfloat16[]", "manifest.json has changed since it was written"),
        ("1e-05", "1e-04", "manifest.json has changed since it was written"),
        ('"params.safetensors": "', '"other.safetensors": "', "sha256 does not name the same files"),
        ('"params.safetensors": 3', '"../../params.safetensors": 3', "is not in the component's folder"),
    ],
)
def test_a_manifest_that_lies(written, tmp_path, old, new, message):
    shutil.copytree(written, tmp_path / "w")
    path = tmp_path / "w" / "clip" / "manifest.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=message):
        everything(tmp_path / "w")


def test_a_dtype_that_lies_in_an_old_manifest(written, tmp_path):
    shutil.copytree(written, tmp_path / "w")
    path = tmp_path / "w" / "clip" / "manifest.json"
    record = json.loads(path.read_text().replace("float16[]", "bfloat16[]"))
    path.write_text(json.dumps({name: value for name, value in record.items() if "sha256" not in name}))
    with pytest.raises(InputError, match=r"scale in .*params.safetensors contradicts the manifest"):
        everything(tmp_path / "w")


def test_the_set_of_dtypes_is_closed():
    for dtype in safetensors_store.DTYPES:
        assert parse_struct(f"{dtype.name}[2]") == jax.ShapeDtypeStruct((2,), dtype)
    for name in ("int32", "uint8", "bool", "complex64", "object", "S1", "float", "float128", "datetime64"):
        with pytest.raises(ValueError, match=name):
            parse_struct(f"{name}[2]")


def test_format_2_headers_that_lie(tmp_path):
    shutil.copytree(FORMAT_2, tmp_path / "w")
    header = tmp_path / "w" / "clip" / "params" / "rows" / ".zarray"
    good = header.read_text()
    for old, new in (("<f4", "<i4"), ('"compressor":null', '"compressor":4567'), ("{", "["), ("<f4", "f4<")):
        assert old in good
        header.write_text(good.replace(old, new))
        with pytest.raises(InputError):
            weights.read(tmp_path / "w", "clip")


def test_large_files_are_compared_on_request(written, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(integrity, "ALWAYS", 10)
    shutil.copytree(written, tmp_path / "w")
    file = tmp_path / "w" / "clip" / "params.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    weights.read(tmp_path / "w", "clip")
    for check in (lambda: weights.verify(tmp_path / "w"), lambda: weights.verify(tmp_path / "w", ["clip"])):
        with pytest.raises(InputError, match="its bytes have changed"):
            check()
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(tmp_path / "w")])
    assert ended.value.code == 2 and "params.safetensors" in capsys.readouterr().err


def test_components_without_hashes_load_and_can_get_some(written, tmp_path, capsys):
    shutil.copytree(written, tmp_path / "w")
    path = tmp_path / "w" / "clip" / "manifest.json"
    record = json.loads(path.read_text())
    assert record["format"] == FORMAT
    old = {name: value for name, value in record.items() if name not in ("sha256", "manifest_sha256")}
    path.write_text(json.dumps(old, indent=1))
    assert everything(tmp_path / "w") == everything(written)
    assert weights.verify(tmp_path / "w") == ["clip"]
    main(["verify", str(tmp_path / "w")])
    main(["verify", str(tmp_path / "w"), "--record"])
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("no hashes on record (--record adds them)") and second.endswith("ok")
    assert json.loads(path.read_text()) == record


def test_a_manifest_changed_on_purpose(written, tmp_path):
    shutil.copytree(written, tmp_path / "w")
    path = tmp_path / "w" / "clip" / "manifest.json"
    path.write_text(path.read_text().replace('"num_attention_heads": 4', '"num_attention_heads": 2'))
    with pytest.raises(InputError, match=r"uso-convert verify .* --record"):
        weights.read(tmp_path / "w", "clip")
    weights.record_hashes(tmp_path / "w", "clip")
    assert everything(tmp_path / "w")[1]["clip"]["num_attention_heads"] == 2


def test_a_tokenizer_that_changed(written, tmp_path):
    directory = tmp_path / "w"
    shutil.copytree(written, directory)
    vocabulary = weights.tokenizer(directory, "clip") / "vocab.json"
    vocabulary.parent.mkdir()
    vocabulary.write_text('{"a": 0}')
    (vocabulary.parent / ".DS_Store").touch()
    assert everything(directory) == everything(written)  # of an older program, or copied by hand
    weights.record_hashes(directory, "clip", tokenizer_only=True)
    assert weights.manifest(directory, "clip")["tokenizer"].keys() == {"vocab.json"}
    assert everything(directory) == everything(written)
    vocabulary.write_text('{"b": 0}')
    for check in (lambda: everything(directory), lambda: weights.verify(directory)):
        with pytest.raises(InputError, match=r"tokenizer_clip/vocab.json has changed .*--record"):
            check()
    weights.record_hashes(directory, "clip")
    assert weights.verify(directory) == []
    vocabulary.unlink()
    with pytest.raises(InputError, match=r"tokenizer_clip/vocab.json cannot be read \(No such file"):
        everything(directory)
    shutil.rmtree(vocabulary.parent)  # the one in the hub's cache is used
    assert everything(directory) == everything(written)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_numbers_that_are_not_finite_are_named(dtype, tmp_path):
    value = np.zeros((3, 4), dtype)
    value[1, 2], value[0, 0] = np.inf, np.nan
    weights.save(tmp_path, "clip", {"good": np.zeros(3, dtype), "bad/kernel": value}, {"config": {}})
    with pytest.raises(InputError, match="2 numbers are NaN or infinite, in bad/kernel; import the clip again"):
        weights.load(tmp_path, "clip", weights.shapes(tmp_path, "clip"))


def test_the_packaged_weights_have_hashes():
    assert weights.verify(mini.WEIGHTS) == []
    for component in weights.components(mini.WEIGHTS):
        record = weights.manifest(mini.WEIGHTS, component)
        assert record["own_hash"] == record["manifest_sha256"]


@settings(max_examples=120, deadline=None, derandomize=True)
@given(where=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_flipped_bytes_of_a_style_file(tmp_path_factory, where, mask):
    folder = tmp_path_factory.mktemp("style")
    features = np.linspace(-1, 1, 2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    whole = styles.StyleEmbedding(features, "tower", ({"name": "ink.png"}, {"name": "é.png"}))
    path = styles.write_style(folder / "x.safetensors", whole)
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= mask
    path.write_bytes(content)
    try:
        read = styles.read_style(path)
    except InputError as error:
        assert str(path) in str(error)
        return
    assert read.features.tobytes() == features.tobytes() and read.features.shape == features.shape
    assert (read.tower, read.images) == (whole.tower, whole.images)


def test_style_files_without_a_hash_are_read(tmp_path):
    from safetensors.numpy import save_file

    features = np.ones((1, 3, 2, 2), np.float32)
    metadata = {"format": styles.FORMAT, "tower": "t", "images": '[{"name": "x"}]'}
    save_file({"features": features}, tmp_path / "old.safetensors", metadata)
    assert styles.read_style(tmp_path / "old.safetensors").images == ({"name": "x"},)
