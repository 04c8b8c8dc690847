# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Features in place of images: the same loss, made in parts by several processes, and only for the same encoders."""

import dataclasses
import itertools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from uso_jax.common.errors import BadExample, InputError
from uso_jax.data import features
from uso_jax.data.features import FeatureSource
from uso_jax.data.loader import batches
from uso_jax.data.sources import open_source
from uso_jax.models.uso import USO
from uso_jax.parallel import sharding
from uso_jax.planning import programs
from uso_jax.training import precompute, preflight
from uso_jax.training.fit import fit
from uso_jax.training.init import initial_params
from uso_jax.training.objectives import flow_matching
from uso_jax.training.validation import pipeline_options

pytestmark = pytest.mark.slow  # compiles or runs whole programs

COUNT = 34


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Write triplets of two shapes, without content or style here and there; give the settings that read them."""
    folder, items = tmp_path_factory.mktemp("images"), []
    for number in range(COUNT):
        size = (24, 12) if number % 3 == 0 else (16, 16)  # width, height
        noise = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3)).astype(np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
        item = dict(target=f"{number}.png", prompt=f"image number {number}")
        item |= dict(content=f"{(number + 1) % COUNT}.png") if number % 5 else {}
        item |= dict(styles=[f"{(number + 2) % COUNT}.png"]) if number % 4 else {}
        items.append(item)
    for split in ("train", "heldout"):
        (folder / f"{split}.json").write_text(json.dumps(items))
    paths = {f"data.json.{split}.path": str(folder / f"{split}.json") for split in ("train", "heldout")}
    return {"data.source": "json"} | paths


def config(changes, **stage):
    return tiny.config("joint", changes=changes, **stage)


def make(changes, path, split="train", **options):
    run = config(changes)
    return precompute.precompute(run, run.run_stages[-1], split, path, **({"shard_size": 12} | options))


@pytest.fixture(scope="module")
def encoded(images, tmp_path_factory):
    """Encode both splits; give the settings that read them."""
    folder, changes = tmp_path_factory.mktemp("features"), {"data.source": "features"}
    for split in ("train", "heldout"):
        assert make(images, folder / split, split) == COUNT
        changes[f"data.features.{split}.path"] = str(folder / split)
    return changes


def first_batches(run):
    stage = run.run_stages[-1]
    source = open_source(run.data.train, stage.data)
    return list(batches(source, batch_size=8, seed=0, shuffle=False, repeat=False, **pipeline_options(run, stage)))


def test_loss_equals_that_of_images(images, encoded):
    raw, ready = config(images), config(encoded)
    mesh = sharding.make_mesh(raw.mesh)
    systems = {"raw": USO(raw.system), "ready": precompute.build_system(ready)}
    assert set(systems["raw"].structures) - set(systems["ready"].structures) == {"siglip", "text"}
    stage = dataclasses.replace(raw.run_stages[-1], text_dropout=0.5, content_dropout=0.3, style_dropout=0.3)
    found = {"raw": [], "ready": []}
    everything = initial_params(raw, systems["raw"], sharding.shardings(mesh, raw.rules, systems["raw"].shapes), set())
    # Adapters start as zeros: without noise, conditions would count for less than they do later.
    noise = np.random.default_rng(0)
    add = lambda x: x + 0.1 * noise.standard_normal(x.shape).astype(np.float32)
    noisy = lambda x: jax.device_put(add(np.asarray(x)), x.sharding)
    everything = {p: noisy(x) if p.startswith("transformer") else x for p, x in everything.items()}
    for (name, system), run in zip(systems.items(), (raw, ready), strict=True):
        params = {path: everything[path] for path in system.shapes}
        stream = first_batches(run)

        def loss(params, batch, number, system=system):
            assert system.target_size(batch) == stage.target_size
            draws = flow_matching.draw(jax.random.key(number), system, stage)
            return flow_matching.loss(params, system, stage, batch, draws)

        compiled = jax.jit(loss)
        with jax.set_mesh(mesh):
            found[name] = [compiled(params, sharding.global_batch(mesh, batch), n) for n, batch in enumerate(stream)]
    raw_losses, ready_losses = (np.asarray(found[name]) for name in ("raw", "ready"))
    assert len(raw_losses) >= 2 and np.abs(raw_losses - ready_losses).max() < 1e-4 * raw_losses.min()


@pytest.fixture(scope="module")
def trained(encoded, tmp_path_factory):
    """Train on features; give the stage's summary and the directory."""
    workdir = tmp_path_factory.mktemp("trained")
    return fit(config(encoded, steps=2), workdir)["stages"][0], workdir


