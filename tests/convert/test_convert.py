# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints into the weights directory and back, and everything that may be wrong with them."""

import errno
import hashlib
import json
import math
import os
import shutil

import golden_files as golden
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from convert import layouts
from convert.__main__ import main
from convert.recognition import recognise
from uso_jax import weights
from uso_jax.common.errors import InputError
from uso_jax.models.autoencoder import AutoEncoderConfig
from uso_jax.models.components import split_transformer
from uso_jax.models.flux import Flux, FluxConfig
from uso_jax.models.projector import ProjectorConfig
from uso_jax.models.siglip import SiglipConfig
from uso_jax.params import ModelDef
from uso_jax.weights import manifest_configs
from uso_jax.weights.files.safetensors_file import SafetensorsFile
from uso_jax.weights.manifest_text import FORMAT
from uso_jax.weights.stored_array import StoredArray
from uso_jax.weights.writer import Writer

FILES = {"transformer": "flux", "lora": "dit_lora", "projector": "projector", "siglip": "siglip", "autoencoder": "ae"}
if not golden.HAS_AUTOENCODER:
    del FILES["autoencoder"]
CONFIG = str(golden.DIR / "config.json")


def golden_path(component: str) -> str:
    return str(golden.DIR / f"{FILES[component]}_tiny.safetensors")


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A weights directory with all golden files, imported under names that say nothing."""
    tmp = tmp_path_factory.mktemp("convert")
    files = [shutil.copy(golden_path(c), tmp / f"{i}.bin") for i, c in enumerate(FILES)]
    main(["import", *map(str, files), "--to", str(tmp / "weights"), "--config", CONFIG])
    return tmp / "weights"


def fails(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in argv])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


def raw(path, header, data: bytes = b"", length: int | None = None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + data)
    return path


# ---------------------------------------------------------------------------------------------------- both ways


def test_components(imported):
    assert weights.components(imported) == sorted(FILES)
    assert sorted(path.name for path in imported.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("component", FILES)
def test_export_is_bit_exact(component, imported, tmp_path):
    out = tmp_path / "out.safetensors"
    main(["export", str(imported), "--component", component, "--to", str(out)])
    want, got = load_file(golden_path(component)), load_file(out)
    assert want.keys() == got.keys()
    for key in want:
        assert want[key].dtype == got[key].dtype and want[key].tobytes() == got[key].tobytes(), key
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]
    with safe_open(out, "np") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("component", FILES)
def test_manifest(component, imported):
    record = weights.manifest(imported, component)
    content = (golden.DIR / golden_path(component)).read_bytes()
    assert record["component"] == component and record["dtype"] == "float32"
    assert record["parameters"] == sum(x.size for x in load_file(golden_path(component)).values())
    assert record["sources"][0]["sha256"] == hashlib.sha256(content).hexdigest()
    assert record["sources"][0]["size"] == len(content)
    assert record["sources"][0]["file"].endswith(".bin")


def test_config(imported):
    assert weights.config(imported, "transformer", dtype="float32", remat="none") == golden.flux_config()
    assert weights.config(imported, "siglip") == SiglipConfig(**golden.CONFIG["siglip"])


def test_load_fills_the_model(imported):
    structure = ModelDef(lambda rngs: Flux(weights.config(imported, "transformer"), rngs=rngs))
    parts = split_transformer(structure.shapes)
    assert parts.keys() == {"transformer", "lora", "projector"}
    params = {k: v for name, shapes in parts.items() for k, v in weights.load(imported, name, shapes).items()}
    structure(params)
    for path, want in golden.flux_params().items():
        np.testing.assert_array_equal(params[path], want)


def test_lone_adapters_import_without_the_base(tmp_path, capsys):
    main(["import", golden_path("lora"), golden_path("projector"), "--to", str(tmp_path / "w"), "--dtype", "bfloat16"])
    assert weights.components(tmp_path / "w") == ["lora", "projector"]
    assert weights.manifest(tmp_path / "w", "lora")["dtype"] == "bfloat16"
    assert f"rank {golden.CONFIG['lora']['rank']}" in capsys.readouterr().out
    main(["export", str(tmp_path / "w"), "--component", "lora", "--to", str(tmp_path / "l.safetensors")])
    for key, value in load_file(tmp_path / "l.safetensors").items():
        np.testing.assert_array_equal(value, golden.tensors("dit_lora")[key].astype(ml_dtypes.bfloat16))


def test_shards_prefix_and_other_networks(tmp_path, capsys):
    tensors = {f"vision_model.{key}": value for key, value in golden.tensors("siglip").items()}
    half = list(tensors)[::2]
    save_file({key: tensors[key] for key in half}, tmp_path / "1")
    rest = {key: value for key, value in tensors.items() if key not in half}
    save_file({**rest, "logit_scale": np.ones(1, "f4"), "text_model.x": np.ones(3, "i8")}, tmp_path / "2")
    files = [str(tmp_path / "1"), str(tmp_path / "2")]
    main(["inspect", *files, "--config", CONFIG])
    out = capsys.readouterr().out
    assert "2 tensors of other networks" in out and "nothing missing" in out
    main(["import", *files, "--to", str(tmp_path / "w"), "--config", CONFIG])
    main(["export", str(tmp_path / "w"), "--component", "siglip", "--to", str(tmp_path / "out.safetensors")])
    got = load_file(tmp_path / "out.safetensors")
    assert got.keys() == tensors.keys()
    for key in got:
        np.testing.assert_array_equal(got[key], tensors[key])


def test_mixed_dtypes_stay_exact(tmp_path):
    tensors = dict(golden.tensors("dit_lora"))
    key = next(iter(tensors))
    tensors[key] = tensors[key].astype(np.float16)
    save_file(tensors, tmp_path / "mixed")
    main(["import", str(tmp_path / "mixed"), "--to", str(tmp_path / "w")])
    main(["export", str(tmp_path / "w"), "--component", "lora", "--to", str(tmp_path / "out.safetensors")])
    for name, value in load_file(tmp_path / "out.safetensors").items():
        np.testing.assert_array_equal(value, tensors[name])


def test_overwrite(tmp_path, capsys):
    to = tmp_path / "w"
    main(["import", golden_path("lora"), "--to", str(to)])
    assert "--overwrite" in fails_after(capsys, "import", golden_path("lora"), "--to", to)
    main(["import", golden_path("lora"), "--to", str(to), "--dtype", "bfloat16", "--overwrite"])
    assert weights.manifest(to, "lora")["dtype"] == "bfloat16"
    assert [path.name for path in to.iterdir()] == ["lora"]
    out = tmp_path / "out.safetensors"
    out.write_text("precious")
    assert "--overwrite" in fails_after(capsys, "export", to, "--component", "lora", "--to", out)
    assert out.read_text() == "precious"
    main(["export", str(to), "--component", "lora", "--to", str(out), "--overwrite"])
    assert load_file(out)


def fails_after(capsys, *argv) -> str:
    capsys.readouterr()
    return fails(capsys, *argv)


# ---------------------------------------------------------------------------------------------------- recognition


def released(path, name: str) -> SafetensorsFile:
    """A released checkpoint's header over a hole of the right size, which takes no room on the disk."""
    header, end = {}, 0
    for key, (shape, _) in golden.MANIFESTS[name].items():
        start, end = end, end + 2 * math.prod(shape)
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    raw(path, header)
    os.truncate(path, path.stat().st_size + end)
    return SafetensorsFile(path)


