# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The programs of training and sampling, with `jax.ShapeDtypeStruct`s instead of arrays as arguments.

They are the jitted functions that `Sampler` and `fit` run.
Shapes: b batch, n style images, l target tokens, r content tokens.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from uso_jax.common.errors import InputError
from uso_jax.inference.sampler import Sampler
from uso_jax.models.components import component_of, folders, placement_rules
from uso_jax.models.uso import Inputs, NullText
from uso_jax.models.uso_config import USOConfig
from uso_jax.parallel import sharding
from uso_jax.training import precompute, preflight, rewards
from uso_jax.training.config import TrainConfig, override
from uso_jax.training.init import describe_params
from uso_jax.training.policy import ADVANTAGES, COUNTED
from uso_jax.training.rollouts import is_for_training, make_roll_out
from uso_jax.training.stage import StageConfig
from uso_jax.training.step import TrainState, describe_state, jit_train_step, state_shardings
from uso_jax.weights import quantization as quantize
from uso_jax.weights.pretrained import FULL_PRECISION
from uso_jax.weights.quantized_kernels import QuantizedUSO, check_products, describe

PROGRAMS = ("sample", "train", "reward", "encode-parts")
_NAMES = {"t5": "T5", "clip": "CLIP", "qwen3": "Qwen3"}  # of text encoders
Structs = dict[str, jax.ShapeDtypeStruct]
_REWARDS_ONLY = folders(lambda row: row.rewards_only)


@dataclass(frozen=True)
class Choices:
    """What to plan."""

    mode: str  # one of PROGRAMS
    stage: str = ""  # stage that defines image sizes and the train step; "": the last of the run
    batch: int = 0  # images over all devices; 0: the stage's batch size, or in sampling one per data shard
    quantization: str = ""  # one of quantize.FORMATS; "": none
    tile: int | None = None  # side of decoder tiles in pixels; None: decode whole images
    offload: bool = False  # sampling: keep unused networks in host memory
    references: int = 1  # sampling: content images, where the stage has them
    merge: bool | None = None  # sampling: adapters merged into the weights; None: unless these are quantised
    quantize_activations: bool = False  # sampling: products in the 8 bits of `quantization`
    quick: bool = False  # compile with the least effort


@dataclass(frozen=True)
class Program:
    """A jitted function and its described arguments."""

    name: str
    function: Callable
    arguments: tuple
    static: tuple = ()  # further, static arguments
    besides: Any = field(default_factory=dict)  # descriptions of unused arrays that stay on the devices
    loops: float = 1.0  # mean trip count of loops whose length is an argument
    per_step: float = 1.0  # how often it runs for a train step

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments, *self.static)

    def lower(self) -> jax.stages.Lowered:
        """Lower the program for the devices in its arguments' shardings."""
        return self.function.lower(*self.arguments, *self.static)


class _Untokenised(QuantizedUSO):
    """A model whose null prompt has the right number of tokens, without a tokenizer."""

    @property
    def null_tokens(self) -> dict[str, np.ndarray]:
        return {name: np.zeros(count, np.int32) for name, count in self.config.text.token_counts().items()}


def merges(choices: Choices) -> bool:
    """Return whether the planned transformer has its adapters merged."""
    merge = not choices.quantization if choices.merge is None else choices.merge
    return choices.mode in ("sample", "encode-parts") and merge


def choose_stage(config: TrainConfig, choices: Choices) -> StageConfig:
    """Return the planned stage with the batch size of `choices`.

    Raises:
      InputError: the stage is not in the run, or has no reward in mode "reward".
    """
    stages = {stage.name: stage for stage in config.run_stages}
    name = choices.stage or config.run_stages[-1].name
    if name not in stages:
        raise InputError(f"--stage {name!r} is not in the run; known stages: {', '.join(stages)}")
    stage = stages[name]
    if choices.mode == "reward" and stage.reward is None:
        raise InputError(f"stage {name!r} has no reward; set config.stages.{name}.reward, or use --mode train")
    changes: dict[str, Any] = {"batch_size": choices.batch or stage.batch_size}
    if choices.mode == "train":
        changes["reward"] = None
    return dataclasses.replace(stage, **changes)


def with_stage(config: TrainConfig, stage: StageConfig) -> TrainConfig:
    """Return the config with the stage of the same name replaced."""
    return dataclasses.replace(config, stages={**config.stages, stage.name: stage})


