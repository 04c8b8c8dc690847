# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Every parameter of every network has a sharding rule that is meant for it; no rule matches everything."""

import functools
import re

import jax
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from uso_jax import params
from uso_jax.common.errors import InputError
from uso_jax.models.components import COMPONENTS, placement_rules
from uso_jax.models.projector import ProjectorConfig
from uso_jax.models.uso import USO
from uso_jax.parallel import sharding
from uso_jax.training import preflight
from uso_jax.training.config import override

SIZES = {"judge": dict(num_subjects=4, num_styles=4), "flux": dict(lora_rank=16, projector=ProjectorConfig())}


@functools.cache
def released(name):
    """Return the shapes of a row's network at its released sizes."""
    row = COMPONENTS[name]
    config = row.config(**SIZES.get(name, {}))
    shapes = params.shapes(lambda rngs: row.module(config, rngs=rngs))
    return {f"{row.path}/{path}": shape for path, shape in shapes.items()}


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_parameter_has_a_rule(name):
    placed = params.match(placement_rules(), released(name), use_all=False)
    assert placed.keys() == released(name).keys()
    large = {path: shape.size for path, shape in released(name).items() if shape.size > 2**25 and not any(placed[path])}
    # Embeddings are looked up, not multiplied; SigLIP's text tower is full size only in this test.
    assert all(path.endswith("/embedding") or name == "siglip_text" for path in large), large


def test_no_rule_matches_everything():
    assert not [regex for regex, _ in placement_rules() if re.fullmatch(regex, "a_new_network/kernel")]
    shapes = {"a_new_network/kernel": jax.ShapeDtypeStruct((4, 4), "float32")}
    with pytest.raises(InputError, match="a_new_network/kernel"):
        sharding.shardings(sharding.make_mesh({"fsdp": -1}), placement_rules(), shapes)


def test_the_configuration_adds_rules(tmp_path):
    config, mesh = tiny.config("disentanglement"), sharding.make_mesh({"data": 4, "fsdp": 2})
    system = USO(config.system)
    path = "text/t5/shared/embedding"
    assert not any(sharding.shardings(mesh, config.rules, system.shapes)[path].spec)
    config = override(config, {"placement": ((r"text/t5/shared/embedding", ("fsdp",)),)})
    preflight.check_placement(config, mesh, system)
    assert sharding.shardings(mesh, config.rules, system.shapes)[path].spec == P("fsdp")
    (line,) = [one for one in sharding.describe_placement(mesh, config.rules, system.shapes) if one.startswith(path)]
    assert line == f"{path} [1024, 16]: fsdp, 0.5 per device, by {path}"


@pytest.mark.parametrize(
    ("rule", "message"),
    [((r"text/t6/.*", ()), "matches no parameter"), ((r"text/t5/.*", ("fsbp",)), "'fsbp' is no mesh axis")],
)
def test_mistakes_in_rules(rule, message):
    config = override(tiny.config("disentanglement"), {"placement": (rule,)})
    with pytest.raises(InputError, match=message):
        preflight.check_placement(config, sharding.make_mesh({"fsdp": -1}), USO(config.system))