@pytest.mark.parametrize(
    ("name", "component", "want"),
    [
        ("flux1-dev.safetensors", "transformer", FluxConfig()),
        ("uso_flux_v1.0/dit_lora.safetensors", "lora", FluxConfig(lora_rank=128)),
        ("uso_flux_v1.0/projector.safetensors", "projector", FluxConfig(projector=ProjectorConfig())),
        ("siglip-so400m-patch14-384/model.safetensors (vision tower only)", "siglip", SiglipConfig()),
        ("ae.safetensors", "autoencoder", AutoEncoderConfig()),
    ],
)
def test_released_sizes_are_told_by_the_tensors(name, component, want, tmp_path):
    (found,) = recognise([[released(tmp_path / "x", name)]], {})
    found.check()
    assert found.family.component == component
    assert manifest_configs.describe(component, found.config) == manifest_configs.describe(component, want)


def test_foreign_networks_are_not_mistaken_for_siglip():
    keys = [f"vision_model.{key}" for key in golden.tensors("siglip")]
    assert [found[0].name for found in layouts.detect(keys)] == ["siglip"]
    assert layouts.detect([*keys, "vision_model.embeddings.class_embedding"]) == []


def test_inspect(capsys, imported):
    main(["inspect", golden_path("lora"), golden_path("transformer")])
    out = capsys.readouterr().out
    for text in ("uso-lora", "float32", f"rank {golden.CONFIG['lora']['rank']}", "axes_dim; import needs --config"):
        assert text in out
    main(["inspect", str(imported)])
    assert len(capsys.readouterr().out.splitlines()) == len(FILES)


