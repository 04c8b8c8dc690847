# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Kernels quantised on import: their errors, where they lie, and that everything else goes on as it does without."""

import os

import golden_files as golden
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors_library
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from convert import importing
from convert.__main__ import main
from uso_jax import weights
from uso_jax.common.errors import InputError
from uso_jax.models.flux import Flux
from uso_jax.params import ModelDef
from uso_jax.weights import quantization, safetensors_store
from uso_jax.weights.manifest_text import format_struct
from uso_jax.weights.quantized_kernels import join
from uso_jax.weights.writer import Writer

MODES = tuple(quantization.FORMATS)
FLUX = golden.DIR / "flux_tiny.safetensors"
CONFIG = golden.DIR / "config.json"
STACKED = "double_blocks/img_mlp/in_layer/kernel"
pytestmark = pytest.mark.skipif("USO_GOLDEN" in os.environ, reason="counts on the sizes of the tiny files")


@pytest.fixture(autouse=True)
def small_kernels(monkeypatch):
    """The tiny model's kernels count as large, and as several groups; layers are written one by one."""
    monkeypatch.setattr(quantization, "SMALLEST", 2**10)
    monkeypatch.setattr(quantization, "GROUP", 16)
    monkeypatch.setattr(importing, "STACK_BYTES", 2**14)
    monkeypatch.setattr(safetensors_store, "CHUNK_BYTES", 2**14)


def bring(to, *more, file=FLUX):
    main(["import", *map(str, (file, "--config", CONFIG, "--to", to, *more))])
    return to


def kernel(shape, dtype, order):
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    x[..., 5] = 0
    x[..., 6] *= 1e-3
    x[..., 7] *= 1000
    return np.array(x, order=order)


