# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The tasks that the benchmark times, at three sizes, in uso_jax; torch_peer.py has the other side.

The weights are torch's random ones, brought through the conversion tables, so both sides compute the same numbers.
Tasks of one network share them.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from convert.layouts import family_by_name
from uso_jax import flow
from uso_jax.hardware import flops
from uso_jax.models.autoencoder import AutoEncoder, AutoEncoderConfig
from uso_jax.models.flux import Flux, FluxConfig
from uso_jax.models.siglip import SiglipConfig, SiglipVision
from uso_jax.params import ModelDef, Params
from uso_jax.weights import quantization, quantized_kernels
from uso_jax.weights.tables.table import to_flax

RATE = 1e-4  # of AdamW
_GUIDANCE = 3.5


@dataclass(frozen=True)
class Sizes:
    """Sizes of the networks and their inputs; a batch of one."""

    transformer: FluxConfig
    text: int  # tokens, those of a style image included
    target: tuple[int, int]  # token grid
    reference: tuple[int, int]  # token grid
    rank: int  # of the adapters in training
    autoencoder: AutoEncoderConfig
    latent: tuple[int, int]
    siglip: SiglipConfig
    matmul: int  # a side, of the product that is the ceiling

    @property
    def tokens(self) -> int:
        """Length of the transformer's sequence."""
        return self.text + sum(rows * columns for rows, columns in (self.target, self.reference))


def _flux(width: int, heads: int, double: int, single: int, **changes) -> FluxConfig:
    sizes = dict(hidden_size=width, num_heads=heads, depth=double, depth_single_blocks=single)
    return FluxConfig(**(sizes | dict(dtype="float32", remat="none") | changes))


SIZES = {
    "full": Sizes(
        FluxConfig(), 512 + 192, (64, 64), (32, 32), 128, AutoEncoderConfig(dtype="bfloat16"), (128, 128),
        SiglipConfig(dtype="bfloat16", remat="none"), 8192,
    ),
    "small": Sizes(
        _flux(512, 4, 4, 8, context_in_dim=512), 128, (32, 20), (16, 16), 16, AutoEncoderConfig(ch=64), (16, 16),
        SiglipConfig(384, 1536, 8, 6, remat="none"), 1024,
    ),
    "tiny": Sizes(
        _flux(32, 2, 1, 1, context_in_dim=16, vec_in_dim=16, in_channels=16, axes_dim=(4, 6, 6)), 8, (4, 4), (2, 4), 4,
        AutoEncoderConfig.tiny(), (4, 4), SiglipConfig.tiny(num_hidden_layers=1), 64,
    ),
}  # fmt: skip
Run = Callable[[], np.ndarray]  # does a task, waits for it, and gives an array to compare
NETWORKS = {  # task -> its network
    "step": "transformer", "lora": "transformer", "decode": "autoencoder", "siglip": "siglip", "sample": "transformer",
}  # fmt: skip
_FAMILIES = {"transformer": "flux-diffusers", "autoencoder": "flux-ae-diffusers", "siglip": "siglip"}


@dataclass(frozen=True)
class Variant:
    """How uso_jax runs a task.

    Attributes:
      tasks: that have it.
      masked: pass a mask of the reference tokens in which all are valid.
      adapters: keep adapters beside the transformer.
      mode: format of the kernels, one of quantization.FORMATS; "": the dtype of the network.
      options: of XLA's compiler.
      backend: on which it can run; "": any.
    """

    tasks: tuple[str, ...] = ()
    masked: bool = False
    adapters: bool = False
    mode: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    backend: str = ""


VARIANTS = {  # beside what users run: adapters merged, no mask where all is valid, blocks in a loop
    "masked": Variant(("step", "lora"), masked=True),
    "adapters": Variant(("step",), adapters=True),
    "int8": Variant(("step",), mode="int8"),
    "fp8": Variant(("step",), mode="fp8"),
    "unrolled": Variant(
        ("step", "lora"),
        options={"xla_gpu_enable_while_loop_unrolling": "WHILE_LOOP_UNROLLING_FULL_UNROLL"},
        backend="gpu",
    ),
    "scheduled": Variant(("step", "lora"), options={"xla_gpu_enable_latency_hiding_scheduler": True}, backend="gpu"),
}
PLAIN = Variant()


