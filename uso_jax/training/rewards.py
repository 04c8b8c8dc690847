# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Rewards by name: how well a generated image fits its style image, content image and prompt.

A reward is a pair of pure functions. `describe` reads the references, once per sample and without gradient. `score`
compares images with the result, differentiably, and returns one number per sample; higher is better. Both call frozen
networks of the model, which have no training mode: no dropout, no batch statistics. A new reward is a few lines:

    def brightness(system, params, images, described):
        return jnp.mean(images, axis=(1, 2, 3))

    rewards.add("brightness", rewards.Reward(score=brightness))

The name "preference:FILE" is that of a scorer that was fitted to what people prefer (uso_jax.training.preference).
Images are floats, nominally in [-1, 1]; every reward resizes, crops and normalises them as its metric does.
Shapes: b batch, h w pixels, n style images, d channels of a vector.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from uso_jax.common.errors import InputError
from uso_jax.images import preprocess
from uso_jax.models.clip import unit
from uso_jax.models.perceptual_backbones import gram
from uso_jax.models.uso import USO, Batch, to_float
from uso_jax.params import Params

Images = Float[Array, "b h w 3"]
Scores = Float[Array, " b"]


@dataclass(frozen=True)
class Reward:
    """The functions of a reward, and what they read.

    Attributes:
      score: (system, params, images, result of `describe`) -> one number per sample.
      describe: (system, params, batch) -> what depends on the references alone: an array with one row per sample, a
        list of such arrays, or None.
      components: names of the weights components that both read.
      tokens: token ids that `describe` reads, by their names in batches.
      embed: (system, params, images) -> a unit vector per sample, where the score is its product with `describe`'s.
      needs: what a sample must have to be scored, of "style", "content", "prompt", "style_label", "subject_label".
    """

    score: Callable[[USO, Params, Any, Any], Any]
    describe: Callable[[USO, Params, Batch], Any] = lambda system, params, batch: None
    components: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    embed: Callable[[USO, Params, Any], Any] | None = None


REWARDS: dict[str, Reward] = {}
PREFERENCE = "preference:"  # before the file of a fitted scorer


def add(name: str, reward: Reward) -> None:
    """Register a reward under a name, which configurations may then use.

    Raises:
      ValueError: the name is taken by a metric, or the reward needs something unknown.
    """
    if unknown := set(reward.needs) - set(_PRESENT):
        raise ValueError(f"reward {name!r} needs {sorted(unknown)}; known are {', '.join(_PRESENT)}")
    if name in _TAKEN:
        raise ValueError(f"a reward cannot be named {name!r}: its figures would be mistaken for others")
    REWARDS[name] = reward


def get(name: str) -> Reward:
    """Return the reward of a name.

    Raises:
      InputError: there is none, or the file of a fitted scorer cannot be read.
    """
    if name.startswith(PREFERENCE):
        from uso_jax.training import preference  # it builds on rewards

        return preference.reward(name.removeprefix(PREFERENCE))
    if name not in REWARDS:
        raise InputError(f"unknown reward {name!r}; known are {', '.join(REWARDS)}, {PREFERENCE}FILE")
    return REWARDS[name]


def check_names(names: Iterable[str], where: str) -> None:
    """Raise InputError for a name that is no reward; `where` begins the message."""
    for name in names:
        try:
            get(name)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error


def components(names: Iterable[str]) -> set[str]:
    """Return the names of the weights components that some rewards read."""
    names = tuple(names)
    check_names(names, "rewards")
    return {component for name in names for component in get(name).components}


def describe(system: USO, params: Params, names: Iterable[str], batch: Batch) -> dict[str, Any]:
    """Return what each reward reads of a batch's references, by name, without gradient.

    A batch of precomputed features holds it (`pack_described`).
    """
    if "txt" in batch:
        return {name: _unpack_described(batch, name) for name in names}
    return jax.lax.stop_gradient({name: get(name).describe(system, params, batch) for name in names})