def test_inspect_names_what_does_not_fit(capsys, tmp_path):
    tensors = dict(golden.tensors("projector"))
    gone = tensors.pop("feature_embedder.low_layer_norm.bias")
    save_file({**tensors, "feature_embedder.extra": gone}, tmp_path / "p")
    main(["inspect", str(tmp_path / "p")])
    out = capsys.readouterr().out
    assert "1: feature_embedder.low_layer_norm.bias" in out and "1: feature_embedder.extra" in out
    assert "does not fit the model" in out


# ---------------------------------------------------------------------------------------------------- untrusted files

TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "length", "message"),
    [
        ({}, b"", 10**15, "does not fit a file"),
        ({}, b"", 0, "does not fit a file"),
        (b"{not json", b"", None, "not valid JSON"),
        (b"[" * 20_000 + b"]" * 20_000, b"", None, "not valid JSON"),
        (b'{"a": {}, "a": {}}', b"", None, "occurs twice"),
        (b"\xff\xfe", b"", None, "not valid JSON"),
        ([1], b"", None, "not a JSON object"),
        ({"a": 3}, b"", None, "needs dtype"),
        ({"a\x1b[31m": TENSOR}, bytes(8), None, "control characters"),
        ({"a": TENSOR | {"dtype": "F99"}}, bytes(8), None, "dtype 'F99'"),
        ({"a": TENSOR | {"dtype": ["F32"]}}, bytes(8), None, "dtype ['F32']"),
        ({"a": TENSOR | {"shape": [3]}}, bytes(8), None, "does not take 8 bytes"),
        ({"a": TENSOR | {"shape": [2**62, 2**62]}}, bytes(8), None, "does not take 8 bytes"),
        ({"a": TENSOR | {"shape": [-2]}}, bytes(8), None, "non-negative"),
        ({"a": TENSOR | {"shape": [2.0]}}, bytes(8), None, "non-negative"),
        ({"a": TENSOR | {"shape": [True, 2]}}, bytes(8), None, "non-negative"),
        ({"a": TENSOR | {"data_offsets": [8, 0]}}, bytes(8), None, "cut short"),
        ({"a": TENSOR}, bytes(7), None, "cut short"),
        ({"a": TENSOR, "b": TENSOR}, bytes(8), None, "overlaps"),
        ({"a": TENSOR | {"data_offsets": [4, 12]}}, bytes(12), None, "gap"),
        ({"a": TENSOR}, bytes(9), None, "belong to no tensor"),
        ({"__metadata__": {"a": 1}}, b"", None, "__metadata__"),
    ],
)
def test_lying_headers(header, data, length, message, tmp_path, capsys):
    path = raw(tmp_path / "x", header, data, length)
    assert message in fails(capsys, "import", path, "--to", tmp_path / "w")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not fit a file"),
        (b"PK\x03\x04" + bytes(100), "not a valid torch file"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P", "not a valid torch file"),
        (b'{"weight_map": 3}', "nor an index of shards"),
        (b'{"weight_map": {"a": "../x"}}', "not the name of a file beside"),
        (b'{"weight_map": {"a": "gone"}}', "download the missing shard"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
        (b"GGUF" + bytes(100), "GGUF"),
    ],
)
def test_other_kinds_of_files(content, message, tmp_path, capsys):
    (tmp_path / "x").write_bytes(content)
    assert message in fails(capsys, "inspect", tmp_path / "x")


def test_a_header_may_be_as_long_as_another_kinds_first_bytes(tmp_path):
    header = json.dumps({"a": TENSOR}).encode()
    file = SafetensorsFile(raw(tmp_path / "x", header.ljust(0x0280), bytes(8)))
    assert (tmp_path / "x").read_bytes().startswith(b"\x80\x02")
    ((key, value),) = file
    assert key == "a" and value.shape == (2,)


def test_all_dtypes_are_read_as_written(tmp_path):
    tensors = {"scalar": np.full((), 3, "f4"), "empty": np.zeros((0, 3), "f4"), "odd": np.ones(3, "u1")}
    tensors |= {"b": np.arange(5).astype(ml_dtypes.bfloat16), "f": np.arange(4).astype(ml_dtypes.float8_e4m3fn)}
    save_file(tensors, tmp_path / "x")
    for key, value in SafetensorsFile(tmp_path / "x"):
        assert value.dtype == tensors[key].dtype and value.shape == tensors[key].shape
        np.testing.assert_array_equal(value, tensors[key])


