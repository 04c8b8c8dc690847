# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""FLUX.2's recipes at full size: their settings fit each other, and they train what they say."""

import functools

import pytest
import tiny

from uso_jax import params
from uso_jax.models.flux2 import Flux2
from uso_jax.training import preflight
from uso_jax.training.config import override

get_config = tiny._USO["get_config"]


@functools.cache
def transformer(config):
    shapes = params.shapes(lambda rngs: Flux2(config, rngs=rngs))
    return {f"transformer/{path}": shape for path, shape in shapes.items()}


PROJECTOR, ADAPTERS = 10_773_120, 94_371_840  # of rank 128


@pytest.mark.parametrize(
    ("variant", "counts"),
    [
        ("klein", [PROJECTOR, ADAPTERS]),
        ("klein_joint", [PROJECTOR + ADAPTERS]),
        ("klein_lora", [ADAPTERS // 4]),
    ],
)
def test_what_is_trained(variant, counts):
    config = get_config(variant)
    preflight.check_settings(config)
    shapes = transformer(config.model.transformer)
    trained = [stage.lr_multipliers(shapes) for stage in config.run_stages]
    assert [params.count({path: shapes[path] for path in one}) for one in trained] == counts


def test_ranks_by_rule():
    changes = {"model.transformer.lora_rules": ((r".*/qkv_lora.*", 64, 0.5),)}
    config = override(get_config("klein_lora"), changes)
    preflight.check_settings(config)
    shapes = transformer(config.model.transformer)
    width, mlp = 3072, 9216
    double = 2 * (64 * (width + 3 * width) + 32 * 2 * width)
    single = 64 * (width + 3 * width) + 32 * (width + mlp + width)
    trained = config.run_stages[0].lr_multipliers(shapes)
    assert params.count({path: shapes[path] for path in trained}) == 5 * double + 20 * single


def test_recipes():
    flux, klein, lora = (get_config(name) for name in ("flux_dev", "klein", "klein_lora"))
    assert klein.stages == flux.stages and klein.run == flux.run  # the paper's
    assert klein.system.token_counts() == {"clip_ids": 77, "qwen3_ids": 512, "qwen3_valid": 512}
    assert klein.style_size(klein.run_stages[0]) == (384, 384)
    assert lora.system.siglip is None and lora.style_size(lora.run_stages[0]) == (512, 512)
    assert lora.data.source == "folder" and lora.data.encode_first and lora.data.heldout_share == 0.1
    assert lora.run_stages[0].reward is None and lora.stages["lora"].reward.weights == {"csd_style": 1.0}