def build_programs(config: TrainConfig, devices: Sequence[Any], choices: Choices) -> tuple[Mesh, list[Program]]:
    """Return the mesh and the programs of a mode.

    Raises:
      InputError: the mesh does not match the devices, or the batch does not match the mesh.
    """
    preflight.check_settings(config)
    mesh, stage = sharding.make_mesh(config.mesh, list(devices)), choose_stage(config, choices)
    sharding.check_heads(mesh, config.system.transformer.num_heads)
    with jax.set_mesh(mesh):
        if choices.mode in ("train", "reward"):
            return mesh, _training(config, mesh, stage, choices)
        return mesh, _sampling(config, mesh, stage, choices)


# ---------------------------------------------------------------------------------------------------- training


def _training(config: TrainConfig, mesh: Mesh, stage: StageConfig, choices: Choices) -> list[Program]:
    if choices.mode == "train" and stage.policy is None:
        # Networks used only by rewards are not loaded without them.
        config = override(config, {f"model.{name}": None for name in _REWARDS_ONLY if hasattr(config.model, name)})
        config = override(config, {"model.rewards": {}})
    micro = stage.batch_size // stage.accumulate
    preflight.check_batch(f"--batch {stage.batch_size} in {stage.accumulate} micro-batches", micro, mesh)
    if choices.quantization:
        _check_mode(choices.quantization)
        config = override(config, {"model.quantization": choices.quantization})
    system = _Untokenised(config.system)
    first = config.data.encode_first
    ready = first or precompute.is_ready(config.data.train)
    if ready:
        without = precompute.WITHOUT if first or precompute.is_ready(config.data.heldout) else ()
        system = _Untokenised(config.system, without=without, null_text=_null_text(config.system))
    preflight.check_quantization(config, system)
    shardings = sharding.shardings(mesh, config.rules, system.shapes)
    trained = set().union(*(one.lr_multipliers(system.shapes) for one in config.run_stages))
    lr_multipliers = stage.lr_multipliers(system.shapes)
    params = describe_params(config, system, shardings, trained)
    state = describe_state(stage, lr_multipliers, {path: params[path] for path in lr_multipliers})
    placed = state_shardings(state, shardings)
    state = jax.tree.map(lambda x, place: _struct(x.shape, x.dtype, place), state, placed)
    frozen = {path: struct for path, struct in params.items() if path not in lr_multipliers}
    describe_batch = feature_batch if ready else image_batch
    batch = describe_batch(config, stage, system, NamedSharding(mesh, sharding.BATCH))
    if stage.policy is not None:
        return _of_policy(mesh, stage, system, lr_multipliers, state, placed, frozen, batch)
    label = "train step" if stage.reward is None else "reward step"
    step = jit_train_step(system, stage, lr_multipliers, 0, placed)
    return [Program(label, step, (state, frozen, batch), loops=stage.rollout_steps)]


def _of_policy(
    mesh: Mesh,
    stage: StageConfig,
    system: QuantizedUSO,
    lr_multipliers: Mapping[str, float],
    state: TrainState,
    placed: TrainState,
    frozen: Structs,
    batch: Structs,
) -> list[Program]:
    """Return the roll-out and the train step of a policy; what a checkpoint holds stays on the devices meanwhile."""
    split, whole = NamedSharding(mesh, sharding.BATCH), sharding.replicated(mesh)
    resized = lambda struct, size: _struct((size, *struct.shape[1:]), struct.dtype, split)
    size = stage.policy.sample_batch or stage.batch_size
    examples = {name: resized(struct, size) for name, struct in batch.items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole)
    roll_out = jax.jit(make_roll_out(system, stage), out_shardings=split)
    made = jax.eval_shape(roll_out, {**frozen, **state.old}, examples, key)
    needed = {name: resized(struct, stage.batch_size) for name, struct in made.items() if is_for_training(name)}
    needed |= {name: _struct((stage.batch_size,), jnp.float32, split) for name in (ADVANTAGES, COUNTED)}
    besides = [state.params, state.opt_state, state.ema, state.anchor]
    step = jit_train_step(system, stage, lr_multipliers, 0, placed)
    often = stage.policy.images / size / stage.policy.steps_per_round(stage.batch_size)
    return [
        Program("roll-out", roll_out, ({**frozen, **state.old}, examples, key), besides=besides, per_step=often),
        Program("policy step", step, (state, frozen, batch | needed)),
    ]