# ---------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("shape", ((48, 10), (3, 48, 10)))
@pytest.mark.parametrize("mode", MODES)
def test_errors_are_bounded(mode, shape, order, tmp_path):
    x = kernel(shape, np.float32, order)
    struct = jax.ShapeDtypeStruct(x.shape, np.float32)
    values, scales = quantization.quantise(x, mode)
    groups = 3 if mode == "int4" else 1
    assert scales.shape == (*shape[:-2], groups, 10) and scales.dtype == np.float32
    assert {"x": values, "x_scale": scales}.keys() == quantization.stored("x", struct, mode).keys()
    manifest = {"config": {}, "quantization": {"mode": mode, "parameters": {"x": format_struct(struct)}}}
    weights.save(tmp_path, "t5", {"x": values, "x_scale": scales}, manifest)
    got = weights.read(tmp_path, "t5")["x"]
    step = np.repeat(scales, 48 // groups, axis=-2)
    error = np.abs(np.asarray(got) - x)
    # float8 has 3 bits behind the leading one, and steps of 2**-9 below its smallest normal number.
    bound = np.maximum(np.abs(x) * 2**-4, step * 2**-10) if mode == "fp8" else step / 2
    assert np.all(error <= bound * (1 + 1e-5))
    assert not np.any(np.asarray(got)[..., 5]) and np.all(scales[..., 5] == 1)
    limit = quantization.FORMATS[mode][1]
    np.testing.assert_allclose(scales[..., 7] * limit, np.abs(x[..., 7]).reshape(*shape[:-2], groups, -1).max(-1))
    for index in ((slice(5, 40), slice(3, 8)), (slice(0, 48), slice(1, 2)), (slice(17, 18), slice(4, 10))):
        index = (slice(1, 3), *index) if len(shape) == 3 else index
        np.testing.assert_array_equal(got.part(index), np.asarray(got)[index])
    np.testing.assert_array_equal(got[1], np.asarray(got)[1])


def test_rounds_to_nearest_even():
    x = np.array([[127.0, -127.0], [0.5, 1.5], [2.5, -0.5]], np.float32)
    np.testing.assert_array_equal(quantization.quantise(x, "int8")[0], [[127, -127], [0, 2], [2, 0]])


def test_float8_is_cast_as_ml_dtypes_does():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    every = every[np.abs(every) <= 448]
    ties = np.arange(-126, 127, dtype=np.int8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    ties = ties[np.isfinite(ties)]
    ties = np.concatenate([np.nextafter((ties[1:] + ties[:-1]) / 2, np.float32(at)) for at in (-500, 500)])
    for x in (every, ties[np.abs(ties) <= 448]):
        got = quantization._float8(x)
        np.testing.assert_array_equal(got.view(np.uint8), x.astype(ml_dtypes.float8_e4m3fn).view(np.uint8))


@pytest.mark.parametrize("mode", MODES)
def test_what_is_not_finite_or_tiny(mode):
    x = np.zeros((48, 4), np.float32)
    x[0, :3], x[1, :3], x[:2, 3] = np.nan, (np.inf, -np.inf, 3), (1e-45, -1e-45)
    values, scales = quantization.quantise(x, mode)
    assert np.isfinite(scales).all() and np.isfinite(values.astype(np.float32)).all()
    assert np.all(scales > 0) and scales[0, 2] == np.float32(3 / quantization.FORMATS[mode][1])


# ---------------------------------------------------------------------------------------------------- import


@pytest.mark.parametrize("mode", MODES)
def test_import(mode, tmp_path, capsys):
    whole, to = bring(tmp_path / "whole"), bring(tmp_path / "w", "--quantize", mode)
    record = weights.manifest(to, "transformer")
    chosen = record["quantization"]["parameters"]
    assert record["quantization"]["mode"] == mode and record["dtype"] == "float32"
    assert record["parameters"] == weights.manifest(whole, "transformer")["parameters"]
    assert f"{len(chosen)} kernels {mode}" in capsys.readouterr().out
    assert "double_blocks/img_mod/lin/kernel" in chosen and "txt_in/kernel" not in chosen and STACKED in chosen
    assert all(path.endswith("/kernel") for path in chosen)
    assert weights.shapes(to, "transformer") == weights.shapes(whole, "transformer")
    on_disk = safetensors_store.open_safetensors(to / "transformer", record["tensors"])
    assert on_disk[f"{STACKED}_scale"].shape == (2, 2 if mode == "int4" else 1, 128)
    for path, want in weights.read(whole, "transformer").items():
        got = weights.read(to, "transformer")[path]
        if path in chosen:
            values, scales = quantization.quantise(np.asarray(want), mode)
            np.testing.assert_array_equal(np.asarray(on_disk[path]), values)
            np.testing.assert_array_equal(np.asarray(on_disk[f"{path}_scale"]), scales)
            assert np.abs(np.asarray(got) - want).max() <= scales.max() * {"fp8": 16}.get(mode, 0.5)
        else:
            np.testing.assert_array_equal(got, want)


def test_other_programs_read_it(tmp_path):
    for mode in MODES:
        to = bring(tmp_path / mode, "--quantize", mode)
        got = safetensors_library.load_file(to / "transformer" / "params.safetensors")
        assert got.keys() == weights.manifest(to, "transformer")["tensors"].keys()
        values = got[STACKED]
        if mode == "int4":
            values = np.stack([values << 4 >> 4, values >> 4], -1).reshape(*values.shape[:-1], -1)
        groups = got[f"{STACKED}_scale"].shape[1]
        product = values.astype(np.float32) * np.repeat(got[f"{STACKED}_scale"], values.shape[1] // groups, 1)
        np.testing.assert_array_equal(product, weights.read(to, "transformer")[STACKED])


def test_small_tensors_adapters_and_projector_stay(tmp_path, capsys):
    structs = weights.shapes(bring(tmp_path / "w"), "transformer")
    assert STACKED in quantization.choose("transformer", structs)
    assert not quantization.choose("lora", structs) and not quantization.choose("projector", structs)
    others = {"c/kernel": (3, 3, 64, 64), "n/scale": (4096,), "e/embedding": (64, 64), "odd/kernel": (64, 63)}
    assert not quantization.choose(
        "t5", {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in others.items()}
    )
    bring(tmp_path / "l", "--quantize", "int8", file=golden.DIR / "dit_lora_tiny.safetensors")
    assert "no kernels to quantise" in capsys.readouterr().err
    assert "quantization" not in weights.manifest(tmp_path / "l", "lora")


def test_it_goes_on_after_an_interruption(tmp_path, monkeypatch):
    want, to = bring(tmp_path / "whole", "--quantize", "int4"), tmp_path / "w"
    write, done = Writer.write, []

    def interrupted(self, path, row, array):
        if len(done) in (13, 14, 40, 41):  # also between scales and numbers
            done.append(None)
            raise KeyboardInterrupt
        write(self, path, row, array)
        done.append((path, row))

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "write", interrupted)
        for _ in range(4):
            with pytest.raises(SystemExit, match="130"):
                bring(to, "--quantize", "int4")
            assert weights.components(to) == []
        bring(to, "--quantize", "int4")
    again = [item for item in done if item and not item[0].endswith("_scale") and done.count(item) > 1]
    assert not again  # no work is lost
    files = lambda folder: {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert files(to) == files(want)
    # Chunks of another mode are not taken up.
    monkeypatch.setattr(Writer, "write", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(SystemExit, match="130"):
        bring(tmp_path / "x", "--quantize", "int8")
    monkeypatch.setattr(Writer, "write", write)
    assert files(bring(tmp_path / "x", "--quantize", "int4")) == files(want)


def test_kernels_are_not_cast_first(tmp_path):
    a, b = bring(tmp_path / "a", "--quantize", "int8"), bring(tmp_path / "b", "--quantize", "int8", "--dtype", "bf16")
    assert weights.manifest(b, "transformer")["dtype"] == "bfloat16"
    got, want = weights.read(b, "transformer")[STACKED], weights.read(a, "transformer")[STACKED]
    np.testing.assert_array_equal(got, np.asarray(want).astype(ml_dtypes.bfloat16))


def test_numbers_that_are_not_finite_are_reported(tmp_path, capsys):
    tensors = dict(golden.tensors("flux"))
    key = "double_blocks.0.img_mlp.0.weight"
    tensors[key] = tensors[key].copy()
    tensors[key][0, 0] = np.nan
    save_file(tensors, tmp_path / "x")
    bring(tmp_path / "w", "--quantize", "int8", file=tmp_path / "x")
    assert "NaN became 0" in capsys.readouterr().err
    assert np.isfinite(weights.read(tmp_path / "w", "transformer")[STACKED]).all()


def test_bad_mode(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        bring(tmp_path / "w", "--quantize", "int3")
    assert caught.value.code == 2 and not (tmp_path / "w").exists()
    assert "int3" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- use


@pytest.mark.parametrize("mode", MODES)
def test_load_sharded(mode, tmp_path):
    to = bring(tmp_path / "w", "--quantize", mode)
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    place = NamedSharding(mesh, P(None, "x", "y"))
    shapes = weights.shapes(to, "transformer")
    shapes = {
        path: jax.ShapeDtypeStruct(s.shape, ml_dtypes.bfloat16, sharding=place if path == STACKED else None)
        for path, s in shapes.items()
    }
    want = np.asarray(weights.read(to, "transformer")[STACKED])
    loaded = weights.load(to, "transformer", shapes)
    assert loaded.keys() == shapes.keys() and loaded[STACKED].sharding == place
    np.testing.assert_array_equal(loaded[STACKED], want.astype(ml_dtypes.bfloat16))
    found = weights.load_quantized(to, "transformer", shapes)
    chosen = weights.manifest(to, "transformer")["quantization"]["parameters"]
    assert found.keys() == shapes.keys() | {f"{path}_scale" for path in chosen}
    values, scales = found[STACKED], found[f"{STACKED}_scale"]
    assert values.dtype == quantization.FORMATS[mode][0] and values.sharding == place
    assert values.addressable_shards[0].data.shape == (2, 16, 32)
    assert scales.dtype == np.float32 and scales.addressable_shards[0].data.shape == (2, 1, 32)
    assert scales.shape == (2, 2 if mode == "int4" else 1, 128)
    groups = scales.shape[1]
    product = np.asarray(values).astype(np.float32) * np.repeat(np.asarray(scales), 32 // groups, 1)
    np.testing.assert_array_equal(product, want)
    assert found["img_in/bias"].dtype == ml_dtypes.bfloat16
    with pytest.raises(InputError, match="1 missing"):
        weights.load_quantized(to, "transformer", shapes | {"new": shapes[STACKED]})


def test_output_of_a_quantised_transformer(tmp_path):
    """The tiny random network amplifies errors more than a trained one would."""
    config = golden.flux_config(lora_rank=0, projector=None)
    structure = ModelDef(lambda rngs: Flux(config, rngs=rngs))
    run = jax.jit(
        lambda params, **how: golden.velocity(structure(join(params, **how)), "subject"), static_argnames="in_8_bits"
    )
    want, errors = None, {}
    for mode in (None, *MODES):
        to = bring(tmp_path / str(mode), *(("--quantize", mode) if mode else ()))
        got = np.asarray(run(weights.load(to, "transformer", structure.shapes)))
        want = got if mode is None else want
        error = lambda got, want=want: float(np.sqrt(np.mean((got - want) ** 2)) / want.std())
        errors[mode] = error(got)
        if mode in ("int8", "fp8"):
            found = weights.load_quantized(to, "transformer", structure.shapes)
            np.testing.assert_allclose(run(found), got, atol=1e-5 * np.abs(got).max())  # scaled after the products
            errors[f"{mode} products"] = error(run(found, in_8_bits=True))
    print(errors)
    assert 0 < errors["int8"] < 0.02 and errors["int8"] < errors["fp8"] < 0.06 and errors["fp8"] < errors["int4"] < 0.25
    assert errors["int8"] < errors["int8 products"] < 0.03 and errors["fp8"] < errors["fp8 products"] < 0.09


def test_export_dequantises(tmp_path, capsys):
    to = bring(tmp_path / "w", "--quantize", "int8")
    main(["export", str(to), "--format", "bfl", "--to", str(tmp_path / "out.safetensors")])
    assert "dequantised from int8" in capsys.readouterr().out
    got, want = load_file(tmp_path / "out.safetensors"), golden.tensors("flux")
    assert got.keys() == want.keys()
    for key in want:
        assert got[key].dtype == want[key].dtype
        assert np.abs(got[key] - want[key]).max() <= np.abs(want[key]).max() / 254 * (1 + 1e-5)
    main(["inspect", str(to)])
    assert "kernels int8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"mode": "int8"', '"mode": "int3"'),
        ('"mode": "int8"', '"mode": "fp8"'),
        ('"mode": "int8"', '"mode": []'),
        (f'"{STACKED}_scale": "float32', f'"{STACKED}_other": "float32'),
        ('"parameters": {', '"parameters": {"new": "float32[4]", "none": 4,'),
        ('"quantization": {', '"quantization": 3, "more": {'),
    ],
)
def test_damaged_manifests(old, new, tmp_path):
    path = bring(tmp_path / "w", "--quantize", "int8") / "transformer" / "manifest.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError, match="not a readable manifest"):
        weights.read(tmp_path / "w", "transformer")
