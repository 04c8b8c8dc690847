# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The gradient of the whole reward path, against finite differences in float64 and against torch's autograd."""

import dataclasses

import image_encoders as encoders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from einops import rearrange
from oracle_torch import autoencoder_pair, flux_names, flux_pair, normal
from training_steps import batch

from uso_jax import flow, params
from uso_jax.images import preprocess
from uso_jax.models.autoencoder import AutoEncoderConfig
from uso_jax.models.clip import ClipTextConfig
from uso_jax.models.flux import FluxConfig
from uso_jax.models.t5 import T5Config
from uso_jax.models.text import T5ClipConfig
from uso_jax.models.uso import USO, Inputs
from uso_jax.models.uso_config import USOConfig
from uso_jax.training import rewards
from uso_jax.training.objectives import flow_matching, reward
from uso_jax.training.stage import RewardConfig
from uso_jax.weights.tables.flux import TRANSFORMER
from uso_jax.weights.tables.table import to_flax

pytestmark = pytest.mark.slow  # compiles or runs whole programs

REWARD = dict(weights=dict(csd_style=1.0, gram_style=0.3), start=0, num_steps=4, first=2, last=2)
VGG = dict(channels=(6, 8), depths=(2, 1), image_size=16, dtype="float64")
NETWORKS = {"model.fresh": ("csd", "vgg"), "model.rewards.vgg": VGG}
FLOAT64 = {f"model.{part}.dtype": "float64" for part in ("transformer", "autoencoder", "siglip", "csd", "siglip_text")}
FLOAT64 |= {"model.text.t5.dtype": "float64", "model.text.clip.dtype": "float64"}


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


def config(changes=(), **stage_changes):
    return tiny.config("joint", changes=NETWORKS | dict(changes), **stage_changes)


def draw(shapes, dtype) -> dict[str, jax.Array]:
    """Draw every parameter; convolutions and dense layers keep the size of what flows through them."""
    rng, found = np.random.default_rng(0), {}
    for path, shape in shapes.items():
        fan_in = (
            np.prod(shape.shape[:3]) if len(shape.shape) == 4 else (*shape.shape, 1, 1)[-2 if shape.shape[1:] else 0]
        )
        width = fan_in**-0.5 if path.endswith("kernel") else 0.3
        found[path] = jnp.asarray(rng.normal(0, width, shape.shape), dtype)
    return found


