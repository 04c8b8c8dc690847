# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`python scripts/curate.py` as a user runs it: what it writes, and how mistakes end."""

import os
import subprocess
import sys

import forks
import pytest
import tiny

from uso_jax.data.tfds.records import TripletSet

DATA = ["--config.data.procedural.size=16", "--config.data.procedural.train.length=6"]


def curate(*arguments):
    return subprocess.run(
        [sys.executable, "scripts/curate.py", *arguments],
        cwd=tiny.ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_convert(tmp_path):
    done = curate("convert", "--to", str(tmp_path), "--name=drawn", *DATA)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "triplets" / "drawn" / "1.0.0"
    assert f"--config.data.triplets.train.path={folder}" in done.stdout
    assert len(TripletSet(folder)) == 6
    assert (folder / "train.html").read_text().count("<article") == 6
    assert "6 triplets" in (folder / "train.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sort", "--to=x"), "usage: uso-curate view | convert | precompute | captions | stylize"),
        (("precompute", "--to=x", "--process=4", *DATA), "--process=4 must be NUMBER/COUNT, such as 0/4."),
        (("report", "--to=nothing"), "nothing holds no curation"),
        (("run", "--to=x"), "this configuration has no section curation: use --config configs/curation.py."),
        (
            ("stylize", "--to=nothing", "--config=configs/curation.py", "--process=2"),
            "--process=2 must be NUMBER/COUNT, such as 0/4.",
        ),
        (("view", "--to=x.html", "--config.data.source=json"), "data source 'json' needs a path: set"),
    ],
)
def test_mistakes(arguments, message):
    done = forks.command("scripts/curate.py", *arguments)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: ")
    assert message in done.stderr and "Traceback" not in done.stderr
