# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The weights that come with the package: complete, small, and they still do what they learned."""

import dataclasses
import runpy

import jax
import pytest
import tiny

from uso_jax import mini, weights
from uso_jax.inference import request
from uso_jax.inference.options import GenerationOptions
from uso_jax.inference.pipeline import USOPipeline
from uso_jax.models.components import component_of
from uso_jax.models.uso import USO
from uso_jax.parallel import sharding
from uso_jax.training.config import override
from uso_jax.training.evaluation import Evaluation
from uso_jax.training.init import initial_params
from uso_jax.weights.quantized_kernels import QuantizedUSO

pytestmark = pytest.mark.slow  # compiles or runs whole programs

COMPONENTS = {
    *("autoencoder", "clip", "csd", "judge", "lora", "projector", "siglip", "siglip_text", "t5", "transformer"),
}


WEIGHTS = {"mini": mini.WEIGHTS, "mini32": tiny.MINI32}


@pytest.mark.parametrize("name", WEIGHTS)
def test_complete(name):
    assert set(weights.components(WEIGHTS[name])) == COMPONENTS


def test_few_bytes():
    files = [path for folder in (mini.FOLDER, tiny.MINI32) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25e6
    assert (mini.FOLDER / "MODEL_CARD.md").is_file()


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("component", sorted(COMPONENTS))
def test_sizes_are_those_of_the_configuration(component, name):
    config = runpy.run_path(str(tiny.ROOT / "configs" / "uso.py"))["get_config"](name)
    wanted = {}
    for path, shape in USO(config.system).shapes.items():
        owner, inner = component_of(path)
        if owner == component:
            wanted[inner] = shape.shape
    assert {path: shape.shape for path, shape in weights.shapes(WEIGHTS[name], component).items()} == wanted


@pytest.fixture(scope="module")
def figures():
    """Judge the shipped adapters, and the same model without them, on subjects and styles that training never saw."""
    config = runpy.run_path(str(tiny.ROOT / "configs" / "uso.py"))["get_config"]("mini")
    tables = {"main": config.evaluation.tables["main"]}
    config = override(config, {"evaluation.num_triplets": 64, "evaluation.tables": tables})
    system, mesh = USO(config.system), sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    where = sharding.shardings(mesh, config.rules, system.shapes)
    with jax.set_mesh(mesh):
        evaluation = Evaluation(config, system, mesh)
        found = {}
        for name, fresh in (("before", ("lora", "projector")), ("after", ())):
            params = initial_params(override(config, {"model.fresh": fresh}), system, where, set())
            found[name] = evaluation.figures(params, evaluation.sample(params))["main"]
        return found | evaluation.baselines(params)["main"]


def test_targets_and_copies_are_judged_exactly(figures):
    assert figures["target"]["content_accuracy"] == figures["target"]["style_accuracy"] == 1.0
    assert figures["target"]["mse"] == 0.0
    assert figures["target"]["judge_style_accuracy"] > 0.7
    assert figures["copy_content"]["style_accuracy"] < 0.1 < 0.4 < figures["copy_style"]["style_accuracy"]


def test_the_style_arrives(figures):
    assert figures["after"]["style_accuracy"] > figures["before"]["style_accuracy"] + 0.2
    # Guided images are bolder than the mean of what could be right, which alone has the least squared error.
    assert figures["after"]["mse"] < 0.5 * figures["copy_content"]["mse"]


def test_the_content_stays(figures):
    assert figures["after"]["content_accuracy"] > figures["before"]["content_accuracy"] + 0.35


@pytest.mark.parametrize(("name", "side"), [("mini", 64), (str(tiny.MINI32), 32)])
def test_generates_out_of_the_box(name, side):
    image = USOPipeline.from_weights(name)("a heart, neon style, red on black", seed=1, num_steps=4).images[0]
    assert image.size == (side, side)
    assert len(set(image.convert("L").tobytes())) > 20


def test_the_guidance_of_a_record_repeats_it():
    pipe = USOPipeline.from_weights("mini")
    first = pipe("a heart", seed=1, num_steps=1)
    again = pipe("a heart", seed=1, num_steps=1, guidance=first.records[0]["request"]["guidance"])
    assert again.records == first.records and again.images[0].tobytes() == first.images[0].tobytes()
    other = pipe("a heart", seed=1, num_steps=1, guidance=1.0)
    assert other.images[0].tobytes() != first.images[0].tobytes()
    assert not any("guidance" in note for note in other.records[0]["notes"])


def test_weights_that_know_no_guidance_say_so():
    pipe = USOPipeline.from_weights("mini")
    config = pipe.system.config
    transformer = dataclasses.replace(config.transformer, guidance_embed=False)
    system = QuantizedUSO(dataclasses.replace(config, transformer=transformer))
    found = request.make_request(pipe.pretrained, system, "a heart", options=GenerationOptions(guidance=2.0))
    assert tuple(found.notes) == ("guidance has no effect: these weights were trained without guidance",)