def attention(q, k, v, bias=None, mask=None, *, scale=None, is_causal=False, implementation=None):
    """Attend without the float32 softmax of JAX's own."""
    logits = jnp.einsum("blnk,bsnk->bnls", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    logits = logits if bias is None else logits + bias
    logits = logits if mask is None else jnp.where(mask, logits, -jnp.inf)
    if is_causal:
        logits = jnp.where(jnp.tril(jnp.ones(logits.shape[-2:], bool))[None, None], logits, -jnp.inf)
    return jnp.einsum("bnls,bsnk->blnk", jax.nn.softmax(logits), v)


# The anchor's gradient is 10,000 times the reward's in networks of random numbers.
@pytest.mark.parametrize(("gradient_steps", "anchor_weight"), [(1, 0.0), (2, 1e-4)])
def test_finite_differences(gradient_steps, anchor_weight, monkeypatch):
    # What the networks keep in float32, whatever their own precision is, would hide errors of 1e-4 in its rounding.
    monkeypatch.setattr(jnp, "float32", jnp.float64)
    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    with jax.enable_x64(True):
        (stage,) = config(FLOAT64, reward=REWARD | dict(gradient_steps=gradient_steps, anchor=anchor_weight)).run_stages
        system = USO(config(FLOAT64, reward=REWARD).system)
        numbers = draw(system.shapes, jnp.float64)
        rates = stage.lr_multipliers(system.shapes)
        trainable = {path: numbers[path] for path in rates}
        anchor = {path: 0.9 * value for path, value in trainable.items() if anchor_weight}
        frozen = {path: value for path, value in numbers.items() if path not in rates}
        plain = flow_matching.draw(jax.random.key(0), system, stage)
        draws = reward.draw(jax.random.key(1), system, stage)
        assert draws.noise.dtype == jnp.float64
        weighed = reward.weigh(system, stage, jax.tree.map(jnp.asarray, dict(batch())), plain)

        @jax.jit
        def analytic(trainable):
            args = (trainable, frozen, anchor, system, stage, weighed, (plain, draws), jnp.asarray(True))
            (_, value, _), (_, grads) = reward.value_and_grad(*args)
            dropped = flow_matching.drop_conditions(system, weighed, plain)
            _, inputs = flow_matching.encode({**frozen, **trainable}, system, stage, dropped)
            return value, grads, reward.roll_out({**frozen, **trainable}, system, stage, inputs, draws), inputs, dropped

        value, grads, x_t, inputs, dropped = analytic(trainable)
        assert value.dtype == jnp.float64

        @jax.jit
        def cost(trainable):
            whole = {**frozen, **trainable}
            described = rewards.describe(system, whole, stage.reward.weights, dropped)
            then = {**frozen, **anchor} if anchor_weight else None
            return reward.loss(whole, system, stage, inputs, dropped, described, x_t, draws.t, then)[0]

        assert float(cost(trainable)) == pytest.approx(float(value), rel=1e-12)
        errors, rng, step = {}, np.random.default_rng(1), 1e-5
        for part in ("feature_embedder", "qkv_lora1/down", "qkv_lora2/up", "single_blocks/processor/proj_lora"):
            paths = [path for path in trainable if part in path]
            direction = {path: jnp.asarray(rng.normal(size=trainable[path].shape)) for path in paths}
            move = lambda size, d=direction: {
                **trainable,
                **{path: trainable[path] + size * x for path, x in d.items()},
            }
            want = (cost(move(step)) - cost(move(-step))) / (2 * step)
            got = sum(jnp.vdot(grads[path], x) for path, x in direction.items())
            errors[part] = float(abs(got - want) / abs(want))
        print("finite differences", gradient_steps, errors)
        assert max(errors.values()) < 1e-4


# ---------------------------------------------------------------------------------------------------- torch

SIZE, GUIDANCE, T, STOP = (16, 24), 4.0, 4, 2  # pixels; embedded scale; steps of the schedule; step that has a gradient


def oracle_system() -> tuple[USO, dict[str, jax.Array]]:
    """Return a USO with the networks that `oracle_torch` pairs with torch's, and its parameters."""
    flux = FluxConfig.tiny(lora_rank=0)
    sizes = USOConfig(
        transformer=flux,
        autoencoder=AutoEncoderConfig.tiny(ch_mult=(1, 2, 4), num_res_blocks=2),
        siglip=None,
        text=T5ClipConfig(t5=T5Config.tiny(d_model=flux.context_in_dim), clip=ClipTextConfig.tiny()),
        networks={"csd": encoders.CLIP.vision},
    )
    system = USO(sizes)
    networks = {
        "transformer/": flux_pair(True)[0],
        "autoencoder/": autoencoder_pair()[0],
        "csd/backbone/": encoders.load_clip().vision_model,
    }
    numbers = {
        prefix + path: x for prefix, network in networks.items() for path, x in params.from_model(network).items()
    }
    rest = {path: shape for path, shape in system.shapes.items() if path not in numbers}
    numbers = {path: x for path, x in numbers.items() if path in system.shapes}
    return system, numbers | draw(rest, jnp.float32)


class Projected(torch.nn.Module):
    """Put style tokens, which are projected already, before the text that diffusers projects."""

    def __init__(self, embedder: torch.nn.Module, style: torch.Tensor):
        super().__init__()
        self.embedder, self.style = embedder, style

    def forward(self, txt):
        return torch.cat([self.style, self.embedder(txt)], dim=1)


def torch_style_tokens(weights: dict[str, torch.Tensor], features: torch.Tensor) -> torch.Tensor:
    tokens = []
    for i, level in enumerate(("high", "mid", "low")):
        get = lambda name, level=level: weights[f"transformer/feature_embedder/{level}_{name}"]
        x = features[:, 0, i].transpose(1, 2) @ get("embedding_linear/kernel") + get("embedding_linear/bias")
        x = F.silu(x).transpose(1, 2)
        x = F.layer_norm(x, x.shape[-1:], get("layer_norm/scale"), get("layer_norm/bias"), eps=1e-5)
        tokens.append(x @ get("projection/kernel") + get("projection/bias"))
    return torch.cat(tokens, dim=1)


def torch_csd(matrix: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Resize, crop, normalise and describe images [b, 3, h, w] in [-1, 1]."""
    size = encoders.CLIP.vision.image_size
    x, short = (images.clamp(-1, 1) + 1) / 2, min(images.shape[2:])
    height, width = (size * side // short for side in images.shape[2:])
    for shape in ((images.shape[2], width), (height, width)):
        x = F.interpolate(x, shape, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (height - size) // 2, (width - size) // 2
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (preprocess.CLIP.mean, preprocess.CLIP.std))
    x = (x[:, :, top : top + size, left : left + size] - mean) / std
    feature = encoders.torch_clip().vision_model(pixel_values=x).pooler_output
    return F.normalize(feature @ matrix, dim=-1)


def test_torch_autograd():
    system, numbers = oracle_system()
    b, (rows, columns), reference = 2, system.token_grid(*SIZE), (2, 1)
    noise, ref = normal(0, b, rows * columns, 16), normal(1, b, 2, 16)
    txt, vec, features = normal(2, b, 5, 20), normal(3, b, 12), normal(4, b, 1, 3, 4, 24)
    style = np.random.default_rng(5).integers(0, 256, (b, 1, 20, 20, 3)).astype(np.uint8)

    # ------------------------------------------------------------------------------------------------ ours
    stage = dataclasses.replace(
        tiny.config("joint").run_stages[0],
        target_size=SIZE,
        batch_size=b,
        reward=RewardConfig(dict(csd_style=1.0), 0, num_steps=T, first=STOP, last=STOP, guidance=GUIDANCE),
    )
    img_ids, ref_ids = flow.position_ids(rows, columns), flow.reference_ids((rows, columns), [reference])[0]
    inputs = Inputs(
        txt=jnp.asarray(txt),
        y=jnp.asarray(vec),
        img_ids=img_ids[None],
        features=jnp.asarray(features),
        style_valid=jnp.ones((b, 1), bool),
        ref_img=jnp.asarray(ref),
        ref_ids=ref_ids[None],
        ref_valid=jnp.ones((b, 2), bool),
    )
    batch = {
        "target": jnp.zeros((b, *SIZE, 3), jnp.uint8),
        "style": jnp.asarray(style),
        "style_valid": jnp.ones((b, 1), bool),
        reward.SHARE: jnp.ones(b),
    }
    draws = reward.Draws(jnp.asarray(noise), jnp.asarray(STOP))
    transformer = {path: x for path, x in numbers.items() if path.startswith("transformer/")}

    @jax.jit
    def ours(transformer):
        described = rewards.describe(system, numbers, stage.reward.weights, batch)
        x_t = reward.roll_out({**numbers, **transformer}, system, stage, inputs, draws)

        def cost(transformer):
            return reward.loss({**numbers, **transformer}, system, stage, inputs, batch, described, x_t, draws.t)[0]

        return jax.value_and_grad(cost)(transformer)

    value, grads = ours(transformer)

    # ------------------------------------------------------------------------------------------------ torch
    t = lambda x: torch.from_numpy(np.array(x))
    theirs, codec = flux_pair(True)[1].requires_grad_(True), autoencoder_pair()[1]
    projector = {path: t(x).requires_grad_(True) for path, x in transformer.items() if "feature_embedder" in path}
    embedder = theirs.context_embedder
    ids = t(np.concatenate([img_ids, ref_ids]))

    def velocity(x, time):
        theirs.context_embedder = Projected(embedder, torch_style_tokens(projector, t(features)))
        made = theirs(
            hidden_states=torch.cat([x, t(ref)], dim=1),
            encoder_hidden_states=t(txt),
            pooled_projections=t(vec),
            timestep=torch.full((b,), time),
            img_ids=ids,
            txt_ids=torch.zeros(11, 3),
            guidance=torch.full((b,), GUIDANCE),
        ).sample
        theirs.context_embedder = embedder
        return made[:, : x.shape[1]]

    times = [float(x) for x in flow.schedule(T, 16 * rows, 16 * columns, "flux")]
    x = t(noise)
    with torch.no_grad():
        for number in range(T - STOP):
            x = x + (times[number + 1] - times[number]) * velocity(x, times[number])
    x0 = x - times[T - STOP] * velocity(x, times[T - STOP])
    latent = rearrange(x0, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, p=2, q=2)
    c = system.config.autoencoder
    images = codec.decode(latent / c.scale_factor + c.shift_factor).sample
    matrix, wanted = t(numbers["csd/last_layer_style"]), rearrange(t(style), "b 1 h w c -> b c h w") / 127.5 - 1
    with torch.no_grad():
        described = torch_csd(matrix, wanted)
    loss = -(torch_csd(matrix, images) * described).sum(dim=-1).mean()
    loss.backward()

    found = {
        name: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy()
        for name, p in theirs.named_parameters()
    }
    shapes = {p.removeprefix("transformer/"): x for p, x in system.structures["transformer"].shapes.items()}
    shapes = {path: x for path, x in shapes.items() if not path.startswith("feature_embedder")}
    want = {f"transformer/{path}": x for path, x in to_flax(TRANSFORMER, shapes, flux_names(found).items()).items()}
    want |= {path: x.grad.numpy() for path, x in projector.items()}
    theirs.requires_grad_(False)

    assert float(value) == pytest.approx(loss.item(), abs=1e-5)
    assert want.keys() == grads.keys()
    largest = max(np.abs(x).max() for x in want.values())
    norm = lambda tree: np.sqrt(sum(np.square(np.asarray(x, np.float64)).sum() for x in tree.values()))
    distance = norm({path: np.asarray(grads[path]) - x for path, x in want.items()}) / norm(want)
    worst = max(np.abs(np.asarray(grads[path]) - x).max() for path, x in want.items()) / largest
    print("torch", float(value), loss.item(), distance, worst)
    assert min(np.abs(x).max() for path, x in want.items() if "projection/kernel" in path) > 0
    assert distance < 1e-4 and worst < 1e-4
