# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The configuration of own images: it reads what --data names, and its steps follow from the number of triplets."""

import numpy as np
import pytest
import tiny
from absl import flags
from PIL import Image

from uso_jax.common import config_flag
from uso_jax.common.errors import InputError
from uso_jax.data.sources import open_source
from uso_jax.training import preflight


@pytest.fixture
def parsed(monkeypatch):
    """Parse command lines, each without the flags of the others."""

    def parse(*arguments):
        values = flags.FlagValues()
        monkeypatch.setattr(flags, "FLAGS", values)
        for name in ("verbosity", "data", "steps"):
            flags.DEFINE_string(name, "", "", flag_values=values)
        flag = config_flag.ConfigFlag(__name__, inputs=("data", "steps"))
        flag.parse(["program", *arguments])
        return flag.value

    monkeypatch.chdir(tiny.ROOT)
    return parse


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number in range(12):
        Image.fromarray(np.full((20, 20, 3), 20 * number, np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("variant", ["mini", "flux_dev", "flux_dev_16gb", "klein"])
def test_every_variant_reads_the_folder(variant, images, parsed):
    config = parsed(f"--config=finetune:{variant}", f"--data={images}", "--config.data.folder.caption=dots")
    preflight.check_settings(config)
    preflight.check_data(config)
    (stage,) = config.run_stages
    assert stage.steps == 1200 and config.variant == f"finetune_{variant}"
    train, heldout = (open_source(spec, stage.data) for spec in (config.data.train, config.data.heldout))
    assert (len(train), len(heldout)) == (11, 1) and train.item(0).prompt == "dots"


def test_steps_are_set_and_bounded(images, parsed):
    name = "stages.adapters.steps"
    assert parsed("--config", "finetune", "--data", str(images), "--steps", "7").run_stages[0].steps == 7
    assert parsed("--config=finetune", f"--data={images}", f"--config.{name}=9").run_stages[0].steps == 9
    assert parsed("--config=finetune").run_stages[0].steps == 500
    with pytest.raises(InputError, match="many"):
        parsed("--config=finetune", "--steps=many")


def test_mistakes_are_one_sentence(images, parsed):
    with pytest.raises(InputError, match="/nowhere does not exist: correct --data"):
        parsed("--config=finetune", "--data=/nowhere")
    with pytest.raises(InputError, match=r"configs/uso\.py takes no --data"):
        parsed("--config=configs/uso.py", f"--data={images}")
    with pytest.raises(InputError, match="needs a path"):
        open_source(parsed("--config=finetune").data.train)
