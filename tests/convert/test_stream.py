# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Imports that are killed, and how much memory they take."""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import forks
import golden_files as golden
import jax
import make_checkpoint
import ml_dtypes
import numpy as np
import pytest
import safetensors_library
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file
from slow_imports import slowly

from convert import importing
from convert.__main__ import main
from uso_jax import weights
from uso_jax.common.errors import InputError
from uso_jax.weights import safetensors_store
from uso_jax.weights import writer as writer_module
from uso_jax.weights.writer import Writer

# Prints its peak memory in KiB, before and after.
RUN = """
import resource, sys
from convert.__main__ import main
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
main(sys.argv[1:])
print("peak", before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def start(code, *argv):
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
    )


def count_pieces(args: list, to) -> int:
    write, pieces = Writer.write, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "write", lambda *arguments: pieces.append(write(*arguments)))
        main(["import", *map(str, args), str(to)])
    return len(pieces)


def fingerprint(folder) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
def test_killed_at_ten_points(tmp_path, capsys):
    """Every run but the last is killed after some chunks; what is seen is never half of it, and the end is the same."""
    args = [golden.DIR / "flux_tiny.safetensors", "--config", golden.DIR / "config.json", "--to"]
    main(["import", *map(str, args), str(tmp_path / "whole")])
    want = fingerprint(tmp_path / "whole" / "transformer")
    chunks = count_pieces(args, tmp_path / "counted")
    rng, to, written = random.Random(0), tmp_path / "w", 0
    for attempt in range(11):
        told, tells = multiprocessing.Pipe(duplex=False)
        process = forks.process(slowly, (["import", *map(str, args), str(to)], tells))
        process.start()
        tells.close()
        if attempt == 10:
            process.join()
            assert process.exitcode == 0
            break
        # The first kill strikes before any chunk, the others anywhere in a tenth of them.
        for _ in range(rng.randint(0, chunks // 11) if attempt else 0):
            told.recv()
        time.sleep(rng.uniform(0, 0.003))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        told.close()
        assert not to.exists() or weights.components(to) == []
        journal = to / ".transformer.partial" / "written.txt"
        now = journal.read_text().count("\n") if journal.exists() else 0
        assert now >= written  # no work is lost
        written = now
    assert 0 < written < chunks
    assert fingerprint(to / "transformer") == want
    assert [path.name for path in to.iterdir()] == ["transformer"]


def test_leftovers_of_another_import_are_not_used(tmp_path, monkeypatch):
    file = tmp_path / "x.safetensors"
    args = ["import", str(file), "--to", str(tmp_path / "w")]
    tensors = dict(golden.tensors("dit_lora"))

    def interrupted(self, path, row, array, write=Writer.write):
        write(self, path, row, array)
        raise KeyboardInterrupt

    save_file(tensors, file)
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(Writer, "write", interrupted)
        main(args)
    assert (tmp_path / "w" / ".lora.partial").exists() and weights.components(tmp_path / "w") == []
    tensors = {key: value + 1 for key, value in tensors.items()}
    save_file(tensors, file)
    os.utime(file, ns=(1, 1))
    main(args)
    main(["export", str(tmp_path / "w"), "--format", "uso", "--to", str(tmp_path / "o.safetensors")])
    got = load_file(tmp_path / "o.safetensors")
    assert all(np.array_equal(got[key], value) for key, value in tensors.items())
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["lora"]


def test_two_imports_into_one_place(tmp_path):
    struct = {"a": jax.ShapeDtypeStruct((2,), np.float32)}
    with Writer(tmp_path, "lora", struct) as writer:
        with (
            pytest.raises(InputError, match=f"{tmp_path / 'lora'} is being written by process {os.getpid()}"),
            Writer(tmp_path, "lora", struct),
        ):
            pass
        writer.write("a", 0, np.ones(2, np.float32))
        writer.finish({"config": {}})
    assert weights.components(tmp_path) == ["lora"]


def test_a_failed_replacement_keeps_what_was_there(tmp_path):
    old = {"a": np.ones(2, np.float32)}
    weights.save(tmp_path, "lora", old, {"config": {}})
    with (
        pytest.raises(InputError, match="cannot write"),
        Writer(tmp_path, "lora", {"a": jax.ShapeDtypeStruct((2,), np.float32)}),
    ):
        raise OSError(28, "No space left on device")
    np.testing.assert_array_equal(weights.read(tmp_path, "lora")["a"], old["a"])
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]


@pytest.mark.slow
def test_memory_is_bounded(tmp_path):
    """A gigabyte of the real widths; the largest tensor, single_blocks.*.linear1, has 132 MB."""
    file = tmp_path / "x.safetensors"
    make_checkpoint.make(file, make_checkpoint.layout("flux1-dev.safetensors", blocks=1))
    for options in (("--quantize", "int4"), ("--overwrite",)):
        process = start(RUN, "import", file, "--to", tmp_path / "w", *options)
        out, err = process.communicate()
        assert process.returncode == 0, err.decode()
        before, after = map(int, out.split(b"peak")[1].split())
        assert (after - before) * 1024 < 4 * 132e6 < file.stat().st_size
    record = weights.manifest(tmp_path / "w", "transformer")
    assert record["sources"][0]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert record["config"]["flux"]["depth"] == record["config"]["flux"]["depth_single_blocks"] == 1


def test_other_programs_read_a_component(tmp_path, monkeypatch):
    """One file, or shards with an index, that the safetensors library reads; each device reads its own part."""
    rng = np.random.default_rng(0)
    arrays = {
        "a/b/kernel": rng.normal(size=(6, 8, 16)).astype(ml_dtypes.bfloat16),
        "c": rng.normal(size=5).astype(np.float32),
        "scalar": np.asarray(3, np.float16),
        "eight": rng.normal(size=(4, 2)).astype(ml_dtypes.float8_e4m3fn),
        "int": np.arange(-3, 4, dtype=np.int8),
    }
    weights.save(tmp_path, "lora", arrays, {"config": {}})
    assert {path.name for path in (tmp_path / "lora").iterdir()} == {"manifest.json", "params.safetensors"}
    found = safetensors_library.load_file(tmp_path / "lora" / "params.safetensors")
    monkeypatch.setattr(safetensors_store, "SHARD_BYTES", 100)
    weights.save(tmp_path, "projector", arrays, {"config": {}})
    index = json.loads((tmp_path / "projector" / "params.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in arrays.values())
    assert index["weight_map"]["c"] == "params-00001-of-00003.safetensors" != index["weight_map"]["a/b/kernel"]
    assert set(index["weight_map"].values()) == {path.name for path in (tmp_path / "projector").glob("params-*")}
    shards = {
        path: safetensors_library.load_file(tmp_path / "projector" / file)[path]
        for path, file in index["weight_map"].items()
    }
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    places = {"a/b/kernel": NamedSharding(mesh, P(None, "x", "y"))}
    structs = {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=places.get(path, NamedSharding(mesh, P())))
        for path, x in arrays.items()
    }
    for component, other in (("lora", found), ("projector", shards)):
        loaded = weights.load(tmp_path, component, structs)
        assert loaded["a/b/kernel"].addressable_shards[0].data.shape == (6, 4, 4)
        for path, want in arrays.items():
            for got in (loaded[path], other[path]):
                assert got.dtype == want.dtype
                np.testing.assert_array_equal(got, want)


def test_other_programs_read_what_was_imported(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({key: np.asarray(value) for key, value in golden.tensors("siglip").items()}, file)
    main(["import", str(file), "--to", str(tmp_path), "--config", str(golden.DIR / "config.json")])
    restored = safetensors_library.load_file(tmp_path / "siglip" / "params.safetensors")
    loaded = weights.load(tmp_path, "siglip", weights.shapes(tmp_path, "siglip"))
    for path, value in weights.read(tmp_path, "siglip").items():
        np.testing.assert_array_equal(restored[path], value)
        np.testing.assert_array_equal(loaded[path], value)


def test_pieces_in_any_order(tmp_path):
    x = np.arange(6 * 4 * 5, dtype=np.float32).reshape(6, 4, 5)
    struct = {"x": jax.ShapeDtypeStruct(x.shape, x.dtype)}
    with Writer(tmp_path, "lora", struct) as writer:
        for row in (3, 0, 5, 1, 4, 2):
            assert not writer.has("x", row)
            writer.write("x", row, x[row : row + 1].transpose(0, 2, 1).copy().transpose(0, 2, 1))
            assert writer.has("x", row)
        writer.finish({"config": {}})
    stored = weights.read(tmp_path, "lora")["x"]
    file = tmp_path / "lora" / "params.safetensors"
    assert file.read_bytes().endswith(x.tobytes())
    np.testing.assert_array_equal(stored, x)
    np.testing.assert_array_equal(stored.part((slice(1, 4), slice(1, 3), slice(2, 5))), x[1:4, 1:3, 2:5])
    np.testing.assert_array_equal(safetensors_library.load_file(file)["x"], x)


def test_a_missing_piece_is_noticed(tmp_path):
    with (
        pytest.raises(AssertionError, match="not written"),
        Writer(tmp_path, "lora", {"x": jax.ShapeDtypeStruct((6, 2), np.float32)}) as writer,
    ):
        writer.write("x", 0, np.ones((5, 2), np.float32))
        writer.finish({"config": {}})
    assert list(tmp_path.iterdir()) == []


def test_a_piece_whose_line_in_the_journal_was_cut_is_written_again(tmp_path):
    struct = {"x": jax.ShapeDtypeStruct((3,), np.float32)}
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path, "lora", struct, "origin") as writer:
        writer.write("x", 0, np.ones(1, np.float32))
        writer.write("x", 1, np.ones(1, np.float32))
        raise KeyboardInterrupt
    journal = tmp_path / ".lora.partial" / "written.txt"
    journal.write_text(journal.read_text()[:-1])
    with Writer(tmp_path, "lora", struct, "origin") as writer:
        assert writer.has("x", 0) and not writer.has("x", 1)
        writer.write("x", 1, np.full(2, 2, np.float32))
        writer.finish({"config": {}})
    np.testing.assert_array_equal(weights.read(tmp_path, "lora")["x"], [1, 2, 2])


def test_work_of_before_a_restart_of_the_machine_is_not_trusted(tmp_path, monkeypatch):
    struct = {"x": jax.ShapeDtypeStruct((3,), np.float32)}
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path, "lora", struct, "origin") as writer:
        writer.write("x", 0, np.ones(1, np.float32))
        raise KeyboardInterrupt
    monkeypatch.setattr(writer_module, "_boot", lambda: "another")
    with Writer(tmp_path, "lora", struct, "origin") as writer:
        assert not writer.has("x", 0)


def test_layers_written_together():
    assert importing.layers_together((19, 3072, 12288), 2) == 1
    assert importing.layers_together((38, 3072, 9216), 2) == 1
    assert importing.layers_together((19, 3072), 2) == 19
    assert importing.layers_together((32128, 4096), 2) == 8032  # divides the rows
    assert importing.layers_together((7,), 2**40) == 1


@pytest.mark.parametrize("rows", (1, 2, 3, 4, 6))
def test_parts_are_read_across_chunks(rows, tmp_path, monkeypatch):
    x = np.arange(6 * 4 * 5, dtype=np.float32).reshape(6, 4, 5)
    monkeypatch.setattr(safetensors_store, "CHUNK_BYTES", rows * 4 * 5 * 4)
    weights.save(tmp_path, "lora", {"x": x}, {"config": {}})
    stored = weights.read(tmp_path, "lora")["x"]
    assert stored._chunk(0).shape[0] == rows
    for index in (
        (slice(1, 5), slice(None), slice(2, 3)),
        (slice(None), slice(1, 2), slice(None)),
        (slice(5, 6),) + (slice(None),) * 2,
    ):
        np.testing.assert_array_equal(stored.part(index), x[index])
    np.testing.assert_array_equal(stored[4], x[4])
    np.testing.assert_array_equal(np.asarray(stored), x)


@pytest.mark.parametrize("dtype", ("float32", "bfloat16", "float16"))
def test_numbers_that_are_not_finite_are_counted(dtype, tmp_path, capsys):
    tensors = {key: value.astype(dtype) for key, value in golden.tensors("projector").items()}
    key = "feature_embedder.high_projection.weight"
    tensors[key][0, :2] = np.nan, np.inf
    save_file(tensors, tmp_path / "x")
    main(["import", str(tmp_path / "x"), "--to", str(tmp_path / "w")])
    assert f"2 numbers in 1 tensors are NaN or infinite: {key}" in capsys.readouterr().err


def test_overflow_to_float16_is_counted(tmp_path, capsys):
    tensors = {key: value.astype(ml_dtypes.bfloat16) for key, value in golden.tensors("projector").items()}
    key = "feature_embedder.high_projection.weight"
    tensors[key][0, :3] = 65504, 1e6, -3e38
    save_file(tensors, tmp_path / "x")
    main(["import", str(tmp_path / "x"), "--to", str(tmp_path / "w"), "--dtype", "fp16"])
    assert "3 numbers in 1 tensors are too large for float16" in capsys.readouterr().err  # bfloat16 rounds 65504 up
    record = json.loads((tmp_path / "w" / "projector" / "manifest.json").read_text())
    assert record["dtype"] == "float16"