def test_training_reads_them(trained):
    made, workdir = trained
    assert 0 < made["heldout_loss_after"] != made["heldout_loss_before"] > 0
    assert list((workdir / "samples").iterdir())


def test_a_run_encodes_first(images, trained, tmp_path):
    """It trains as on features made beforehand, draws the user's samples, and refuses other data when it goes on."""
    folder = shutil.copytree(pathlib.Path(images["data.json.train.path"]).parent, tmp_path / "images")
    own, train = folder / "own.json", folder / "train.json"
    own.write_text(json.dumps([{"prompt": "a fox"}, {"styles": ["1.png"]}]))
    paths = {f"data.json.{split}.path": str(folder / f"{split}.json") for split in ("train", "heldout")}
    first = {"data.source": "json", "data.encode_first": True, "data.samples": str(own)} | paths
    made = fit(config(first, steps=2), tmp_path / "first")["stages"][0]
    for name in ("heldout_loss_before", "heldout_loss_after"):
        assert made[name] == pytest.approx(trained[0][name], rel=1e-6)
    (sheet,) = (tmp_path / "first" / "samples" / "own").iterdir()
    with Image.open(sheet) as own, Image.open(tmp_path / "first" / "samples" / sheet.name) as heldout:
        assert own.height == heldout.height  # two rows of either
    train.write_text(train.read_text().replace("number 3", "number three"))
    with pytest.raises(InputError, match="the train data has changed since"):
        fit(config(first, steps=2), tmp_path / "first")


def test_masks_and_regularisation_images_are_encoded_too(images, tmp_path):
    """A batch holds what the planner describes, which the training step accepts."""
    folder = pathlib.Path(images["data.json.train.path"]).parent
    items = json.loads((folder / "train.json").read_text())[:12]
    for number in range(12):
        shutil.copy(folder / f"{number}.png", tmp_path / f"{number}.png")
        with Image.open(tmp_path / f"{number}.png") as target:
            Image.fromarray(np.full(target.size[::-1], 255 * (number % 2), np.uint8)).save(tmp_path / f"m{number}.png")
    items = [dict(target=f"{n}.png", mask=f"m{n}.png", prompt=item["prompt"]) for n, item in enumerate(items)]
    (tmp_path / "train.json").write_text(json.dumps(items))
    (tmp_path / "class").mkdir()
    for number in range(4):
        shutil.copy(folder / f"{number + 12}.png", tmp_path / "class")
    data = {"data.source": "json", "data.json.train.path": str(tmp_path / "train.json"), "data.heldout_share": 0.1}
    data |= {"data.encode_first": True, "data.prior.path": str(tmp_path / "class"), "data.prior.caption": "a dog"}
    run = config(data | {"data.prior.loss_weight": 0.5}, outside_mask=0.25)
    run = precompute.encode_first(run, tmp_path / "features")
    assert sorted(path.name for path in (tmp_path / "features").iterdir()) == ["heldout", "prior", "train"]
    stage = run.run_stages[-1]
    stream = batches(open_source(run.data.train), batch_size=8, seed=0, shuffle=False, **pipeline_options(run, stage))
    batch = next(iter(stream))
    assert (batch["loss_weight"] == 0.5).sum() == 4
    for mask, weight in zip(batch["mask"], batch["loss_weight"], strict=True):
        assert mask.min() == mask.max() and (weight == 1 or mask.min() == 1)
    assert {mask.max() for mask in batch["mask"][batch["loss_weight"] == 1]} == {0, 1}
    _, (planned,) = programs.build_programs(run, jax.devices(), programs.Choices("train"))
    shapes = {name: (value.shape, value.dtype) for name, value in planned.arguments[2].items()}
    assert shapes == {name: (value.shape, value.dtype) for name, value in batch.items()}
    with jax.set_mesh(sharding.make_mesh(run.mesh)):
        assert jax.eval_shape(planned.function, *planned.arguments)[1]["loss"].shape == ()
    manifest = tmp_path / "features" / "heldout" / "manifest.json"
    manifest.write_text(json.dumps({k: v for k, v in json.loads(manifest.read_text()).items() if k != "masks"}))
    with pytest.raises(InputError, match="holds no masks, which stage 'joint' reads"):
        preflight.check_features(run)


