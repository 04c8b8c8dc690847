# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Training on a frozen base that is quantised: its gradients, whole runs, their memory, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from comparison import assert_same
from flax import nnx
from training_runs import interrupt, watched

from uso_jax import weights
from uso_jax.common.errors import InputError
from uso_jax.data.loader import batches
from uso_jax.data.sources import open_source
from uso_jax.models.components import by_component
from uso_jax.models.layers import scan
from uso_jax.models.layers.linear import Linear
from uso_jax.models.layers.lora import LoRA
from uso_jax.models.uso import USO
from uso_jax.parallel import sharding
from uso_jax.planning import programs
from uso_jax.training import precompute
from uso_jax.training.config import TrainConfig, override
from uso_jax.training.fit import fit
from uso_jax.training.init import initial_params
from uso_jax.training.objectives import flow_matching
from uso_jax.training.validation import pipeline_options
from uso_jax.weights import quantization as quantize
from uso_jax.weights.manifest_text import format_struct
from uso_jax.weights.quantized_kernels import join

pytestmark = pytest.mark.slow  # compiles or runs whole programs

ENCODERS = "text/t5/.*/kernel"


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    """The tiny model's kernels have several groups."""
    monkeypatch.setattr(quantize, "GROUP", 8)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Write weights of random numbers, adapters that are not zeros included."""
    folder, system = tmp_path_factory.mktemp("weights"), USO(tiny.config("joint").system)
    rng, drawn = np.random.default_rng(0), tiny.drawn(system)
    noisy = {path: np.asarray(x) + 0.1 * rng.standard_normal(x.shape, np.float32) for path, x in drawn.items()}
    for component, paths in by_component(system.shapes).items():
        weights.save(folder, component, {inner: noisy[path] for inner, path in paths.items()}, {"config": {}})
    return folder


def config(directory, mode, *run, changes=None, **stage) -> TrainConfig:
    named = {"model.weights": str(directory), "model.fresh": (), "model.quantization": mode}
    return tiny.config(*(run or ("joint",)), changes=named | (changes or {}), **stage)


def started(run: TrainConfig):
    """Return system and parameters as `fit` initialises them."""
    system = precompute.build_system(run)
    where = sharding.shardings(sharding.make_mesh(run.mesh), run.rules, system.shapes)
    return system, initial_params(run, system, where, set(run.run_stages[-1].lr_multipliers(system.shapes)))


def first_batch(run: TrainConfig):
    stage = run.run_stages[-1]
    source = open_source(run.data.train, stage.data)
    return next(iter(batches(source, batch_size=stage.batch_size, seed=0, **pipeline_options(run, stage))))


# ---------------------------------------------------------------------------------------------------- numbers


def gradient(run: TrainConfig, system: USO, params, batch):
    stage = run.run_stages[-1]
    rates = stage.lr_multipliers(system.shapes)
    draws = flow_matching.draw(jax.random.key(0), system, stage)
    frozen = {path: value for path, value in params.items() if path not in rates}
    loss = lambda trained: flow_matching.loss({**frozen, **trained}, system, stage, batch, draws)
    return jax.jit(jax.value_and_grad(loss))({path: params[path] for path in rates})


@pytest.mark.parametrize("remat", ("none", "full"))
@pytest.mark.parametrize("mode", quantize.FORMATS)
def test_gradients_equal_those_through_the_kernels_multiplied_before(directory, mode, remat):
    run = config(directory, mode, changes={"model.transformer.remat": remat})
    system, params = started(run)
    kernels = {path for path in params if quantize.scale_path(path) in params}
    assert {path.split("/")[0] for path in kernels} == {"transformer", "text", "siglip"}
    assert all(params[path].dtype == quantize.FORMATS[mode][0] for path in kernels)
    assert not [path for path in kernels if "processor" in path or "feature_embedder" in path]
    multiplied = {path: value[...] if path in kernels else value for path, value in join(params).items()}
    assert multiplied.keys() == system.shapes.keys()
    batch = jax.tree.map(jnp.asarray, first_batch(run))
    got, want = (gradient(run, system, x, batch) for x in (params, multiplied))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    for path, value in want[1].items():
        assert np.abs(value).max() > 0, path
        assert np.abs(got[1][path] - value).max() <= 1e-5 * np.abs(value).max(), path


def test_a_layer_is_whole_only_while_it_is_used():
    """In the backward pass too: temporaries grow by a block's input a layer, not by its kernel."""
    width, rank, rows = 256, 4, 8

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.base = Linear(width, width, use_bias=False, rngs=rngs)
            self.lora = LoRA(width, width, rank, dtype=jnp.float32, rngs=rngs)

        def __call__(self, x):
            return jnp.tanh(self.base(x) + self.lora(x))

    def temporaries(depth):
        graph, state = nnx.split(nnx.eval_shape(lambda: scan.stack(Block, depth, nnx.Rngs(0))))
        leaves = {"/".join(map(str, path)): (path, leaf) for path, leaf in nnx.to_flat_state(state)}

        def loss(lora, frozen, x):
            params = join({**frozen, **lora})
            blocks = nnx.from_flat_state([(path, leaf.replace(params[name])) for name, (path, leaf) in leaves.items()])
            return scan.scan(nnx.merge(graph, blocks), lambda block, x: block(x), x, remat="full").sum()

        lora = {name: leaf.get_value() for name, (_, leaf) in leaves.items() if name.startswith("lora")}
        # Not int4, which a CPU, unlike a TPU, unpacks before it begins.
        frozen = {"base/kernel": jax.ShapeDtypeStruct((depth, width, width), jnp.int8)}
        frozen["base/kernel_scale"] = jax.ShapeDtypeStruct((depth, 2, width), jnp.float32)
        x = jax.ShapeDtypeStruct((rows, width), jnp.float32)
        memory = jax.jit(jax.grad(loss)).lower(lora, frozen, x).compile().memory_analysis()
        return memory.temp_size_in_bytes, memory.argument_size_in_bytes

    (small, _), (large, arguments) = temporaries(4), temporaries(24)
    assert arguments < 24 * (width * width + 4 * (2 + 2 * rank) * width) * 1.1
    assert (large - small) / 20 < 2 * 4 * rows * width


