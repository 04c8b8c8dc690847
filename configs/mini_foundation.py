# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The networks that mini starts from, trained from random numbers on drawings: FLUX.1, SigLIP and CSD in small.

    python scripts/train.py --config configs/mini_foundation.py         all of them, in order
    python scripts/train.py --config configs/mini_foundation.py:base    one of them
    python scripts/train.py --config configs/mini_foundation.py:base64  then the base at 64 pixels
    python scripts/train.py --config configs/mini_foundation.py:tower   and its style tower

The base is trained in four stages and never sees a style image:

    look      learn to look at a reference, by copying it now and then
    base      follow text and references of the same subject, placed diagonally
    tokens    read styles from the text's tokens, because CLIP's vector lacks the end of captions
    guidance  distil guidance into the model, as in FLUX.1-dev

judge and base alone need --config.model.weights with an autoencoder.
"""

import pathlib
import runpy
import types
from dataclasses import replace

from uso_jax.training.config import CheckpointConfig, HeldoutConfig, TrainConfig, override
from uso_jax.training.model_config import ModelConfig
from uso_jax.training.stage import StageConfig, by_name

VARIANTS = {
    "all": "all of the following at 32 pixels, in order",
    "autoencoder": "FLUX.1's convolutional autoencoder",
    "siglip": "image and text towers, by the sigmoid loss",
    "csd": "style and content descriptors, by contrast",
    "judge": "a classifier of subjects and styles, to measure with",
    "base": "text encoders and transformer, in the stages look, base, tokens and guidance",
    "base64": "the base of tests/mini32, trained further at 64 pixels by look, base and guidance",
    "tower": "the style tower of the 64-pixel model, by the words for style images",
}
BASE = ("look", "base", "tokens", "guidance")
RUNS = {
    "all": ("autoencoder", "siglip", "csd", "judge", *BASE),
    "base": BASE,
    "base64": ("look", "base", "guidance"),
    "tower": ("tower", "match"),
}
_SAID = dict(
    tasks=dict(text=1.5, subject=8.5),
    style_words=0.95,
    subject_words=0.3,
    sentences=0.3,
    same_look=0.02,
    plain=0.1,
    preserved=0.85,
)


def get_config(variant: str = "all") -> TrainConfig:
    """Return the configuration of one part, or of all.

    Raises:
      ValueError: the variant is unknown.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known are {', '.join(VARIANTS)}")
    uso = _uso()
    if variant == "tower":
        return _tower(uso)
    pixels, weights = (64, "tests/mini32") if variant == "base64" else (32, "")
    config = TrainConfig(
        variant="mini_foundation" if variant == "all" else f"mini_{variant}",
        run=RUNS.get(variant, (variant,)),
        model=_base_model(uso.MINI32, weights),
        data=uso.mini_data(pixels),
        stages=by_name(*_networks(pixels), *_base(pixels)),
        checkpoint=CheckpointConfig(every=1000, keep=2),
        log_every=50,
        heldout=HeldoutConfig(
            num_batches=8, batch_size=32, every=2000, grid_every=2000, num_steps=12, guidance=3.0, shift="flux"
        ),
    )
    if variant == "base64":  # the base is trained already, and learns larger images, sentences and more from text
        both = {"look.steps": 1500, "base.steps": 8500, "guidance.steps": 1500}
        both |= {"base.data": _SAID, "guidance.data": _SAID, "base.clip_cut": 0.9, "base.all_dropout": 0.05}
        return override(config, {f"stages.{key}": value for key, value in both.items()})
    return config


def _base_model(mini: ModelConfig, weights: str) -> ModelConfig:
    """Return mini without USO's adapters and projector."""
    transformer = replace(mini.transformer, lora_rank=0, projector=None)
    return replace(mini, transformer=transformer, weights=weights, fresh=("lora", "projector"))