def test_what_cannot_be_encoded_first(images, encoded, tmp_path):
    with pytest.raises(InputError, match="encoded already"):
        preflight.check_features(config(encoded | {"data.encode_first": True}))
    with pytest.raises(InputError, match="trains autoencoder, siglip"):
        preflight.check_features(config(images | {"data.encode_first": True}, train=((".*", 1.0),)))
    with pytest.raises(InputError, match="samples"):
        preflight.check_data(config(images | {"data.samples": str(tmp_path / "none.json")}))


def test_examples_keep_their_shapes(tmp_path):
    manifest = dict(fingerprint={}, shards=1, num_styles=2, downscale=2)
    zeros = lambda *shape: np.zeros(shape, np.float32)
    features.write_manifest(tmp_path, manifest, dict(txt=zeros(5, 4), vec=zeros(4), style=zeros(3, 4, 6)))
    records = []
    for number in range(24):
        rows, columns = (6, 12) if number % 4 == 0 else (8, 8)
        record = dict(target_moments=zeros(rows, columns, 8) + number, txt=zeros(5, 4), vec=zeros(4))
        record |= dict(content_moments=zeros(8, 8, 8)) if number % 2 else {}
        record |= dict(style_features=zeros(1, 3, 4, 6) + 1) if number % 3 else {}
        record |= dict(subject_label=np.array(-1, np.int32), style_label=np.array(-1, np.int32), index=np.array(number))
        records.append(((2 * rows, 2 * columns, 16, 16), record))
    features.write_shard(tmp_path, 0, records, {})
    options = dict(target_size=(16, 16), content_size=(16, 16), style_size=(4, 4), num_styles=2, tokenize=lambda _: {})
    stream = batches(FeatureSource(tmp_path), batch_size=4, seed=0, target_sizes=((16, 16), (12, 24)), **options)
    seen = set()
    for batch in itertools.islice(stream, 12):  # more than an epoch of either shape
        numbers = batch["target_moments"][:, 0, 0, 0].astype(int)
        assert batch["target_moments"].shape[1:3] == ((6, 12) if numbers[0] % 4 == 0 else (8, 8))
        assert batch["content_valid"].tolist() == (numbers % 2 == 1).tolist()
        assert batch["style_valid"].tolist() == [[n % 3 > 0, False] for n in numbers]
        assert (batch["style_features"].max((2, 3, 4)) == batch["style_valid"]).all()
        seen |= set(numbers.tolist())
    assert seen == set(range(24))


