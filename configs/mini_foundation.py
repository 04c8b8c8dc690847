# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What mini starts from, trained from random numbers on drawings; FLUX.1, SigLIP and CSD in small.

    python scripts/train.py --config configs/mini_foundation.py         all five, in order
    python scripts/train.py --config configs/mini_foundation.py:base    one of autoencoder, siglip, csd, judge, base

    autoencoder   FLUX's convolutional autoencoder
    siglip        image and text towers, by the sigmoid loss
    csd           style and content descriptors, by contrast
    judge         a classifier of subjects and styles, to measure with
    base          text encoders and transformer, which never see a style image, in four stages:
                  look      learn to look at a reference, by copying it now and then
                  base      follow text and references of the same subject, placed diagonally
                  tokens    read styles from the text's tokens, by cutting what CLIP's vector tells
                  guidance  learn guidance into the model, as FLUX.1-dev has it
    small         the base of the package's mini, gone on at 64 pixels by look, base and guidance; not among all

One alone needs --config.model.weights where it builds on another: judge and base on autoencoder.
"""

import itertools
import pathlib
import runpy
import types

from ml_collections import ConfigDict

PARTS = {name: (name,) for name in ("autoencoder", "siglip", "csd", "judge")}
PARTS |= {"base": ("look", "base", "tokens", "guidance")}
SAMPLE = dict(num_batches=8, batch_size=32, every=2000, grid_every=2000, grid_rows=8, num_steps=12, guidance=3.0)


def get_config(variant: str = "all") -> ConfigDict:
    """Give the configuration of one part, or of all."""
    variants = {"all": tuple(itertools.chain(*PARTS.values())), **PARTS, "small": ("look", "base", "guidance")}
    if variant not in variants:
        raise ValueError(f"unknown variant {variant!r}; known are {', '.join(variants)}")
    uso = _uso()
    pixels, weights = (64, "mini") if variant == "small" else (32, "")
    square = dict(target_size=(pixels, pixels), content_size=(pixels, pixels))
    few = square | dict(warmup_steps=100, betas=(0.9, 0.99), decay="cosine")
    only = lambda *names: (*((rf"{name}/.*", 1.0) for name in names), (r".*", None))
    everything = only("transformer", "text")
    base = few | dict(
        batch_size=16,
        train=((r"transformer/guidance_in/.*", None), *everything),  # it starts silent, and stays so until `guidance`
        conditions=("content",),
        optimizer="muon",
        learning_rate=2e-3,
        text_dropout=0.05,
    )
    # Where captions always name the subject, it is drawn from its name, and one that was never read is lost.
    captions = dict(style_words=0.9, subject_words=0.3)
    mixed = dict(data=captions | dict(tasks=dict(text=1.0, subject=9.0), same_look=0.03, plain=0.12, preserved=0.85))
    # The model is its own teacher, so it must not move far at once.
    guided = base | mixed | dict(optimizer="adamw", learning_rate=3e-4, text_dropout=0.0, train=everything)
    guided |= dict(loss="guidance", clip_cut=0.9, all_dropout=0.1)
    config = dict(
        variant="mini_foundation" if variant == "all" else f"mini_{variant}",
        seed=0,
        run=variants[variant],
        model=_base_model(uso) | dict(weights=weights),
        data=uso.mini_data(pixels),
        stages=dict(
            autoencoder=uso.stage(
                **few,
                loss="reconstruction",
                steps=2400,
                batch_size=32,
                train=only("autoencoder"),
                conditions=(),
                data=dict(tasks=dict(text=1.0)),
                learning_rate=3e-3,
            ),
            siglip=uso.stage(
                **few,
                loss="image_text",
                steps=3000,
                batch_size=64,
                train=only("siglip", "siglip_text"),
                conditions=(),
                data=dict(tasks=dict(text=1.0), style_words=0.7),
                learning_rate=1e-3,
            ),
            csd=uso.stage(
                **few,
                loss="descriptors",
                steps=2500,
                batch_size=64,
                train=only("csd"),
                conditions=("content", "style"),
                data=dict(tasks=dict(style_subject=1.0)),
                learning_rate=1e-3,
            ),
            judge=uso.stage(
                **few,
                loss="classification",
                steps=2500,
                batch_size=64,
                train=only("judge"),
                conditions=(),
                data=dict(tasks=dict(text=1.0)),
                learning_rate=2e-3,
            ),
            look=uso.stage(
                **base | dict(decay="constant"),
                steps=3000,
                data=captions
                | dict(tasks=dict(text=1.0, subject=4.0), style_words=0.85, same_look=0.3, plain=0.3, preserved=0.8),
            ),
            base=uso.stage(**base | mixed, steps=18_000),
            tokens=uso.stage(**base | mixed, steps=12_000, clip_cut=0.9, all_dropout=0.05),
            guidance=uso.stage(**guided, steps=2500),
        ),
        mesh=dict(data=-1, fsdp=1, sequence=1, tensor=1),
        checkpoint=dict(every=1000, keep=2, keep_every=0),
        guard=dict(max_rollbacks=0, watchdog_seconds=0.0),
        profile=dict(start=0, steps=3),
        log_every=50,
        heldout=SAMPLE | dict(shift="flux"),
    )
    if variant == "small":  # it knows what to do already, and must learn where
        for name, steps in dict(look=1500, base=4000, guidance=1500).items():
            config["stages"][name]["steps"] = steps
    return ConfigDict(config)


def _base_model(uso) -> dict:
    """Give mini without what USO adds to it, and with what only measures."""
    model = uso.mini_model()
    transformer = model["transformer"] | dict(lora_rank=0, projector=None)
    return model | uso.mini_teachers() | dict(transformer=transformer)


def _uso() -> types.SimpleNamespace:
    """Load configs/uso.py, which has mini's sizes."""
    return types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).with_name("uso.py"))))