def image_batch(config: TrainConfig, stage: StageConfig, system: QuantizedUSO, place: NamedSharding) -> Structs:
    """Return descriptions of the batches of images that `data.loader` yields for a stage."""
    b, n = stage.batch_size, config.data.num_styles
    image, flag, number = jnp.uint8, jnp.bool_, jnp.int32
    shapes = {
        "target": ((*stage.target_size, 3), image),
        "content": ((*stage.content_size, 3), image),
        "content_valid": ((), flag),
        "style": ((n, *config.style_size(stage), 3), image),
        "style_valid": ((n,), flag),
        "subject_label": ((), number),
        "style_label": ((), number),
    } | {name: ((count,), number) for name, count in config.system.token_counts().items()}
    if stage.outside_mask < 1:
        shapes["mask"] = (system.token_grid(*stage.target_size), jnp.float32)
    if config.data.prior.path and config.data.prior.loss_weight != 1:
        shapes["loss_weight"] = ((), jnp.float32)
    return {name: _struct((b, *shape), dtype, place) for name, (shape, dtype) in shapes.items()}


def feature_batch(config: TrainConfig, stage: StageConfig, system: QuantizedUSO, place: NamedSharding) -> Structs:
    """Return descriptions of the batches of precomputed features that `data.loader` yields for a stage."""
    found = image_batch(config, stage, system, place)
    z, down = config.system.autoencoder.z_channels, config.system.autoencoder.downscale
    whole = _Untokenised(config.system)
    images = {name: jax.ShapeDtypeStruct(struct.shape, struct.dtype) for name, struct in found.items()}
    tokens = {name: images[name] for name in whole.null_tokens}
    txt, vec = jax.eval_shape(whole.encode_text, whole.shapes, tokens)
    made = {"txt": txt} | ({} if vec is None else {"vec": vec})
    moments = ["target", "content"]
    if config.system.style_encoder == "siglip":
        made["style_features"] = jax.eval_shape(whole.style_features, whole.shapes, images["style"])
    else:
        moments.append("style")
    for name in moments:
        *outer, height, width, _ = images[name].shape
        made[f"{name}_moments"] = jax.ShapeDtypeStruct((*outer, height // down, width // down, 2 * z), jnp.float32)
    if stage.scored is not None:
        describe = lambda params, batch: rewards.describe(whole, params, stage.scored.names, batch)
        made |= rewards.pack_described(jax.eval_shape(describe, whole.shapes, images))
    names = ("content_valid", "style_valid", "subject_label", "style_label", "mask", "loss_weight")
    kept = {name: found[name] for name in names if name in found}
    return kept | {name: _struct(one.shape, one.dtype, place) for name, one in made.items()}


def _null_text(config: USOConfig) -> NullText:
    text, transformer = config.text, config.transformer
    pooled = np.zeros(text.vec_width) if text.vec_width else None
    return np.zeros((text.num_tokens, transformer.context_in_dim)), pooled


# ---------------------------------------------------------------------------------------------------- sampling


def _sampling(config: TrainConfig, mesh: Mesh, stage: StageConfig, choices: Choices) -> list[Program]:
    transformer = config.system.transformer
    if merges(choices):
        transformer = transformer.without_adapters()
    if choices.quantize_activations:
        check_products(choices.quantization, (one := mesh.devices.flat[0]).platform, one.device_kind)
    system = _Untokenised(
        dataclasses.replace(config.system, networks={}, transformer=transformer),
        quantize_activations=choices.quantize_activations,
    )
    params = _inference_params(system, mesh, choices.quantization)
    sampler = Sampler(system, params, mesh, choices.tile)
    b = choices.batch or sampler.data_shards
    if b % sampler.data_shards:
        raise InputError(f"--batch {b} does not divide over {sampler.data_shards} (data x fsdp) devices")
    whole, split = sharding.replicated(mesh), NamedSharding(mesh, sharding.BATCH)
    part = lambda name: {path: value for path, value in params.items() if path.startswith(f"{name}/")}

    def program(label: str, name: str, component: str, *arguments: Any, static: tuple = ()) -> Program:
        others = {path: value for path, value in params.items() if not path.startswith(f"{component}/")}
        arguments = (part(component), *arguments)
        return Program(label, sampler.programs[name], arguments, static, {} if choices.offload else others)

    floats = lambda *shape: _struct((b, *shape), jnp.float32, split)
    height, width = stage.target_size
    (rows, columns), depth = system.token_grid(height, width), config.system.transformer.in_channels
    tokens = {name: _struct((b, *null.shape), jnp.int32, split) for name, null in system.null_tokens.items()}
    x = floats(rows * columns, depth)
    if choices.mode == "encode-parts":
        side = config.system.siglip and config.system.siglip.image_size
        image = lambda *shape: _struct((*shape, 3), jnp.uint8, whole)
        tower = [] if side is None else [program("SigLIP", "features", "siglip", image(1, 1, side, side))]
        return [
            program(" + ".join(map(_NAMES.__getitem__, config.system.text.encoders)), "text", "text", tokens),
            *tower,
            program("VAE encode", "encode", "autoencoder", image(1, *stage.content_size)),
            program("VAE decode", "decode", "autoencoder", x, static=(height, width)),
        ]
    place = lambda struct, to: _struct(struct.shape, struct.dtype, to)
    text = jax.eval_shape(sampler.programs["text"], part("text"), tokens)
    txt, y = (None if struct is None else place(struct, split) for struct in text)
    ids = lambda make: place(jax.eval_shape(make), whole)
    # A dict, because jaxtyping checks that `Inputs` holds arrays.
    inputs: dict[str, Any] = dict.fromkeys(Inputs.arrays())
    inputs |= {"txt": txt, "y": y, "img_ids": ids(lambda: system.position_ids(rows, columns))}
    if system.classifier_free and config.heldout.guidance != 1:
        inputs["negative_txt"] = txt
    style, projector = None, config.system.transformer.projector
    if "style" in stage.conditions and projector is not None:
        n = config.data.num_styles
        features = floats(n, len(projector.layers), projector.siglip_tokens, projector.siglip_dim)
        style = place(jax.eval_shape(sampler.programs["style"], part("transformer"), features), split)
    grids = [system.token_grid(*stage.content_size)] * choices.references if "content" in stage.conditions else []
    if "style" in stage.conditions and config.system.style_encoder == "autoencoder":
        grids += [system.token_grid(*config.style_size(stage))] * config.data.num_styles
    if grids:
        count = sum(map(math.prod, grids))
        inputs["ref_img"] = floats(count, depth)
        inputs["ref_ids"] = ids(lambda: system.reference_ids((rows, columns), grids))
    state = (floats(), floats(), floats(), None, None)  # two times, guidance, no cache and no earlier step
    if stage.isolated == "none":
        return [program("sampling step", "step", "transformer", inputs, style, x, *state)]
    first = program("references", "prepare", "transformer", inputs, style, floats(), static=(stage.isolated,))
    prepared, later_style = jax.eval_shape(first.function, *first.arguments, *first.static)
    by_layer = NamedSharding(mesh, PartitionSpec(None, *sharding.BATCH))
    kept = jax.tree.map(lambda one: place(one, split if one.ndim == 2 else by_layer), prepared["kept"])
    inputs = {name: None if prepared[name] is None else struct for name, struct in inputs.items()} | {"kept": kept}
    style = None if later_style is None else style
    return [first, program("sampling step", "step", "transformer", inputs, style, x, *state)]


def _inference_params(system: QuantizedUSO, mesh: Mesh, mode: str) -> Structs:
    """Return descriptions of parameters with the dtypes and shardings of loaded weights."""
    shardings = sharding.shardings(mesh, placement_rules(), system.shapes)

    def dtype(path: str) -> Any:
        return jnp.float32 if component_of(path)[0] in FULL_PRECISION else system.config.transformer.dtype

    structs = {path: _struct(shape.shape, dtype(path), shardings[path]) for path, shape in system.shapes.items()}
    return _quantised(structs, mode)


def _quantised(structs: Structs, mode: str) -> Structs:
    """Return descriptions of parameters imported with --quantize; the sampler stores int4 as int8."""
    _check_mode(mode)
    found = describe(structs, mode)
    return {
        path: _struct(s.shape, jnp.int8 if s.dtype == jnp.int4 else s.dtype, s.sharding) for path, s in found.items()
    }


def _check_mode(mode: str) -> None:
    if mode and mode not in quantize.FORMATS:
        raise InputError(f"--quantization must be one of {', '.join(quantize.FORMATS)}, not {mode!r}")


def _struct(shape: Sequence[int], dtype: Any, place: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=place)


def device_bytes(tree: Any) -> int:
    """Return the bytes per device of described arrays."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
