# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Hundreds of damaged and malicious files: each is refused in one sentence or harmless, none takes the machine down."""

import contextlib
import json
import resource
import struct
import time

import golden_files as golden
import numpy as np
import pytest
from safetensors.numpy import save

from convert import importing
from convert.__main__ import main
from uso_jax import weights
from uso_jax.weights.files.safetensors_file import MAX_HEADER

DTYPES = ("F32", "BF16", "F16", "F8_E4M3", "I8", "BOOL", "F64", "U64", "F99", None, 3)
NUMBERS = (0, 1, 3, 2**31, 2**40, 2**62, 2**63, 2**200, -1, 1.5, True, None, "8", [], {})
BASES = ("dit_lora", "projector")


def split(data: bytes) -> tuple[dict, bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def pack(header: dict | bytes, body: bytes) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + body


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file once, somewhere, somehow."""
    kind = rng.integers(15)
    if kind == 0:
        return data[: rng.integers(len(data))]
    if kind == 1:
        return data + bytes(rng.integers(1, 100))
    if kind == 2:  # bits of the header, which is where damage matters
        position = rng.integers(min(len(data), 4000))
        return data[:position] + bytes([data[position] ^ (1 << rng.integers(8))]) + data[position + 1 :]
    if kind == 3:
        return struct.pack("<Q", int(rng.integers(2**63))) + data[8:]
    if kind == 4:
        return struct.pack("<Q", max(0, len(data) - int(rng.integers(0, 40)))) + data[8:]
    header, body = split(data)
    key = list(header)[rng.integers(1, len(header))]
    entry = header[key]
    other = header[list(header)[rng.integers(1, len(header))]]
    if kind == 5:
        entry["dtype"] = DTYPES[rng.integers(len(DTYPES))]
    elif kind == 6:
        entry["shape"][rng.integers(len(entry["shape"]))] = NUMBERS[rng.integers(len(NUMBERS))]
    elif kind == 7:
        entry["data_offsets"][rng.integers(2)] = NUMBERS[rng.integers(len(NUMBERS))]
    elif kind == 8:
        entry["data_offsets"] = list(other["data_offsets"])
    elif kind == 9:
        entry["shape"] = [int(2**x) for x in rng.integers(0, 63, rng.integers(1, 40))]
    elif kind == 10:  # an empty tensor may claim anything without a byte to show for it
        header[key] = {"dtype": "F32", "shape": [(2**40), 0], "data_offsets": [0, 0]}
    elif kind == 11:  # a name twice
        text = json.dumps(header)
        return pack((text[:-1] + f", {json.dumps(key)}: {json.dumps(entry)}}}").encode(), body)
    elif kind == 12:
        names = (
            "",
            "\n",
            "a" * 1000,
            "double_blocks.99999999999999999999.processor.qkv_lora1.down.weight",
            "\udcff",
            "__metadata__",
        )
        header[names[rng.integers(len(names))]] = header.pop(key)
    elif kind == 13:
        header.pop(key)
    else:
        header[key] = (None, 3, [], "x", {}, {"dtype": "F32"}, [1, 2, 3])[rng.integers(7)]
    return pack(header, body)


def memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_six_hundred_damaged_files(tmp_path, capsys):
    rng = np.random.default_rng(0)
    bases = [(golden.DIR / f"{name}_tiny.safetensors").read_bytes() for name in BASES]
    main(["inspect", *(str(golden.DIR / f"{name}_tiny.safetensors") for name in BASES)])
    before, refused, to = memory(), 0, tmp_path / "w"
    for number in range(600):
        data = bases[number % 2]
        for _ in range(rng.integers(1, 3)):
            # What is damaged too far cannot be damaged in every way again.
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error):
                data = mutate(data, rng)
        (tmp_path / "x").write_bytes(data)
        capsys.readouterr()
        started = time.monotonic()
        try:
            main(["import", str(tmp_path / "x"), "--to", str(to), "--overwrite"])
        except SystemExit as error:
            assert error.code == 2
            out, err = capsys.readouterr()
            assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and len(err) < 3000, err
            refused += 1
        assert time.monotonic() - started < 10
    assert memory() - before < 500e6
    assert 300 < refused < 600  # bits of names and numbers may change unnoticed, and some files become sound again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w", "x"]
    assert all(not name.startswith(".") for name in weights.components(to))


@pytest.mark.parametrize("content", (b" ", b"[", b'{"a":', b"1", b'{"x":[', b'"', b"\xff"))
def test_long_headers(content, tmp_path, capsys):
    """100 MB of JSON is refused before it is read; what may be read is read in bounded memory."""
    for length in (100_000_000, MAX_HEADER):
        with (tmp_path / "x").open("wb") as file:
            file.write(struct.pack("<Q", length) + content * (length // len(content) if length == MAX_HEADER else 1))
            file.truncate(8 + length)
        before = memory()
        with pytest.raises(SystemExit) as caught:
            main(["inspect", str(tmp_path / "x")])
        assert caught.value.code == 2
        assert ("does not fit" if length > MAX_HEADER else "not valid JSON") in capsys.readouterr().err
        assert memory() - before < (10 if length > MAX_HEADER else 40 * 32) * 1e6


@pytest.mark.parametrize("number", (20_000, 200_000))
def test_very_many_tensors(number, tmp_path, capsys):
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    names = {f"double_blocks.{i}.processor.qkv_lora1.down.weight": entry for i in range(number)}
    (tmp_path / "x").write_bytes(pack(names, b""))
    started = time.monotonic()
    with pytest.raises(SystemExit) as caught:
        main(["inspect", str(tmp_path / "x")])
    assert caught.value.code == 2 and time.monotonic() - started < 20
    assert len(capsys.readouterr().err) < 3000


def test_many_layers(tmp_path, capsys):
    """A network of a thousand layers, each with its bytes, is refused before it is built."""
    tensors = {f"encoder.down.{i}.block.0.conv1.weight": np.zeros((1, 1, 1, 1), np.float16) for i in range(1000)}
    tensors |= {
        "encoder.conv_in.weight": np.zeros((1, 3, 3, 3), np.float16),
        "decoder.conv_in.weight": np.zeros((1, 1, 3, 3), "f2"),
    }
    tensors |= {"decoder.conv_out.weight": np.zeros((3, 1, 3, 3), np.float16)}
    (tmp_path / "x").write_bytes(save(tensors))
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / "x")])
    assert "1,000 layers" in capsys.readouterr().err


def test_damaged_torch_files(tmp_path, capsys):
    import torch

    for zipped in (True, False):
        path = tmp_path / "good.bin"
        torch.save({"shared.weight": torch.ones(4, 4)}, path, _use_new_zipfile_serialization=zipped)
        good, rng = path.read_bytes(), np.random.default_rng(1)
        for _ in range(40):
            data = bytearray(good[: rng.integers(20, len(good) + 1)])
            for _ in range(rng.integers(1, 5)):
                data[rng.integers(4, len(data))] = rng.integers(256)
            (tmp_path / "x").write_bytes(bytes(data))
            with pytest.raises(SystemExit) as caught:  # sound or not, one tensor is no network
                main(["inspect", str(tmp_path / "x")])
            assert caught.value.code == 2
            out, err = capsys.readouterr()
            assert out == "" and err.startswith("error: ") and err.count("\n") == 1


def test_folders_and_permissions(tmp_path, capsys):
    for path, message in ((tmp_path, "is a directory"), (tmp_path / "no", "does not exist")):
        with pytest.raises(SystemExit) as caught:
            main(["import", str(path), "--to", str(tmp_path / "w")])
        assert caught.value.code == 2 and message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_header_that_promises_what_the_file_lacks_at_reading(tmp_path, capsys, monkeypatch):
    """The file shrinks after its header was checked."""
    path = tmp_path / "x"
    path.write_bytes((golden.DIR / "dit_lora_tiny.safetensors").read_bytes())
    plan = importing._plan

    def shrink(*args):
        path.write_bytes(path.read_bytes()[:9000])
        return plan(*args)

    monkeypatch.setattr(importing, "_plan", shrink)
    with pytest.raises(SystemExit) as caught:
        main(["import", str(path), "--to", str(tmp_path / "w")])
    assert caught.value.code == 2 and "became shorter" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