def variants_of(task: str) -> list[str]:
    """Return the names of the variants of a task that this machine can run."""
    here = jax.default_backend()
    return [name for name, one in VARIANTS.items() if task in one.tasks and one.backend in ("", here)]


@dataclass
class _Network:
    """A network, how a task calls it, and its inputs."""

    make: Callable[[nnx.Rngs], nnx.Module]
    call: Callable[[Any, dict[str, Any]], Array]
    inputs: dict[str, np.ndarray]


def _network(task: str, sizes: Sizes, variant: Variant = PLAIN) -> _Network:
    if task == "decode":
        shape = (1, *sizes.latent, sizes.autoencoder.z_channels)
        return _Network(
            lambda rngs: AutoEncoder(sizes.autoencoder, rngs=rngs),
            lambda model, inputs: model.decode_unscaled(inputs["z"]),
            {"z": normal(0, *shape)},
        )
    if task == "siglip":
        side = sizes.siglip.image_size
        return _Network(
            lambda rngs: SiglipVision(sizes.siglip, rngs=rngs),
            lambda model, inputs: model(inputs["pixels"]).last_hidden_state.astype(jnp.float32),
            {"pixels": normal(0, 1, side, side, 3)},
        )
    c = dataclasses.replace(sizes.transformer, lora_rank=sizes.rank if task == "lora" or variant.adapters else 0)
    inputs = tokens(sizes)
    if variant.masked:
        inputs["ref_valid"] = np.ones(inputs["ref_img"].shape[:2], bool)
    return _Network(lambda rngs: Flux(c, rngs=rngs), lambda model, inputs: model(**inputs), inputs)


def tokens(sizes: Sizes) -> dict[str, np.ndarray]:
    """Draw the inputs of the transformer."""
    c = sizes.transformer
    grid, (rows, columns) = sizes.target, sizes.reference
    return {
        "img": normal(0, 1, grid[0] * grid[1], c.in_channels),
        "img_ids": np.asarray(flow.position_ids(*grid))[None],
        "txt": normal(1, 1, sizes.text, c.context_in_dim),
        "timesteps": np.ones(1, np.float32),
        "y": normal(2, 1, c.vec_in_dim),
        "guidance": np.full(1, _GUIDANCE, np.float32),
        "ref_img": normal(3, 1, rows * columns, c.in_channels),
        "ref_ids": np.asarray(flow.reference_ids(grid, [sizes.reference])[0])[None],
    }


def normal(seed: int, *shape: int) -> Float[np.ndarray, "..."]:
    """Draw from the standard normal distribution."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def times(steps: int) -> Float[np.ndarray, " steps_plus_1"]:
    """Return the sampling times, without a shift."""
    return np.linspace(1, 0, steps + 1, dtype=np.float32)


_OPTIMIZER = optax.adamw(RATE, weight_decay=0.01)  # torch's default decay


def _train_step(structure: Callable[[Params], nnx.Module], call: Callable, trained, moments, frozen, inputs, target):
    loss = lambda trained: jnp.square(call(structure(frozen | trained), inputs) - target).mean()
    value, grads = jax.value_and_grad(loss)(trained)
    updates, moments = _OPTIMIZER.update(grads, moments, trained)
    return optax.apply_updates(trained, updates), moments, value[None]


def describe(task: str, sizes: Sizes, steps: int) -> tuple[int, float]:
    """Return a task's number of parameters and of operations (a multiply-add counts as two), without running it."""
    plain = dataclasses.replace(sizes.transformer, attention="xla", remat="none")
    network = _network(task, dataclasses.replace(sizes, transformer=plain))
    structure, inputs = ModelDef(network.make), network.inputs
    num = sum(x.size for x in structure.shapes.values())
    if task == "lora":
        trained, frozen = _parts(structure.shapes)
        moments = jax.eval_shape(_OPTIMIZER.init, trained)
        step = lambda *args: _train_step(structure, network.call, *args)
        return num, flops.count_flops(step, trained, moments, frozen, inputs, inputs["img"])
    once = flops.count_flops(lambda params, inputs: network.call(structure(params), inputs), structure.shapes, inputs)
    return num, once * (steps if task == "sample" else 1)


