# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Every variant with every source of data: what a run trains on, validates on and evaluates on can be opened."""

import runpy

import pytest
import tiny
from emoji_files import write_tarballs

from uso_jax.common.errors import InputError
from uso_jax.common.schema import override
from uso_jax.data.sources import DRAWN, open_source
from uso_jax.data.triplet import TASK_CONDITIONS
from uso_jax.evaluation.metrics.counterfactual import WISHES
from uso_jax.training.evaluation import available_tables

CONFIGS = runpy.run_path(str(tiny.ROOT / "configs" / "uso.py"))
SOURCES = tuple(CONFIGS["get_config"]().data.sections)

pytest.importorskip("resvg_py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of emoji artwork."""
    return write_tarballs(tmp_path_factory.mktemp("emoji"))


def configured(variant, folder, **changes):
    artwork = {"data.emoji.data_dir": str(folder), "data.emoji.manual_dir": str(folder), "data.emoji.size": 32}
    return override(CONFIGS["get_config"](variant), artwork | changes)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("variant", CONFIGS["VARIANTS"])
def test_sources_open(variant, source, folder):
    config = configured(variant, folder, **{"data.source": source})
    for spec in (config.data.train, config.data.heldout):
        if source in DRAWN:
            assert open_source(spec, config.run_stages[0].data)[0].target.ndim == 3
        else:
            with pytest.raises(InputError, match=rf"data\.{source}\.train\.path|does not exist"):
                open_source(spec, config.run_stages[0].data)


@pytest.mark.parametrize("variant", CONFIGS["VARIANTS"])
def test_mixtures_open(variant, folder):
    weights = {"data.mixture.weights": dict.fromkeys(DRAWN, 1.0)}
    config = configured(variant, folder, **{"data.source": "mixture"}, **weights)
    for spec in (config.data.train, config.data.heldout):
        assert len(open_source(spec, config.run_stages[0].data).sources) == len(DRAWN)
    assert not config.evaluates  # no single source knows the truth


@pytest.mark.parametrize("changes", [{}, {"data.emoji.looks.drawn": 1.0}], ids=["artists", "drawn"])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("variant", CONFIGS["VARIANTS"])
def test_tables_open(variant, source, changes, folder):
    config = configured(variant, folder, **{"data.source": source}, **changes)
    assert config.evaluates == (source in DRAWN and variant.startswith("mini"))
    if not config.evaluates:
        return
    tables = available_tables(config)
    left_out = config.evaluation.tables.keys() - tables.keys()
    unseen = variant.startswith("mini") and "32" not in variant and (source, changes) == ("emoji", {})
    assert left_out == ({"unseen_families"} if unseen else set())
    for table in tables.values():
        spec = dict(config.data.heldout) | {"split": table.split}
        triplet = open_source(spec, WISHES | {"tasks": {table.task: 1.0}})[0]
        assert (triplet.content is not None, bool(triplet.styles)) == TASK_CONDITIONS[table.task]


def test_the_main_table_is_never_left_out(folder):
    changes = {"data.source": "emoji", "evaluation.tables.main.split": "heldout_families"}
    with pytest.raises(InputError, match=r"tables\.main.* 'heldout_families'"):
        available_tables(configured("mini", folder, **changes))