# ---------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("mode", ("int8", "int4"))
def test_stopped_and_resumed_equals_straight(directory, tmp_path, mode):
    run = config(directory, mode, changes={"checkpoint.every": 2})
    with watched() as straight:
        summary = fit(run, tmp_path / "straight")
    with watched(interrupt(4)), pytest.raises(KeyboardInterrupt):
        fit(run, tmp_path / "stopped")
    with watched() as resumed:
        fit(run, tmp_path / "stopped")
    assert list(straight.saved) == [2, 4] and list(resumed.saved) == [4]
    assert_same(resumed.saved[4], straight.saved[4])
    trained = set(run.run_stages[0].lr_multipliers(USO(run.system).shapes))
    assert set(straight.saved[4]["params"]) == trained
    assert all(x.dtype == np.float32 for x in straight.saved[4]["params"].values())
    (stage,) = summary["stages"]
    assert 0 < stage["heldout_loss_after"] != stage["heldout_loss_before"] > 0
    with pytest.raises(InputError, match=f"quantization was '{mode}', is None"):
        fit(config(directory, "", changes={"checkpoint.every": 2}), tmp_path / "straight")


def test_weights_that_are_stored_quantised_start_the_same_run(directory, tmp_path):
    run = config(directory, "int4")
    _, want = started(run)
    folder = tmp_path / "weights"
    for component in weights.components(directory):
        arrays = {path: np.asarray(x) for path, x in weights.read(directory, component).items()}
        structs = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in arrays.items()}
        chosen = quantize.choose(component, structs) if component in ("transformer", "t5") else {}
        for path in chosen:
            arrays[path], arrays[quantize.scale_path(path)] = quantize.quantise(arrays[path], "int4")
        parameters = {path: format_struct(struct) for path, struct in chosen.items()}
        quantization = {"quantization": {"mode": "int4", "parameters": parameters}} if chosen else {}
        weights.save(folder, component, arrays, {"config": {}} | quantization)
    _, got = started(override(run, {"model.weights": str(folder)}))
    assert_same(got, want)
    with pytest.raises(InputError, match=r"transformer is stored in int4, not int8: choose int4, or import it again"):
        started(override(run, {"model.weights": str(folder), "model.quantization": "int8"}))


def test_a_run_on_features_holds_what_is_planned(directory, tmp_path):
    run = config(directory, "int4")
    changes = {"data.source": "features"}
    for split in ("train", "heldout"):
        changes[f"data.features.{split}.path"] = str(tmp_path / split)
    sizes = {"data.procedural.train.length": 8, "data.procedural.heldout.length": 8}
    made = config(directory, "int4", changes=sizes)
    for split in ("train", "heldout"):
        precompute.precompute(made, made.run_stages[-1], split, tmp_path / split)
    run = config(directory, "int4", changes=changes)
    params = started(run)[1]
    assert not [path for path in params if path.startswith(("text/", "siglip/"))]
    _, (program,) = programs.build_programs(run, jax.devices()[:1], programs.Choices("train"))
    _, (chosen,) = programs.build_programs(
        override(run, {"model.quantization": ""}), jax.devices()[:1], programs.Choices("train", quantization="int4")
    )
    described = lambda tree: jax.tree.map(lambda x: (tuple(x.shape), str(jnp.dtype(x.dtype))), tree)
    assert described(program.arguments) == described(chosen.arguments)
    state, frozen, batch = program.arguments
    without_rewards = {path: value for path, value in params.items() if not path.startswith("csd/")}
    assert described({**frozen, **state.params}) == described(without_rewards)
    assert described(batch) == described(first_batch(run))
    fit(run, tmp_path / "run")


# ---------------------------------------------------------------------------------------------------- bad input


def test_refused(directory, tmp_path):
    with pytest.raises(InputError, match=r"model\.quantization 'int3' is unknown; known are int8, fp8, int4"):
        config(directory, "int3")
    with pytest.raises(InputError, match=r"model\.quantization 'int4' is of weights; name them in model\.weights"):
        config("", "int4")
    for rule in (r"transformer/.*", ENCODERS):
        run = config(directory, "int4", train=((rule, 1.0), (".*", None)))
        with pytest.raises(InputError, match=r"stage 'joint' trains .*kernel, which --config.model.quantization=int4"):
            fit(run, tmp_path / "run")
        with pytest.raises(InputError, match=r"stage 'joint' trains .*kernel"):
            programs.build_programs(run, jax.devices()[:1], programs.Choices("train"))
    assert not list((tmp_path / "run").iterdir())
