# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a run does about itself: roll-backs, which checkpoints stay, and how it accounts for its time."""

import json

import jax
import jax.numpy as jnp
import pytest
import tiny
import training_runs as runs
from comparison import assert_same

import uso_jax.training.fit
import uso_jax.training.loop
from uso_jax.common.errors import InputError
from uso_jax.hardware import chips
from uso_jax.parallel import sharding
from uso_jax.training import profiling
from uso_jax.training.checkpoints import Checkpoints
from uso_jax.training.fit import fit

pytestmark = pytest.mark.slow  # compiles or runs whole programs


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


def config(changes=None):
    return tiny.config("joint", changes={"checkpoint.every": 2} | (changes or {}), steps=6)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Run without trouble."""
    workdir = tmp_path_factory.mktemp("straight")
    seen: list[str] = []
    with runs.watched() as watch, pytest.MonkeyPatch.context() as patch:
        patch.setattr(uso_jax.training.fit.Watchdog, "beat", lambda self, where: seen.append(where))
        run = runs.Straight(workdir, fit(config(), workdir), watch)
    # The watchdog sees every step.
    assert [where for where in seen if where.startswith("after step")] == [
        f"after step {step}, stage 'joint'" for step in range(1, 7)
    ]
    return run


# ---------------------------------------------------------------------------------------------------- roll-backs


@pytest.fixture
def poisoned():
    """Return the list of batches, by the digests of `watched`, whose step becomes non-finite."""
    bad: list[str] = []
    make = uso_jax.training.loop.jit_train_step

    def jit_train_step(*arguments):
        step = make(*arguments)

        def wrapped(state, frozen, batch):
            state, values = step(state, frozen, batch)
            if runs.digest(jax.device_get(batch)) in bad:
                state.params = jax.tree.map(lambda x: x * jnp.nan, state.params)
                values = values | {"loss": values["loss"] * jnp.nan}
            return state, values

        return wrapped

    with pytest.MonkeyPatch.context() as patch:  # not `monkeypatch`: what is traced is that of the other tests
        patch.setattr(uso_jax.training.loop, "jit_train_step", jit_train_step)
        yield bad


def consumed(straight, *numbers):
    return [straight.watch.batches[number - 1] for number in numbers]


def test_roll_back_past_a_bad_batch(straight, poisoned, tmp_path, capsys):
    poisoned += consumed(straight, 4)
    settings = config({"guard.max_rollbacks": 2})
    with runs.watched() as watch:
        summary = fit(settings, tmp_path)
    # A save is due at step 4, so it is known there. Steps 3 and 4 are done again, with the batches after the bad one.
    assert watch.batches[:6] == consumed(straight, 1, 2, 3, 4, 5, 6) and len(watch.batches) == 8
    assert summary["rollbacks"] == [{"stage": "joint", "step": 4, "to": 2}]
    assert [line["step"] for line in runs.metrics(tmp_path) if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert "stage 'joint' diverged at step 4: loss nan" in (error := capsys.readouterr().err)
    assert "going on from step 2 without the batches up to it" in error
    saved = jax.tree.leaves(watch.saved[6]["params"])
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in saved)

    # Stopped after the roll-back and before the next save, it comes to the same end.
    again = tmp_path / "again"
    with runs.watched(runs.interrupt(len(watch.batches) - 3)), pytest.raises(KeyboardInterrupt):
        fit(settings, again)
    with runs.watched() as resumed:
        assert fit(settings, again)["rollbacks"] == summary["rollbacks"]
    assert_same(resumed.saved[6], watch.saved[6])


def test_roll_back_to_the_start(straight, poisoned, tmp_path):
    poisoned += consumed(straight, 1)
    with runs.watched() as watch:
        summary = fit(config({"guard.max_rollbacks": 1}), tmp_path)
    assert summary["rollbacks"] == [{"stage": "joint", "step": 1, "to": 0}]
    assert watch.batches[-6:-1] == consumed(straight, 2, 3, 4, 5, 6)


def test_too_many_roll_backs(straight, poisoned, tmp_path):
    poisoned += consumed(straight, 3, 4, 5)
    with pytest.raises(InputError, match=r"diverged at step 3: .* after 2 roll-backs; the last good .* is step 2"):
        fit(config({"guard.max_rollbacks": 2}), tmp_path)
    assert not (tmp_path / "summary.json").exists()


def test_settings_that_make_no_sense():
    with pytest.raises(InputError, match="max_rollbacks and watchdog_seconds must not be negative"):
        config({"guard.max_rollbacks": -1})
    with pytest.raises(InputError, match="profile: start 2 must not be negative, nor steps 0 less than 1"):
        config({"profile.start": 2, "profile.steps": 0})


# ---------------------------------------------------------------------------------------------------- the rest


def test_which_checkpoints_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2, keep_every=30)
    for step in range(10, 80, 10):
        checkpoints.save(step, {"x": jnp.zeros(3)}, {"step": step})
    checkpoints.wait()
    assert sorted(int(path.name) for path in checkpoints.directory.iterdir()) == [30, 60, 70]
    checkpoints.close()


def test_a_save_holds_what_was_there_when_it_began(tmp_path):
    checkpoints, change = Checkpoints(tmp_path / "checkpoints"), jax.jit(lambda x: x + 1, donate_argnums=0)
    x, record = change(jnp.zeros(100_000)), {"seen": [1]}
    checkpoints.save(1, {"x": x}, record)
    for _ in range(20):
        x = change(x)
    record["seen"].append(2)
    checkpoints.wait()
    place = sharding.replicated(sharding.make_mesh({"data": -1}))
    like = {"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)}
    step, record, arrays = checkpoints.newest(lambda record: like)
    assert (step, record) == (1, {"seen": [1]}) and bool((arrays["x"] == 1).all())
    checkpoints.close()


@pytest.fixture
def chips_with_a_peak():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chips, "peak_flops", lambda kind: 1e12)
        yield


def test_speed(straight):
    lines = [json.loads(line) for line in (straight.workdir / profiling.FILE).read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 5, 6]  # the first step is compilation
    for line in lines:
        assert 0 < line["goodput"] < 1 and "mfu" not in line
        assert line["samples_per_second"] == pytest.approx(8 / line["step_seconds"])
    assert [line["run_seconds"] for line in lines] == sorted(line["run_seconds"] for line in lines)


def test_goodput_and_operations(chips_with_a_peak, tmp_path):
    # Had these devices a peak, there would be an MFU; a second attempt counts the first one's time.
    with runs.watched(runs.interrupt(4)), pytest.raises(KeyboardInterrupt):
        fit(config(), tmp_path)
    first = [json.loads(line) for line in (tmp_path / profiling.FILE).read_text().splitlines()]
    fit(config(), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / profiling.FILE).read_text().splitlines()][len(first) :]
    assert first[-1]["run_seconds"] < lines[0]["run_seconds"]
    operations = {round(line["tflops_per_device"] * line["step_seconds"] * 8 * 1e12) for line in first + lines}
    assert max(operations) - min(operations) <= 2 and min(operations) > 1e6
    for line in first + lines:
        assert line["mfu"] == pytest.approx(line["tflops_per_device"])


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA L40S", None),
        ("TPU v9", None),
        ("cpu", None),
    ],
)
def test_peaks(kind, tflops):
    assert chips.peak_flops(kind) == (tflops and tflops * 1e12)