# ---------------------------------------------------------------------------------------------------- misfits


def changed(tmp_path, change) -> str:
    tensors = dict(golden.tensors("dit_lora"))
    change(tensors)
    save_file(tensors, tmp_path / "x")
    return str(tmp_path / "x")


DOWN = "double_blocks.0.processor.proj_lora1.down.weight"
KEY = "single_blocks.1.processor.qkv_lora.up.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(KEY), f"1 missing ({KEY.removesuffix('.weight')})"),
        (lambda t: t.update({"other.weight": t[KEY]}), "1 stray (other.weight)"),
        (lambda t: t.update({KEY: t[KEY].T.copy()}), "1 of wrong shape"),
        (lambda t: t.update({KEY: t[KEY][1:].copy()}), "1 of wrong shape"),
        (lambda t: t.update({KEY: t[KEY].astype("i4")}), "int32, not floating"),
        (lambda t: t.update({KEY.replace("1", "999999999"): t[KEY]}), "999999999"),
        (lambda t: t.pop(DOWN), "1 missing (double_blocks.0.processor.proj_lora1.down)"),
        (lambda t: t.update({DOWN: np.zeros((2**40, 0), "f4")}), "not of one rank"),
        (
            lambda t: t.update(
                {DOWN: t[DOWN][:2].copy(), DOWN.replace("down", "up"): t[DOWN.replace("down", "up")][:, :2].copy()}
            ),
            "different ranks (2, 4)",
        ),
    ],
)
def test_tensors_that_do_not_fit(change, message, tmp_path, capsys):
    assert message in fails(capsys, "import", changed(tmp_path, change), "--to", tmp_path / "w")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_same_tensors_twice(tmp_path, capsys):
    assert "28 given twice" in fails(capsys, "import", *[golden_path("lora")] * 2, "--to", tmp_path / "w")


def test_shards_of_different_layouts(tmp_path, capsys):
    save_file({f"vision_model.{key}": value for key, value in golden.tensors("siglip").items()}, tmp_path / "x")
    argv = ["import", golden_path("siglip"), tmp_path / "x", "--to", tmp_path / "w", "--config", CONFIG]
    assert "must share a layout" in fails(capsys, *argv)


def test_unknown_family(tmp_path, capsys):
    save_file({"some.weight": np.ones(3, "f4")}, tmp_path / "x")
    err = fails(capsys, "inspect", tmp_path / "x")
    assert "some.weight" in err and "SigLIP" in err


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"flux": {"widht": 3}}', "unknown key flux.widht"),
        ('{"fluks": {}}', "unknown section 'fluks'"),
        ('{"flux": {"depth": "two"}}', "flux.depth must be of type int"),
        ('{"flux": {"depth": true}}', "flux.depth must be of type int"),
        ('{"flux": {"axes_dim": [4, 6.5, 6]}}', "list of integers"),
        ('{"flux": {"num_heads": 0}}', "must be positive"),
        ('{"flux": {"axes_dim": [4, 6, 8]}}', "must add up to the head width"),
        ('{"flux": {"depth": 4, "axes_dim": [4, 6, 6]}}', "missing"),
        ('{"flux": 3}', "must be a JSON object"),
        ("[]", "must be a JSON object"),
        ("{", "not valid JSON"),
        (None, "cannot be read"),
        ("{}", "flux.axes_dim"),
    ],
)
def test_wrong_configs(config, message, tmp_path, capsys):
    path = tmp_path / "c.json"
    if config is not None:
        path.write_text(config)
    argv = ["import", golden_path("transformer"), "--to", tmp_path / "w", "--config", path]
    assert message in fails(capsys, *argv)
    assert not (tmp_path / "w").exists()


