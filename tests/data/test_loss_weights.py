# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Masks of targets and regularisation images: what is read, and what a batch holds of them."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from uso_jax.common.errors import BadExample, InputError
from uso_jax.data.config import DataConfig, Files, Folder, Mixture, Path, Prior, Rooted
from uso_jax.data.loader import batches
from uso_jax.data.readers import FileTriplets, get_reader
from uso_jax.data.sources import open_source

SIZES = {"target_size": (16, 16), "content_size": (8, 8), "style_size": (8, 8), "num_styles": 1}


def image(path, colour, size=(32, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def left_half(path, size=(32, 32)):
    """Write a mask whose left half is white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[:, : size[0] // 2] = 255
    Image.fromarray(pixels).save(path)


def folder(root):
    return FileTriplets("folder", str(root), get_reader("folder")(root, caption="a dog"))


def first(source, **options):
    options = dict(batch_size=2, seed=0, shuffle=False, tokenize=lambda _: {}) | SIZES | options
    return next(iter(itertools.islice(batches(source, **options), 1)))


@pytest.fixture
def masked(tmp_path):
    """Write a flat folder of two targets of which the first has a mask."""
    for number in range(2):
        image(tmp_path / f"{number}.png", "red")
    left_half(tmp_path / "0.mask.png")
    return tmp_path


def test_masks_are_numbers_by_token(masked):
    source = folder(masked)
    assert (len(source), source.num_masks, source.left_out.total()) == (2, 1, 0)
    batch = first(source, mask_cell=4)
    assert batch["mask"].dtype == np.float32 and batch["mask"].shape == (2, 4, 4)
    assert batch["mask"][0].mean(0) == pytest.approx([1, 1, 0, 0], abs=0.05) and (batch["mask"][1] == 1).all()
    assert "mask" not in first(source)
    # A target of another shape is cropped, and its mask with it.
    wide = first(source, mask_cell=4, target_size=(8, 16))["mask"]
    assert wide.shape == (2, 2, 4) and wide[0].mean(0) == pytest.approx([1, 1, 0, 0], abs=0.05)


def test_masks_of_parts_and_lists_equal_those_of_a_flat_folder(masked, tmp_path):
    parts = tmp_path / "parts"
    for number in range(2):
        image(parts / "target" / f"{number}.png", "red")
    left_half(parts / "mask" / "0.png")
    items = [{"target": "0.png", "mask": "0.mask.png", "prompt": "a dog"}, {"target": "1.png", "prompt": "a dog"}]
    (masked / "list.json").write_text(json.dumps(items))
    wanted = first(folder(masked), mask_cell=4)["mask"]
    for source in (folder(parts), open_source({"name": "json", "path": str(masked / "list.json")})):
        assert np.array_equal(first(source, mask_cell=4)["mask"], wanted)
    (masked / "list.json").write_text(json.dumps([items[0] | {"mask": 3}]))
    with pytest.raises(InputError, match='"mask" must be an image file or null'):
        open_source({"name": "json", "path": str(masked / "list.json")})


def test_a_mask_of_another_size_is_refused(masked):
    left_half(masked / "0.mask.png", (16, 16))
    with pytest.raises(BadExample, match=r"0\.mask\.png .* is 16 x 16 and its target 32 x 32 pixels"):
        folder(masked)[0]


def test_rows_without_a_mask_are_what_they_were(tmp_path, monkeypatch):
    """A run that was begun before masks existed goes on with the same rows."""
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(b"x" * 10)
    monkeypatch.chdir(tmp_path)
    assert folder(".").digest() == "0963e6aa68dc528f"


# ---------------------------------------------------------------------------------------------------- prior


def test_regularisation_images_are_a_share_of_every_batch(tmp_path):
    for number in range(3):
        image(tmp_path / "own" / f"{number}.png", "red")
        image(tmp_path / "class" / f"{number}.png", "blue")
    prior = Prior(str(tmp_path / "class"), caption="a dog", share=0.25, loss_weight=0.5)
    own = Folder(Path(str(tmp_path / "own")), caption="zxq dog")
    config = DataConfig(source="folder", folder=own, heldout_share=0.4, prior=prior)
    config.check()
    source = open_source(config.train)
    assert source.weights == (0.75, 0.25) and source.loss_weights == (1.0, 0.5)
    tokenize = lambda prompt: {"ids": np.array([len(prompt)], np.int32)}
    for batch in itertools.islice(batches(source, batch_size=4, seed=0, tokenize=tokenize, **SIZES), 3):
        blue = batch["target"][:, 0, 0, 2] > 200
        assert blue.sum() == 1 and np.array_equal(batch["loss_weight"], np.where(blue, 0.5, 1).astype(np.float32))
        assert np.array_equal(batch["ids"][:, 0], np.where(blue, len("a dog"), len("zxq dog")))
    # What was held out has no regularisation images; equal weights need no entry.
    assert "loss_weight" not in first(open_source(config.heldout))
    assert open_source(DataConfig(folder=own, source="folder", prior=Prior(prior.path, caption="a dog")).train)


def test_regularisation_images_join_a_mixture_and_encoded_data():
    weights = {"json": 1.0, "folder": 3.0}
    data = dict(json=Rooted(Path("a.json")), folder=Folder(Path("b")), features=Files(Path("train")))
    config = DataConfig("mixture", mixture=Mixture(weights), prior=Prior("class", share=0.2), **data)
    found = {part["name"]: part["weight"] for part in config.train["parts"][:2]}
    assert found == pytest.approx({"json": 0.2, "folder": 0.6})
    assert config.train["parts"][2] == {"name": "folder", "path": "class", "caption": "", "weight": 0.2}
    assert config.splits == ("train", "heldout", "prior") and DataConfig().splits == ("train", "heldout")
    ready = DataConfig("features", prior=Prior("prior", kind="features", loss_weight=2.0), **data)
    assert ready.train["parts"][1] == {"name": "features", "path": "prior", "weight": 0.5, "loss_weight": 2.0}
    assert ready.asked() == ready.train and ready.alone("train") == {"name": "features", "path": "train"}
    for wrong in (Prior(share=1.0), Prior(loss_weight=-1.0), Prior(kind="json")):
        with pytest.raises(InputError, match=r"data\.prior"):
            DataConfig(prior=wrong).check()