def _tower(uso: types.SimpleNamespace) -> TrainConfig:
    """Return the training of a style tower that tells drawing styles apart, on the package's 64-pixel base.

    Tower and projector learn together what the base's text encoder says of whole style images; the loss of image and
    text alone needs many times the images. The pooling head and the text tower are trained on the frozen layers.
    """
    common = _common(64) | dict(text_dropout=0.0, batch_size=64)
    tower = StageConfig(
        "tower",
        **common,
        loss="words",
        steps=2500,
        train=((r"(siglip|transformer/feature_embedder)/.*", 1.0), (r".*", None)),
        conditions=("style",),
        data=dict(tasks=dict(style=1.0), captions="style_image"),
        optimizer="muon",
        learning_rate=2e-3,
    )
    match = StageConfig(
        "match",
        **common,
        loss="image_text",
        steps=1500,
        train=((r"siglip/(head|post_layernorm)/.*", 1.0), (r"siglip_text/.*", 1.0), (r".*", None)),
        conditions=(),
        data=dict(tasks=dict(text=1.0), style_words=0.8, sentences=0.3),
        learning_rate=2e-3,
    )
    transformer = replace(uso.MINI.transformer, lora_rank=0)
    fresh = ("projector", "siglip", "siglip_text")
    return TrainConfig(
        variant="mini_tower",
        run=("tower", "match"),
        model=replace(uso.MINI, transformer=transformer, fresh=fresh),
        data=uso.mini_data(64),
        stages=by_name(tower, match),
        checkpoint=CheckpointConfig(every=500, keep=2),
        log_every=50,
        heldout=HeldoutConfig(num_batches=8, batch_size=64, every=500, num_steps=12, guidance=3.0, shift="flux"),
    )


def _common(pixels: int) -> dict:
    square = dict(target_size=(pixels, pixels), content_size=(pixels, pixels))
    return square | dict(warmup_steps=100, betas=(0.9, 0.99), decay="cosine")


def _only(*names: str) -> tuple:
    """Return rules that train these components alone."""
    return (*((rf"{name}/.*", 1.0) for name in names), (r".*", None))


def _networks(pixels: int) -> tuple[StageConfig, ...]:
    """Return the stages of all networks but the base."""
    common = _common(pixels)
    return (
        StageConfig(
            "autoencoder",
            **common,
            loss="reconstruction",
            steps=2400,
            batch_size=32,
            train=_only("autoencoder"),
            conditions=(),
            data=dict(tasks=dict(text=1.0)),
            learning_rate=3e-3,
        ),
        StageConfig(
            "siglip",
            **common,
            loss="image_text",
            steps=3000,
            batch_size=64,
            train=_only("siglip", "siglip_text"),
            conditions=(),
            data=dict(tasks=dict(text=1.0), style_words=0.7),
            learning_rate=1e-3,
        ),
        StageConfig(
            "csd",
            **common,
            loss="descriptors",
            steps=2500,
            batch_size=64,
            train=_only("csd"),
            data=dict(tasks=dict(style_subject=1.0)),
            learning_rate=1e-3,
        ),
        StageConfig(
            "judge",
            **common,
            loss="classification",
            steps=2500,
            batch_size=64,
            train=_only("judge"),
            conditions=(),
            data=dict(tasks=dict(text=1.0)),
            learning_rate=2e-3,
        ),
    )


def _base(pixels: int) -> tuple[StageConfig, ...]:
    """Return the stages of text encoders and transformer."""
    everything = _only("transformer", "text")
    # Captions leave out the subject in part: where they always name it, the model draws it from its name, and a subject
    # without a known name is lost.
    captions = dict(style_words=0.9, subject_words=0.3)
    mixed = captions | dict(tasks=dict(text=1.0, subject=9.0), same_look=0.03, plain=0.12, preserved=0.85)
    base = StageConfig(
        "base",
        **_common(pixels),
        steps=18_000,
        train=((r"transformer/guidance_in/.*", None), *everything),  # zero at first, and trained in `guidance` only
        conditions=("content",),
        data=mixed,
        optimizer="muon",
        learning_rate=2e-3,
        text_dropout=0.05,
    )
    copies = dict(tasks=dict(text=1.0, subject=4.0), style_words=0.85, same_look=0.3, plain=0.3, preserved=0.8)
    return (
        replace(base, name="look", steps=3000, decay="constant", data=captions | copies),
        base,
        replace(base, name="tokens", steps=12_000, clip_cut=0.9, all_dropout=0.05),
        replace(
            base,
            name="guidance",
            loss="guidance",
            steps=2500,
            train=everything,
            optimizer="adamw",
            learning_rate=3e-4,  # the model is its own teacher, so it must not change fast
            text_dropout=0.0,
            clip_cut=0.9,
            all_dropout=0.1,
        ),
    )


def _uso() -> types.SimpleNamespace:
    """Load configs/uso.py, which has mini's sizes."""
    return types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).with_name("uso.py"))))
