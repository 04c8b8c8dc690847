# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A run that changes: settings and data are refused on resume, and --init_from is the way onward."""

import errno
import json
import os
import pathlib

import numpy as np
import pytest
import tiny
import training_runs as runs
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import uso_jax.training.fit
from uso_jax.common.errors import InputError
from uso_jax.data.fingerprint import fingerprint
from uso_jax.data.sources import open_source
from uso_jax.training import preflight
from uso_jax.training.fit import fit

STEPS = 2


def config(changes=None, run=("joint",), **stage):
    return tiny.config(*run, changes={"checkpoint.every": 2} | (changes or {}), steps=STEPS, ema_decay=0.5, **stage)


@pytest.fixture(scope="module")
def first(tmp_path_factory, compiled):
    """Train the projector and the adapters on files; return the run, its data and what it saved."""
    keep = tiny.compile_cheaply(compiled)
    next(keep)
    folder = tmp_path_factory.mktemp("data")
    data = runs.json_data(folder, [{"prompt": f"red {number}"} for number in range(9)])
    workdir = tmp_path_factory.mktemp("first") / "run"
    with runs.watched() as watch:
        summary = fit(config(data), workdir)
    yield runs.Straight(workdir, summary, watch), data, folder
    next(keep, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "stage", "named"),
    [
        ({}, {"learning_rate": 0.125}, r"stages\[0\].learning_rate was .*, is 0.125"),
        ({"seed": 5}, {"batch_size": 16}, r"seed was 0, is 5; stages\[0\].batch_size was 8, is 16"),
    ],
)
def test_other_settings_are_refused_with_the_way_onward(first, changes, stage, named):
    run, data, _ = first
    before = runs.files(run.workdir)
    with pytest.raises(InputError, match=rf"{named}.* --init_from {run.workdir} --workdir NEW"):
        fit(config(data | changes, **stage), run.workdir)
    assert runs.files(run.workdir) == before


@pytest.mark.slow
def test_other_rows_are_refused_with_the_way_onward(first, tmp_path):
    _, data, _ = first
    made = config(data | {"checkpoint.every": 1})
    with runs.watched(runs.interrupt(2)), pytest.raises(KeyboardInterrupt):
        fit(made, tmp_path / "run")
    list_file = pathlib.Path(data["data.json.train.path"])
    rows = json.loads(list_file.read_text())
    list_file.write_text(json.dumps(rows[:5]))
    try:
        with pytest.raises(InputError, match=r"has changed since .* \(examples was 9, is 5; rows was .*--init_from"):
            fit(made, tmp_path / "run")
    finally:
        list_file.write_text(json.dumps(rows))
    fit(made, tmp_path / "run")


@pytest.mark.slow
def test_a_new_run_starts_from_the_average_of_another(first, tmp_path, monkeypatch):
    run, data, _ = first
    old = run.watch.saved[STEPS]
    with runs.watched() as watch:
        # It trains the projector alone, and takes the adapters over.
        made = config(data, run=("style_alignment",), learning_rate=0.0)
        summary = fit(made, tmp_path / "new", init_from=run.workdir)
    new = watch.saved[STEPS]["params"]
    assert new.keys() == old["params"].keys()
    for path, value in new.items():
        np.testing.assert_allclose(value, old["ema"][path], rtol=0, atol=0)
    assert any((old["ema"][path] != value).any() for path, value in old["params"].items())
    assert summary["init_from"] == {"workdir": str(run.workdir), "step": STEPS}
    with monkeypatch.context() as patch:  # it continues without the other run
        patch.setattr(uso_jax.training.fit, "Origin", None)
        assert fit(made, tmp_path / "new") == fit(made, tmp_path / "new", init_from=run.workdir) == summary
    with pytest.raises(InputError, match=f"began from {run.workdir}; choose another --workdir"):
        fit(made, tmp_path / "new", init_from=tmp_path)


@pytest.mark.slow
def test_a_finished_run_writes_nothing(first, tmp_path, monkeypatch):
    run, data, _ = first
    before = {path: path.stat().st_mtime_ns for path in run.workdir.rglob("*") if path.is_file()}
    assert fit(config(data), run.workdir) == run.summary
    monkeypatch.setattr(preflight, "can_write", lambda workdir: False)  # a superuser may write anywhere
    assert fit(config(data), run.workdir) == run.summary
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(InputError, match=f"cannot use --workdir {tmp_path}: it is not writable"):
        fit(config(data), tmp_path)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOSPC, errno.ENOENT, errno.EACCES])
def test_errors_of_the_file_system_are_sentences(number, tmp_path):
    with (
        pytest.raises(InputError, match=f"cannot write to {tmp_path / 'x'}: {os.strerror(number)}. .* same command"),
        uso_jax.training.fit._explained(tmp_path),
    ):
        raise OSError(number, os.strerror(number), str(tmp_path / "x"))


def test_a_run_without_checkpoints_is_no_origin(tmp_path):
    with pytest.raises(InputError, match="no checkpoint; give the --workdir of a training"):
        fit(config(), tmp_path / "run", init_from=tmp_path)
    assert not (tmp_path / "run" / "checkpoints" / "0").exists()


# ---------------------------------------------------------------------------------------------------- fingerprints


def rows(folder: pathlib.Path, items: list) -> dict:
    data = runs.json_data(folder, items)
    return fingerprint(open_source({"name": "json", "path": data["data.json.train.path"]}))


@settings(deadline=None, max_examples=15, derandomize=True)
@given(st.lists(st.text("abc", min_size=1, max_size=3), min_size=2, max_size=5, unique=True), st.data())
def test_any_change_of_rows_changes_the_fingerprint(tmp_path_factory, prompts, data):
    folder = tmp_path_factory.mktemp("rows")
    items = [{"prompt": prompt} for prompt in prompts]
    same = rows(folder, items)
    assert rows(folder, items) == same and same["examples"] == len(items)
    at = data.draw(st.integers(0, len(items) - 1))
    for other in (items[:at] + items[at + 1 :], items[::-1], [*items[:at], {"prompt": "new"}, *items[at + 1 :]]):
        if other:
            assert rows(folder, other) != same


def test_replaced_images_change_the_fingerprint(tmp_path):
    before = rows(tmp_path, [{"prompt": "red"}])
    Image.effect_noise((16, 16), 50).convert("RGB").save(tmp_path / "good.png")
    source = {"name": "json", "path": str(tmp_path / "train.json")}
    assert fingerprint(open_source(source)) != before
    os.utime(tmp_path / "good.png", (1, 1))
    assert fingerprint(open_source(source)) == fingerprint(open_source(source))


def test_drawn_data_and_mixtures(tmp_path):
    drawn = {"name": "procedural", "split": "train", "size": 16, "length": 8}
    data = runs.json_data(tmp_path, [{}])
    listed = {"name": "json", "path": data["data.json.train.path"]}
    parts = [drawn | {"weight": 1}, listed | {"weight": 2}]
    found = fingerprint(open_source({"name": "mixture", "parts": parts}))
    assert found == [{"examples": 8}, fingerprint(open_source(listed))]