def _parts(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    adapters = {path for path in params if "processor/" in path}
    return {k: params[k] for k in adapters}, {k: v for k, v in params.items() if k not in adapters}


def load(task: str, sizes: Sizes, weights: Iterable[tuple[str, np.ndarray]]) -> Params:
    """Return the parameters of a task's network, without adapters, on the device; `weights` are torch's tensors."""
    shapes = ModelDef(_network("step" if NETWORKS[task] == "transformer" else task, sizes).make).shapes
    return jax.device_put(to_flax(family_by_name(_FAMILIES[NETWORKS[task]]).rows, shapes, weights))


def _draw_adapters(shapes: Mapping[str, Any], sizes: Sizes) -> Params:
    """Draw adapters that change nothing yet."""
    dtype = jnp.dtype(sizes.transformer.dtype)
    draw = lambda path, x: jnp.asarray(normal(len(path), *x.shape) / sizes.rank, dtype)
    adapters, _ = _parts(shapes)
    return {k: jnp.zeros(v.shape, dtype) if "/up/" in k else draw(k, v) for k, v in adapters.items()}


def _quantise(params: Params, mode: str) -> Params:
    """Quantise kernels on the device, with one scale for each output channel."""
    dtype, largest = quantization.FORMATS[mode]

    @jax.jit
    def quantise(kernel):
        kernel = kernel.astype(jnp.float32)
        scale = jnp.max(jnp.abs(kernel), axis=-2, keepdims=True) / largest
        numbers = kernel / scale
        return (jnp.round(numbers) if mode == "int8" else numbers).astype(dtype), scale

    found = dict(params)
    structs = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in params.items()}
    for path in quantization.choose("transformer", structs):
        found[path], found[quantization.scale_path(path)] = quantise(params[path])
    return found


def run(task: str, sizes: Sizes, steps: int, params: Params, variant: Variant = PLAIN) -> tuple[Run, int | None]:
    """Return a compiled task and the bytes that its program needs besides its arguments."""
    network = _network(task, sizes, variant)
    definition, dtype = ModelDef(network.make), jnp.dtype(sizes.transformer.dtype)
    structure = lambda params: definition(quantized_kernels.join(params, lambda path: dtype))
    compiled = lambda lowered: lowered.compile(compiler_options=dict(variant.options))
    inputs = jax.device_put(network.inputs)
    adapters = _draw_adapters(definition.shapes, sizes)
    if task == "lora":
        state = [adapters, _OPTIMIZER.init(adapters)]
        step = jax.jit(lambda *args: _train_step(structure, network.call, *args), donate_argnums=(0, 1))
        target = jax.device_put(normal(9, *inputs["img"].shape))
        program = compiled(step.lower(*state, params, inputs, target))

        def train():
            state[0], state[1], loss = program(*state, params, inputs, target)
            return np.asarray(loss)

        return train, _temporary(program)
    params = (_quantise(params, variant.mode) if variant.mode else params) | adapters
    if task == "sample":
        advance = lambda params, inputs, t, s: flow.euler_step(
            inputs["img"], network.call(structure(params), inputs | {"timesteps": t}), t, s
        )
        moments = [jnp.full(1, t) for t in times(steps)]
        program = compiled(jax.jit(advance).lower(params, inputs, *moments[:2]))

        def sample():
            x = inputs
            for t, s in itertools.pairwise(moments):
                x = inputs | {"img": program(params, x, t, s)}
            return np.asarray(x["img"])

        return sample, _temporary(program)
    program = compiled(jax.jit(lambda params, inputs: network.call(structure(params), inputs)).lower(params, inputs))
    return lambda: np.asarray(program(params, inputs)), _temporary(program)


def _temporary(program: jax.stages.Compiled) -> int | None:
    analysis = program.memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes + analysis.output_size_in_bytes)
