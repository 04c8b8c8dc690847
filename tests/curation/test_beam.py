# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Two local workers of Apache Beam make the shards that one process makes."""

import logging
import runpy

import pytest
import tiny

from uso_jax.common.errors import InputError
from uso_jax.common.schema import override
from uso_jax.curation import steps
from uso_jax.curation.store import Folder

pytest.importorskip("apache_beam", reason='pip install "uso_jax[beam]"')
beam = pytest.importorskip("uso_jax.curation.beam")
pytestmark = pytest.mark.filterwarnings("default")  # Beam raises many warnings itself
TWO_WORKERS = ("--direct_running_mode=multi_threading", "--direct_num_workers=2")
DRAWN = dict(name="procedural", size=32, length=6, seed=3)


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


@pytest.fixture(autouse=True)
def quiet():
    before = logging.root.level
    yield
    logging.root.setLevel(before)


def config(**changes):
    values = {
        "shard_size": 2,
        "stylize.weights": str(tiny.MINI32),
        "stylize.batch_size": 4,
        "stylize.settings": {"num_steps": 1},
    }
    curation = runpy.run_path(str(tiny.ROOT / "configs" / "curation.py"))["get_config"]("mini").curation
    return override(curation, values | changes)


def files(path):
    """Return the bytes of all files but locks."""
    kept = [file for file in path.rglob("*") if file.is_file() and file.suffix != ".lock"]
    return {str(file.relative_to(path)): file.read_bytes() for file in kept}


@pytest.mark.slow
def test_same_shards(tmp_path):
    for step in ("captions", "stylize"):
        beam.run_step(step, config(), DRAWN, tmp_path / "beam", options=TWO_WORKERS)
        steps.run_step(step, config(), DRAWN, tmp_path / "plain")
    made = files(tmp_path / "beam")
    assert made == files(tmp_path / "plain")
    assert len(made) == 9 and Folder(tmp_path / "beam").shards == 3  # manifest, two settings, three rows, three images
    (tmp_path / "beam" / "stylize" / "00001.jsonl").unlink()
    beam.run_step("stylize", config(), DRAWN, tmp_path / "beam", options=TWO_WORKERS)
    assert files(tmp_path / "beam") == made


def test_mistakes_are_found_before_the_workers_start(tmp_path):
    with pytest.raises(InputError, match="holds no curation"):
        beam.run_step("stylize", config(), DRAWN, tmp_path)
    steps.run_step("captions", config(), DRAWN, tmp_path)
    with pytest.raises(InputError, match=r"stylize\.weights"):
        beam.run_step("stylize", config(**{"stylize.weights": ""}), DRAWN, tmp_path)
