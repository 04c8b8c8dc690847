# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""GGUF files: whole numbers exactly, blocks as their format defines them, and damaged files."""

import golden_files as golden
import numpy as np
import pytest
from safetensors.numpy import load_file

from convert.__main__ import main
from convert.files.gguf_file import GgufFile
from convert.files.tensors import open_files
from uso_jax import weights
from uso_jax.common.errors import InputError

gguf = pytest.importorskip("gguf")
TYPES = gguf.GGMLQuantizationType
FLUX = golden.DIR / "flux_tiny.safetensors"


def write(path, tensors, kinds):
    """Write a file; `kinds` are the types of quantised tensors, whose values are numbers, or bytes for uint8."""
    writer = gguf.GGUFWriter(path, "flux")
    for key, value in tensors.items():
        kind = kinds.get(key)
        if kind is None:
            writer.add_tensor(key, value)
        else:
            raw = value if value.dtype == np.uint8 else gguf.quants.quantize(value, kind)
            writer.add_tensor(key, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_import(tmp_path):
    """Of a transformer, matrices in Q8_0 differ by half a step of a block, and its float16 scale; the rest is exact."""
    tensors = {key: np.asarray(value, np.float32) for key, value in load_file(FLUX).items()}
    matrices = {key for key, value in tensors.items() if value.ndim == 2 and value.shape[1] % 32 == 0}
    path = write(tmp_path / "flux.gguf", tensors, dict.fromkeys(matrices, TYPES.Q8_0))
    assert len(matrices) > 10
    for name, file in (("plain", FLUX), ("blocks", path)):
        config = ["--config", str(golden.DIR / "config.json"), "--dtype", "fp32"]
        main(["import", str(file), "--to", str(tmp_path / name), *config])
    plain, blocks = (weights.read(tmp_path / name, "transformer") for name in ("plain", "blocks"))
    whole = lambda array: np.asarray(array.part(tuple(slice(None) for _ in array.shape)))
    for key in plain:
        wanted, found = whole(plain[key]), whole(blocks[key])
        assert np.abs(found - wanted).max() <= np.abs(wanted).max() / 127 * (0.5 + 127 * 2**-11) + 1e-6, key


def q4_k(row):
    """Decode the 144 bytes of a block of 256 numbers, as llama.cpp's ggml-common.h defines block_q4_K."""
    d, dmin = row[:4].view(np.float16).astype(np.float32)
    packed, quants = row[4:16].astype(int), row[16:].astype(int)
    found = []
    for number in range(8):
        if number < 4:
            scale, least = packed[number] & 63, packed[number + 4] & 63
        else:
            scale = (packed[number + 4] & 15) | ((packed[number - 4] >> 6) << 4)
            least = (packed[number + 4] >> 4) | ((packed[number] >> 6) << 4)
        part = quants[32 * (number // 2) : 32 * (number // 2) + 32]
        found.append(d * scale * (part >> 4 if number % 2 else part & 15) - dmin * least)
    return np.concatenate(found)


def test_blocks_of_four_bits(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (3, 2 * 144)).astype(np.uint8)
    for block in (rows[:, :144], rows[:, 144:]):
        block[:, :4] = np.asarray([0.01, 0.02], np.float16).view(np.uint8)
    tensors = {"a.weight": rows, "b": np.arange(5, dtype=np.float16)}
    (file,) = open_files([write(tmp_path / "x.gguf", tensors, {"a.weight": TYPES.Q4_K})])
    assert isinstance(file, GgufFile) and file.tensors["a.weight"].shape == (3, 512)
    wanted = np.stack([np.concatenate([q4_k(row[:144]), q4_k(row[144:])]) for row in rows])
    assert np.abs(file.read("a.weight") - wanted).max() < 1e-5
    assert np.array_equal(file.read("a.weight", 1, 2), file.read("a.weight")[1:2])
    assert file.tensors["b"].dtype == np.float16 and np.array_equal(file.read("b"), tensors["b"])


def test_damaged_files(tmp_path):
    path = write(tmp_path / "x.gguf", {"a": np.ones((4, 32), np.float32)}, {"a": TYPES.Q8_0})
    data = path.read_bytes()
    for length in (5, 40, len(data) - 40):
        (tmp_path / "cut.gguf").write_bytes(data[:length])
        with pytest.raises(InputError, match="is not a valid GGUF file"):
            open_files([tmp_path / "cut.gguf"])
    (tmp_path / "noise.gguf").write_bytes(data[:8] + np.random.default_rng(0).bytes(len(data) - 8))
    with pytest.raises(InputError, match="is not a valid GGUF file"):
        open_files([tmp_path / "noise.gguf"])