def pack_described(described: Mapping[str, Any]) -> dict[str, Array]:
    """Return the result of `describe` as entries of a batch: "described/NAME", or "described/NAME/0", ... of a list."""
    found = {}
    for name, value in described.items():
        parts = {f"/{i}": one for i, one in enumerate(value)} if isinstance(value, list) else {"": value}
        found |= {f"described/{name}{end}": one for end, one in parts.items() if one is not None}
    return found


def _unpack_described(batch: Batch, name: str) -> Any:
    numbers = sorted(int(key.rpartition("/")[2]) for key in batch if key.startswith(f"described/{name}/"))
    if numbers:
        return [batch[f"described/{name}/{number}"] for number in numbers]
    return batch.get(f"described/{name}")


def score(system: USO, params: Params, images: Images, described: Mapping[str, Any]) -> dict[str, Scores]:
    """Return every described reward of a batch of images, by name."""
    return {name: get(name).score(system, params, images, what) for name, what in described.items()}


def valid(system: USO, names: Iterable[str], batch: Batch) -> dict[str, Bool[Array, " b"]]:
    """Return which samples of a batch have all references that each reward needs, by name."""
    found = {}
    for name in names:
        found[name] = jnp.ones(batch["style_valid"].shape[0], bool)
        for need in get(name).needs:
            found[name] &= _PRESENT[need](system, batch)
    return found


def _has_prompt(system: USO, batch: Batch) -> Bool[Array, " b"]:
    if "txt" in batch:
        null = jnp.asarray(system.null_text[0], batch["txt"].dtype)
        return jnp.any(batch["txt"] != null[None], axis=(1, 2))
    name = next(iter(system.null_tokens))  # of the encoder whose tokens the transformer reads
    return jnp.any(batch[name] != jnp.asarray(system.null_tokens[name])[None], axis=1)


_TAKEN = ("reward", "loss", "active", "skipped", "anchor")
_PRESENT: dict[str, Callable[[USO, Batch], Bool[Array, " b"]]] = {
    "style": lambda system, batch: jnp.any(batch["style_valid"], axis=1),
    "content": lambda system, batch: batch["content_valid"],
    "prompt": _has_prompt,
    "style_label": lambda system, batch: batch["style_label"] >= 0,
    "subject_label": lambda system, batch: batch["subject_label"] >= 0,
}


def _cosine(
    embed: Callable[[USO, Params, Images], Any], describe: Callable[[USO, Params, Batch], Any], **more
) -> Reward:
    """Return the reward that compares unit vectors of images and of references; `more` are its other attributes."""
    score = lambda system, params, images, other: jnp.sum(embed(system, params, images) * other, axis=-1)
    return Reward(score=score, describe=describe, embed=embed, **more)


def _styles(system: USO, params: Params, batch: Batch, embed: Callable[[USO, Params, Images], Any]) -> Any:
    """Embed all style images of a batch and return each sample's mean over those that it has."""
    b, n = batch["style"].shape[:2]

    def mean(found):
        found = found.reshape(b, n, *found.shape[1:])
        share = batch["style_valid"].reshape(b, n, *(1,) * (found.ndim - 2))
        return jnp.sum(found * share, axis=1) / jnp.maximum(jnp.sum(share, axis=1), 1)

    return jax.tree.map(mean, embed(system, params, to_float(batch["style"]).reshape(b * n, *batch["style"].shape[2:])))


# ---------------------------------------------------------------------------------------------------- style


def _csd(system: USO, params: Params, images: Images) -> Float[Array, "b d"]:
    encoder = system.module(params, "csd")
    return encoder(preprocess.CSD.resized(encoder.config.image_size).device(images)).style


add(
    "csd_style",  # cosine of CSD's style vectors: the paper's reward and metric
    _cosine(
        _csd,
        lambda system, params, batch: unit(_styles(system, params, batch, _csd)),
        components=("csd",),
        needs=("style",),
    ),
)


