# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The fuzzer finds what it looks for, and every reader of its table accepts its samples."""

import random

import fuzz
import fuzz_targets
import pytest

from uso_jax.common.errors import InputError


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", fuzz_targets.TARGETS)
def test_samples_are_valid_and_damage_is_refused(name, tmp_path):
    target, rng = fuzz_targets.TARGETS[name], random.Random(0)
    (tmp_path / "samples").mkdir()
    target.samples(tmp_path / "samples")
    accepted = 0
    for number, sample in enumerate(sorted((tmp_path / "samples").iterdir())):
        for tried in range(4):
            path = tmp_path / f"{number}_{tried}{sample.suffix}"
            fuzz.damage_path(sample, path, rng if tried else _Harmless())
            try:
                target.read(path)
                accepted += not tried
            except InputError:
                pass
    assert accepted


class _Harmless(random.Random):
    """Chooses no fault at all."""

    def choice(self, values):
        return 0 if 5 in values else values[0]


def test_faults_are_kept_and_told(tmp_path, monkeypatch):
    assert fuzz.damage(b"x" * 500, random.Random(1)) != b"x" * 500
    counts, faults, _ = fuzz.fuzz("json", 0, 0, tmp_path / "kept")
    assert counts and not faults and not (tmp_path / "kept").exists()
    monkeypatch.setattr(fuzz.Worker, "read", lambda worker, path: ("traceback", "the process ended with -11", 7))
    counts, (fault,), most = fuzz.fuzz("json", 0, 0, tmp_path / "kept")
    assert "ended with -11" in fault and counts == {"traceback": 1} and most == 7
    assert len(list((tmp_path / "kept").iterdir())) == 1