def test_processes_and_a_stopped_run_make_the_same_files(images, encoded, tmp_path, monkeypatch):
    whole = FeatureSource(encoded["data.features.train.path"])
    make(images, tmp_path, process=(1, 2))
    assert [path.name for path in tmp_path.glob("*.array_record")] == ["00001.array_record"]
    with pytest.raises(InputError, match="lacks 2 of 3 shards, the first is 00000"):
        FeatureSource(tmp_path)
    reads = []

    def stop(self, *args):
        reads.append(self)
        if len(reads) > 30:
            raise KeyboardInterrupt
        return original(self, *args)

    from uso_jax.data.storage.places import Place

    original = Place.decode
    with monkeypatch.context() as patch:
        patch.setattr(Place, "decode", stop)
        with pytest.raises(KeyboardInterrupt):
            make(images, tmp_path, process=(0, 2))
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))
    make(images, tmp_path, process=(0, 2))
    parts = FeatureSource(tmp_path)
    assert len(parts) == len(whole) == COUNT and np.array_equal(parts.sizes(), whole.sizes())
    for index in range(COUNT):
        a, b = parts[index], whole[index]
        assert set(a) == set(b) and all(np.array_equal(a[name], b[name]) for name in a)
    assert sorted(int(whole[index]["index"]) for index in range(COUNT)) == list(range(COUNT))


def test_other_settings_are_refused(images, encoded, tmp_path):
    path = encoded["data.features.train.path"]
    with pytest.raises(InputError, match="made by another autoencoder and t5 and clip and siglip than"):
        preflight.check_features(config(encoded | {"seed": 1}))
    with pytest.raises(InputError, match="made by another siglip than"):
        preflight.check_features(config(encoded | {"model.siglip.layer_norm_eps": 1e-5}))
    with pytest.raises(InputError, match=r"features of other settings \(fingerprint differ\)"):
        make(images | {"seed": 1}, path)
    with pytest.raises(InputError, match=r"was made for targets of \(16, 16\) and content of \(16, 16\) pixels"):
        first_batches(config(encoded, target_size=(24, 16)))
    with pytest.raises(InputError, match="made for num_styles 1, not 2"):
        first_batches(config(encoded | {"data.num_styles": 2}))
    with pytest.raises(InputError, match="holds no features: create them with"):
        FeatureSource(tmp_path)
    with pytest.raises(InputError, match="reads one source of images"):
        make(encoded, tmp_path / "again")
    with pytest.raises(InputError, match="process 2/2"):
        make(images, tmp_path / "again", process=(2, 2))
    mixed = {"data.source": "mixture", "data.mixture.weights.json": 1.0, "data.mixture.weights.features": 1.0}
    paths = {name: value for name, value in (images | encoded).items() if name != "data.source"}
    with pytest.raises(InputError, match="of images or of features, not of both"):
        first_batches(config(mixed | paths))
    trains = tiny.config("joint", changes=encoded, train=((r"text/.*", 1.0), (r".*", None)))
    with pytest.raises(InputError, match="trains text"):
        preflight.check_features(trains)


def test_half_precision_and_damage(images, tmp_path):
    make(images, tmp_path, dtype="bfloat16")
    source = FeatureSource(tmp_path)
    assert source[0]["txt"].dtype == source[1]["style_features"].dtype == "bfloat16"
    assert source[0]["target_moments"].dtype == np.float32
    file = tmp_path / "00000.array_record"
    data = bytearray(file.read_bytes())
    file.write_bytes(bytes(data[: len(data) // 2]))
    with pytest.raises((InputError, BadExample), match="damaged"):
        FeatureSource(tmp_path)[0]


def test_unreadable_examples_are_left_out_up_to_a_limit(images, tmp_path):
    items = json.loads(pathlib.Path(images["data.json.train.path"]).read_text())
    items[7]["target"] = "nothing.png"
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(COUNT):
        (folder / f"{number}.png").symlink_to(images["data.json.train.path"].replace("train.json", f"{number}.png"))
    (folder / "train.json").write_text(json.dumps(items))
    changes = images | {"data.json.train.path": str(folder / "train.json")}
    with pytest.raises(
        InputError, match=r"more examples cannot be read than data\.max_errors, 0, allows; the last: .*nothing\.png"
    ):
        make(changes, tmp_path / "a")
    make(changes | {"data.max_errors": 1}, tmp_path / "b")
    assert len(FeatureSource(tmp_path / "b")) == COUNT - 1