def _grams(system: USO, params: Params, images: Images) -> list[Float[Array, "b _ _"]]:
    network = system.module(params, "vgg")
    size = network.config.image_size
    seen = dataclasses.replace(preprocess.DINO, size=size, short_side=size).device(images)
    return [gram(features) for features in network(seen)]


def _gram_style(system: USO, params: Params, images: Images, style: list) -> Scores:
    error = lambda x: jnp.sum(jnp.square(x), axis=(1, 2))
    made = _grams(system, params, images)
    return -sum(error(x - y) / jnp.maximum(error(y), 1e-12) for x, y in zip(made, style, strict=True)) / len(style)


add(
    "gram_style",  # minus the distance of VGG's Gram matrices, relative to the style image's, averaged over blocks
    Reward(
        score=_gram_style,
        describe=lambda system, params, batch: _styles(system, params, batch, _grams),
        components=("vgg",),
        needs=("style",),
    ),
)


# ---------------------------------------------------------------------------------------------------- content and text


def _dino(system: USO, params: Params, images: Images) -> Float[Array, "b d"]:
    encoder = system.module(params, "dino")
    # Always a crop of 224 from 256, as in the metric; DINOv2's position embedding is larger.
    size = min(encoder.config.image_size, preprocess.DINO.size)
    return unit(encoder(preprocess.DINO.resized(size).device(images)).pooler_output)


add(
    "dino_content",  # cosine of DINO's class tokens
    _cosine(
        _dino,
        lambda system, params, batch: _dino(system, params, to_float(batch["content"])),
        components=("dino",),
        needs=("content",),
    ),
)


def _clip(system: USO, params: Params, images: Images) -> Float[Array, "b d"]:
    model = system.module(params, "clip_model")
    return model.embed_images(preprocess.CLIP.resized(model.config.vision.image_size).device(images))


add(
    "clip_content",  # CLIP-I: cosine of CLIP's image embeddings
    _cosine(
        _clip,
        lambda system, params, batch: _clip(system, params, to_float(batch["content"])),
        components=("clip_model",),
        needs=("content",),
    ),
)
add(
    "clip_text",  # CLIP-T: cosine of CLIP's image and text embeddings
    _cosine(
        _clip,
        lambda system, params, batch: system.module(params, "clip_model").embed_texts(batch["clip_ids"]),
        components=("clip_model",),
        needs=("prompt",),
        tokens=("clip_ids",),
    ),
)


def _siglip(system: USO, params: Params, images: Images) -> Float[Array, "b d"]:
    tower = system.module(params, "siglip")
    return unit(tower(preprocess.SIGLIP.resized(tower.config.image_size).device(images)).pooler_output)


add(
    "siglip_text",  # cosine of SigLIP's image and text vectors; mini has it in place of CLIP
    _cosine(
        _siglip,
        lambda system, params, batch: unit(system.module(params, "siglip_text")(batch["t5_ids"])),
        components=("siglip", "siglip_text"),
        needs=("prompt",),
        tokens=("t5_ids",),
    ),
)


# ------------------------------------------------------------------------------------------------- mini's classifier


def _probability(head: int) -> Callable[[USO, Params, Images, Any], Scores]:
    def score(system, params, images, labels):
        logits = system.module(params, "judge")(jnp.clip(images, -1, 1))[head]
        return jnp.take_along_axis(jax.nn.softmax(logits), jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]

    return score


add(
    "judge_content",  # probability of the true subject in the classifier of drawings
    Reward(
        score=_probability(0),
        describe=lambda system, params, batch: batch["subject_label"],
        components=("judge",),
        needs=("subject_label",),
    ),
)
add(
    "judge_style",  # probability of the true style
    Reward(
        score=_probability(1),
        describe=lambda system, params, batch: batch["style_label"],
        components=("judge",),
        needs=("style", "style_label"),
    ),
)


# ---------------------------------------------------------------------------------------------------- evaluation

EVALUATED = {"csd": "csd_style", "text_score": "siglip_text"}  # figure of the evaluation's tables -> reward
EVALUATION_COMPONENTS = {*components(EVALUATED.values()), "judge"}  # weights components that the tables read
