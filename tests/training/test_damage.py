# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What crashes leave behind: damaged logs and checkpoints are set aside, and the run goes on."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uso_jax.common import atomic_files, locks
from uso_jax.common.errors import InputError
from uso_jax.parallel import sharding
from uso_jax.training import log_file, profiling
from uso_jax.training.checkpoints import Checkpoints, Damaged
from uso_jax.training.loggers import Identity
from uso_jax.training.metric_writer import Metrics
from uso_jax.training.record import RunRecord

ODD = [
    b"{}",
    b"null",
    b"[1]",
    b"7",
    b'{"step": "3"}',
    b'{"step": null}',
    b"\0" * 50,
    b"[" * 5000,
    b"\xff",
    b'{"step":',
    b"{",
]


def lines(path):
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def written(*steps):
    return b"".join(json.dumps({"step": step, "stage": "a", "loss": 0.5}).encode() + b"\n" for step in steps)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.lists(st.sampled_from([*range(1, 6), *ODD]), max_size=8), st.booleans())
def test_metrics_of_a_crash_never_stop_a_run(tmp_path_factory, found, torn):
    workdir = tmp_path_factory.mktemp("run")
    path = workdir / "metrics.jsonl"
    path.write_bytes(b"".join(written(one) if isinstance(one, int) else one + b"\n" for one in found) + b'{"st' * torn)
    metrics = Metrics(Identity(workdir, "project", {}, 3), ("tensorboard",))
    metrics.write(4, "a", {"loss": 1.0})
    metrics.close()
    assert [line["step"] for line in lines(path)] == [one for one in found if isinstance(one, int) and one <= 3] + [4]
    aside = workdir / "metrics.jsonl.damaged"
    assert (aside.read_bytes().split(b"\n")[:-1] if aside.exists() else []) == [
        x for x in found if isinstance(x, bytes)
    ]


def test_a_log_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "log"
    path.write_bytes(written(1, 2, 9))
    before = path.stat().st_ino
    monkeypatch.setattr(atomic_files, "write_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        log_file.reopen(path, dict, lambda line: line["step"] < 5)
    assert path.read_bytes() == written(1, 2, 9)
    log_file.reopen(path, dict)  # nothing to remove, so nothing is written
    assert path.stat().st_ino == before


def test_a_torn_speed_log_does_not_stop_the_attempt_after_the_next(tmp_path, capsys):
    path = tmp_path / profiling.FILE
    path.write_bytes(b'{"step": 1, "run_seconds": 5.0}\n{"step": 2, "run_sec')
    for expected in (5.0, 6.0):
        assert profiling.Speed(tmp_path, 0.0)._earlier == expected
        log_file.append(path, {"step": 3, "run_seconds": expected + 1})
    assert [line["step"] for line in lines(path)] == [1, 3, 3] and capsys.readouterr().err == ""


def test_a_log_that_is_a_folder(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").mkdir()
    Metrics(Identity(tmp_path, "project", {}, 0), ("tensorboard",)).close()
    assert "is not a file; it is moved to" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a folder with two checkpoints."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(folder)
    for step in (2, 4):
        checkpoints.save(step, {"x": jnp.full(3, float(step))}, RunRecord({}, step=step).to_json())
    checkpoints.wait()
    checkpoints.close()
    return folder


def like(record):
    try:
        RunRecord.from_json(record)
    except InputError as error:
        raise Damaged(str(error)) from error
    place = sharding.replicated(sharding.make_mesh({"data": -1}))
    return {"x": jax.ShapeDtypeStruct((3,), np.float32, sharding=place)}


RECORDS = [
    b"{}",
    b"null",
    b"[]",
    b"3",
    b'{"config": null, "stages": []}',
    b"[" * 3000 + b"]" * 3000,
    b"\0" * 9,
    b"",
    b"\xff\xfe",
]
RECORDS += [json.dumps(RunRecord({}).to_json() | odd).encode() for odd in ({"stage": "0"}, {"stages": [3]}, {"new": 1})]


@pytest.mark.parametrize("record", RECORDS)
def test_a_damaged_record_is_set_aside(record, saved, tmp_path, capsys):
    shutil.copytree(saved, tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "4" / "record" / "metadata").write_bytes(record)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    step, _, arrays = checkpoints.newest(like)
    checkpoints.close()
    assert step == 2 and float(arrays["x"][0]) == 2.0
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "cannot be read" in said and "the run goes on from step 2" in said
    assert (tmp_path / "damaged" / "4").is_dir()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax forgets a coroutine
@pytest.mark.parametrize("damage", [b"", b"{}", b"\0" * 64])
def test_any_damaged_file_of_a_checkpoint(damage, saved, tmp_path):
    for number, file in enumerate(sorted(path for path in (saved / "4").rglob("*") if path.is_file())):
        folder = tmp_path / str(number) / "checkpoints"
        shutil.copytree(saved, folder)
        (folder / "4" / file.relative_to(saved / "4")).write_bytes(damage)
        checkpoints = Checkpoints(folder)
        step, _, arrays = checkpoints.newest(like)
        checkpoints.close()
        assert (step, float(arrays["x"][0])) in ((2, 2.0), (4, 4.0))  # some files are not needed


def test_another_manager_leaves_a_save_in_progress_alone(tmp_path):
    first = Checkpoints(tmp_path / "checkpoints")
    first.save(4, {"x": jnp.zeros((3000, 3000))}, {})
    Checkpoints(tmp_path / "checkpoints").close()
    first.wait()
    assert first.latest() == 4
    first.close()


def test_one_checkpoint_more_than_is_kept(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "checkpoints")
    shutil.copytree(saved / "2", tmp_path / "checkpoints" / "1")
    (tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp").mkdir()
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1, keep_every=2)
    checkpoints.remove_old()
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "4"]


def test_files_of_killed_writers_are_removed(tmp_path):
    (tmp_path / "samples").mkdir()
    left = [tmp_path / ".a.png.999999999.tmp", tmp_path / "samples" / ".b.png.999999998.tmp"]
    mine = [tmp_path / ".a.png.tmp", tmp_path / "samples" / "b.png"]
    for path in left + mine:
        path.touch()
    with locks.hold(tmp_path):
        assert not any(path.exists() for path in left) and all(path.exists() for path in mine)
