# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""docs/extend.md, proven: a toy network, base model, objective, reward, reader and benchmark, each in a few lines."""

import dataclasses
import json
import pathlib
import types
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file, save_file

from convert import layouts
from convert.__main__ import main as convert
from convert.tables import infer_sizes
from uso_jax import flow, weights
from uso_jax.data import readers, sources
from uso_jax.data.storage.places import Place
from uso_jax.evaluation import benchmark
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.metrics.base import Metric
from uso_jax.inference.pipeline import USOPipeline
from uso_jax.models import components, families
from uso_jax.models.components import COMPONENTS, REPLICATE, Component
from uso_jax.models.t5 import T5Config, T5Encoder
from uso_jax.models.text import token_ids
from uso_jax.models.uso import USO
from uso_jax.models.uso_config import USOConfig
from uso_jax.parallel import sharding
from uso_jax.training import rewards
from uso_jax.training.fit import fit
from uso_jax.training.objectives import OBJECTIVES
from uso_jax.weights import manifest_configs
from uso_jax.weights.tables.table import DENSE

# ------------------------------------------------------------------------------------------------ a network: the file


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    """Sizes of a network that scores the mean colour of an image."""

    width: int = 4
    dtype: str = "float32"


class Toy(nnx.Module):
    """Two linear layers over the mean colour."""

    def __init__(self, config: ToyConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.first, self.last = nnx.Linear(3, config.width, rngs=rngs), nnx.Linear(config.width, 1, rngs=rngs)

    def __call__(self, images):
        return self.last(nnx.tanh(self.first(images.mean((1, 2)))))[:, 0]


@pytest.fixture
def toy(monkeypatch):
    """The row, and the conversion table."""
    monkeypatch.setitem(COMPONENTS, "toy", Component("toy", ToyConfig, Toy, REPLICATE, rewards_only=True))
    table = (("first", "first", DENSE), ("last", "last", DENSE))
    family = layouts.Family("toy", "toy scorer", "toy", table, {"toy": {"width": infer_sizes.dim("first.weight", 0)}})
    monkeypatch.setattr(layouts, "FAMILIES", (*layouts.FAMILIES, family))


def test_a_network_is_a_file_a_row_and_a_table(toy, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    shapes = {"first.weight": (6, 3), "first.bias": (6,), "last.weight": (1, 6), "last.bias": (1,)}
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "toy.safetensors")
    convert(["import", str(tmp_path / "toy.safetensors"), "--to", str(tmp_path / "weights")])
    assert weights.config(tmp_path / "weights", "toy") == ToyConfig(width=6)
    convert(["export", str(tmp_path / "weights"), "--component", "toy", "--to", str(tmp_path / "back.safetensors")])
    back = load_file(tmp_path / "back.safetensors")
    assert all(np.array_equal(back[name], value) for name, value in tensors.items())

    config = tiny.config("disentanglement").system
    system = USO(dataclasses.replace(config, networks={**config.networks, "toy": ToyConfig(width=6)}))
    mesh = sharding.make_mesh({"fsdp": -1})
    placed = sharding.shardings(mesh, components.placement_rules(), system.shapes)
    structs = {
        inner: jax.ShapeDtypeStruct(system.shapes[path].shape, jnp.float32, sharding=placed[path])
        for inner, path in components.by_component(system.shapes)["toy"].items()
    }
    params = {f"toy/{path}": value for path, value in weights.load(tmp_path / "weights", "toy", structs).items()}
    images = rng.normal(size=(2, 4, 4, 3)).astype(np.float32)
    hidden = np.tanh(images.mean((1, 2)) @ tensors["first.weight"].T + tensors["first.bias"])
    want = hidden @ tensors["last.weight"].T + tensors["last.bias"]
    np.testing.assert_allclose(system.module(params, "toy")(images), want[:, 0], rtol=1e-5)

    monkeypatch.setattr(rewards, "REWARDS", dict(rewards.REWARDS))
    score = lambda system, params, images, described: system.module(params, "toy")(images)
    rewards.add("toy", rewards.Reward(score=score, components=("toy",)))
    described = rewards.describe(system, params, ["toy"], {})
    scores = rewards.score(system, params, jnp.asarray(images), described)
    np.testing.assert_allclose(scores["toy"], want[:, 0], rtol=1e-5)


# ---------------------------------------------------------------------------------------------------- a base model


@dataclasses.dataclass(frozen=True)
class PlainConfig:
    """Sizes of a transformer with neither pooled vector nor guidance embedding."""

    in_channels: int = 16
    context_in_dim: int = 16
    hidden_size: int = 8
    num_heads: int = 1
    dtype: str = "float32"
    remat: str = "none"
    vec_in_dim: ClassVar[int] = 0
    guidance_embed: ClassVar[bool] = False
    projector: ClassVar[None] = None


class Plain(nnx.Module):
    """Add the mean of the text to every token, and what the token's place says."""

    def __init__(self, config: PlainConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.img_in = nnx.Linear(config.in_channels, config.hidden_size, rngs=rngs)
        self.txt_in = nnx.Linear(config.context_in_dim, config.hidden_size, rngs=rngs)
        self.final = nnx.Linear(config.hidden_size, config.in_channels, rngs=rngs)

    def __call__(self, img, img_ids, txt, t, y, guidance=None, **conditions):
        assert y is None and guidance is None
        hidden = self.img_in(img) + self.txt_in(txt.mean(1))[:, None] + jnp.sin(img_ids.sum(-1))[..., None]
        return self.final(nnx.silu(hidden + t[:, None, None]))


@dataclasses.dataclass(frozen=True)
class PlainText:
    """One text encoder, no pooled vector."""

    encoders: ClassVar[tuple[str, ...]] = ("t5",)
    t5: T5Config = T5Config()
    vec_width: ClassVar[int] = 0
    num_tokens: int = 5
    clip_tokenizer: str = "mini"  # of rewards

    @classmethod
    def from_defaults(cls, sizes, defaults):
        return cls(t5=sizes("t5"), num_tokens=defaults.t5_length)

    @property
    def txt_width(self):
        return self.t5.d_model

    def build(self, rngs):
        return PlainEncoder(self, rngs=rngs)

    def tokenize(self, prompt):
        return {"t5_ids": token_ids("mini", prompt, self.num_tokens)}

    def token_counts(self):
        return {"t5_ids": self.num_tokens}

    def is_cut(self, prompt):
        return False

    def tokenizers(self):
        return {"t5": "mini"}


class PlainEncoder(nnx.Module):
    """T5 alone."""

    def __init__(self, config: PlainText, *, rngs: nnx.Rngs):
        self.t5 = T5Encoder(config.t5, rngs=rngs)

    def __call__(self, t5_ids):
        return self.t5(t5_ids), None


@pytest.mark.slow  # compiles a pipeline
def test_a_base_model_is_files_rows_and_a_family(monkeypatch, tmp_path):
    row = Component("plain", PlainConfig, Plain, REPLICATE, folder="transformer", quantizable=True)
    monkeypatch.setitem(COMPONENTS, "plain", row)
    flux1 = families.FAMILIES["flux1"]
    four_axes = lambda rows, columns: jnp.pad(flow.position_ids(rows, columns), ((0, 0), (0, 1)))
    even = lambda steps, rows, columns, shift: np.linspace(1, 0, steps + 1)
    plain = dataclasses.replace(
        flux1, name="plain", transformer="plain", text=PlainText, position_ids=four_axes, schedule=even
    )
    monkeypatch.setitem(families.FAMILIES, "plain", plain)

    small = tiny.config("disentanglement").system
    config = USOConfig(
        PlainConfig(), small.autoencoder, None, PlainText(t5=small.text.t5), patch=small.patch, family="plain"
    )
    params = tiny.drawn(USO(config))
    for component, paths in components.by_component(params).items():
        sections = manifest_configs.describe(component, config.network(component))
        numbers = {inner: np.asarray(params[path]) for inner, path in paths.items()}
        weights.save(tmp_path, component, numbers, {"config": sections})
    defaults = {"t5_length": 5, "t5_tokenizer": "mini", "width": 16, "height": 16, "num_steps": 2, "guidance": 1.0}
    (tmp_path / "pipeline.json").write_text(json.dumps(defaults))

    pipe = USOPipeline.from_weights(tmp_path, compilation_cache=False)
    assert pipe.system.config.family == "plain" and "text/clip" not in " ".join(pipe.system.shapes)
    one, other = (np.asarray(pipe("a red fox", seed=seed).images[0]) for seed in (1, 2))
    assert one.shape == (16, 16, 3) and (one != other).any()


# ---------------------------------------------------------------------------------------------------- the others


@pytest.mark.slow  # trains
def test_an_objective_is_three_functions_and_a_name(monkeypatch, tmp_path):
    def loss(params, system, stage, batch, draws):
        """Pull a bias to 1."""
        return jnp.mean((params["transformer/img_in/bias"] - 1) ** 2)

    objective = types.SimpleNamespace(
        components=lambda stage: {"transformer"}, draw=lambda rng, system, stage: {}, loss=loss
    )
    monkeypatch.setitem(OBJECTIVES, "toy", objective)
    rules = ((r"transformer/img_in/bias", 1.0), (r".*", None))
    run = tiny.config("disentanglement", loss="toy", train=rules, learning_rate=0.5, steps=3)
    (stage,) = fit(run, tmp_path)["stages"]
    assert stage["heldout_loss_after"] < 0.5 * stage["heldout_loss_before"]


def test_a_reward_is_a_function_and_a_name(monkeypatch):
    monkeypatch.setattr(rewards, "REWARDS", dict(rewards.REWARDS))
    brightness = lambda system, params, images, described: jnp.mean(images, axis=(1, 2, 3))
    rewards.add("brightness", rewards.Reward(score=brightness))
    images = jnp.stack([jnp.zeros((4, 4, 3)), jnp.ones((4, 4, 3))])
    system = USO(tiny.config("disentanglement").system)
    described = rewards.describe(system, {}, ["brightness"], {})
    assert rewards.score(system, {}, images, described)["brightness"].tolist() == [0, 1]


def test_a_reader_is_a_generator_and_a_name(monkeypatch, tmp_path):
    def read_pairs(path: str):
        """Pair NAME.png with NAME_style.png."""
        for style in sorted(pathlib.Path(path).glob("*_style.png")):
            target = style.with_name(style.name.replace("_style", ""))
            yield readers.Item(target.stem, Place(str(target)), prompt="a fox", styles=(Place(str(style)),))

    monkeypatch.setitem(readers.READERS, "pairs", read_pairs)
    for name in ("a", "a_style"):
        Image.new("RGB", (8, 8), (len(name), 0, 0)).save(tmp_path / f"{name}.png")
    source = sources.open_source({"name": "pairs", "path": str(tmp_path)})
    triplet = source[0]
    assert len(source) == 1 and triplet.prompt == "a fox" and triplet.target[0, 0, 0] == 1
    assert triplet.styles[0][0, 0, 0] == 7


def test_a_benchmark_is_a_value_and_a_name(monkeypatch, tmp_path):
    def prepare(data, options):
        style = str(data / "style.png")
        return [EvalItem("0", "toy", "all", "a fox", (), (style,), width=8, height=8)]

    toy = benchmark.Benchmark(
        name="toy",
        title="Toy",
        source="here",
        prepare=prepare,
        metrics=(Metric("csd", "cosine", "csd_style", "style"),),
        columns=(benchmark.Column("CSD", ("csd",)),),
    )
    monkeypatch.setitem(benchmark.BENCHMARKS, "toy", toy)
    (item,) = benchmark.by_name("toy").items(tmp_path, {})
    assert item.prompt == "a fox" and item.style_refs == (str(tmp_path / "style.png"),)