def test_places_that_cannot_be_written(tmp_path, capsys, imported):
    (tmp_path / "file").write_text("precious")
    for to in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "not a writable directory" in fails(capsys, "import", golden_path("lora"), "--to", to)
    export = ["export", imported, "--component"]
    below = tmp_path / "file" / "below.safetensors"
    assert "make it first" in fails(capsys, *export, "lora", "--to", below)
    assert "is a file" in fails(capsys, *export, "lora", "--to", tmp_path / "file")
    assert "has no vae, only" in fails(capsys, *export, "vae", "--to", tmp_path / "out.safetensors")
    assert "has no ../" in fails(capsys, *export, "../x", "--to", tmp_path / "out.safetensors")
    assert "not a weights directory" in fails(
        capsys, "export", tmp_path / "no", "--component", "x", "--to", tmp_path / "o.safetensors"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failing_write_leaves_nothing_behind(tmp_path, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Writer, "write", full)
    assert "No space left" in fails(capsys, "import", golden_path("lora"), "--to", tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_export_leaves_nothing_behind(tmp_path, capsys, monkeypatch, imported):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(StoredArray, "part", full)
    assert "No space left" in fails(capsys, "export", imported, "--format", "uso", "--to", tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------- the directory


@pytest.fixture
def small(tmp_path):
    """A weights directory of one small adapter, and its parameters."""
    params = {"a/processor/x/kernel": np.arange(16 * 24, dtype=np.float32).reshape(16, 24) / 7, "a/b": np.ones(3, "f4")}
    weights.save(tmp_path, "lora", params, {"config": {"lora": {"rank": 4}}})
    return tmp_path, params


def test_load_places_and_casts(small):
    directory, params = small
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, P("x", "y"))
    shapes = weights.shapes(directory, "lora")
    shapes["a/processor/x/kernel"] = jax.ShapeDtypeStruct((16, 24), jnp.bfloat16, sharding=sharding)
    loaded = weights.load(directory, "lora", shapes)
    kernel = loaded["a/processor/x/kernel"]
    assert kernel.sharding == sharding and kernel.dtype == jnp.bfloat16 and len(kernel.addressable_shards) == 8
    assert kernel.addressable_shards[0].data.shape == (8, 6)
    np.testing.assert_array_equal(kernel, params["a/processor/x/kernel"].astype(jnp.bfloat16))
    assert loaded["a/b"].dtype == jnp.float32 and loaded["a/b"].sharding.device_set == {jax.devices()[0]}


def test_sharded_parameters_are_saved(small):
    directory, params = small
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    arrays = {"a/b": jax.device_put(params["a/processor/x/kernel"], NamedSharding(mesh, P("x")))}
    weights.save(directory, "projector", arrays, {"config": {}})
    loaded = weights.load(directory, "projector", weights.shapes(directory, "projector"))
    np.testing.assert_array_equal(loaded["a/b"], arrays["a/b"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("a/b"), "1 stray (a/b)"),
        (lambda s: s.update(new=s["a/b"]), "1 missing (new)"),
        (lambda s: s.update({"a/b": jax.ShapeDtypeStruct((4,), jnp.float32)}), "a/b is [3], not [4]"),
    ],
)
def test_load_of_other_shapes(change, message, small):
    shapes = dict(weights.shapes(small[0], "lora"))
    change(shapes)
    with pytest.raises(InputError) as caught:
        weights.load(small[0], "lora", shapes)
    assert message in str(caught.value)


def test_damaged_components(small):
    directory, _ = small
    shapes = weights.shapes(directory, "lora")
    file = directory / "lora" / "params.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"missing or incomplete; import or copy the lora again"):
        weights.load(directory, "lora", shapes)
    for bad in (
        b"\xff" * 8 + content[8:],
        content.replace(b"a/b", b"a/c"),
        content.replace(b"F32", b"I32"),
        content.replace(b"[3]", b"[4]"),
    ):
        assert len(bad) == len(content) and bad != content
        file.write_bytes(bad)
        with pytest.raises(InputError, match=r"cannot be read .*; import or copy the lora again"):
            weights.load(directory, "lora", shapes)
    manifest = directory / "lora" / "manifest.json"
    good = manifest.read_text()
    current = f'"format": {FORMAT}'
    for bad in ("{", "[]", "{}", good.replace("float32[3]", "float32[3"), good.replace(current, '"format": "x"')):
        manifest.write_text(bad)
        with pytest.raises(InputError, match=r"manifest"):
            weights.manifest(directory, "lora")
    for number, message in ((FORMAT + 1, "update uso_jax"), (1, "older program")):
        manifest.write_text(good.replace(current, f'"format": {number}'))
        with pytest.raises(InputError, match=message):
            weights.manifest(directory, "lora")
    manifest.unlink()
    assert weights.components(directory) == []
    with pytest.raises(InputError, match="has no lora, only nothing"):
        weights.load(directory, "lora", shapes)


def test_adapters_of_another_transformer(imported, tmp_path):
    shutil.copytree(imported, tmp_path / "w")
    path = tmp_path / "w" / "lora" / "manifest.json"
    record = json.loads(path.read_text())
    record["config"]["flux"]["depth"] += 1
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="lora was made for a transformer with depth"):
        weights.config(tmp_path / "w", "transformer")
