# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""USO's training, by variant.

    python scripts/train.py --config configs/uso.py                 mini: a small USO on drawings, minutes on 2 cores
    python scripts/train.py --config configs/uso.py:small           the same at 64 pixels, 47 minutes on a core
    python scripts/train.py --config configs/uso.py:flux_dev        the paper's recipe on FLUX.1-dev (arXiv 2508.18966)
    python scripts/train.py --config configs/uso.py:flux_dev_joint  projector and adapters together (the CVPR variant)

Any value is overridden on the command line: --config.stages.disentanglement.learning_rate=1e-4
"""

from ml_collections import ConfigDict, config_dict

from uso_jax.data.buckets import UNO

EMOJI = dict(
    data_dir="data",  # where the rasterised artwork is, or will be
    manual_dir="",  # folder of the downloaded tarballs, needed once (docs/data.md)
    size=32,
    preserved=0.8,  # share of targets that keep the content's placement
    looks=dict(artists=1.0, drawn=0.0),  # whose styles: the seven design teams', or this project's
    train=dict(split="train", seed=0, length=10_000_000),
    heldout=dict(split="heldout_style", seed=1, length=100_000),  # of a team that is never seen in training
)


# Triplets in files (docs/datasets.md); an empty path is for the user to fill in.
def files(**options) -> dict:
    """Give the section of a source in files; each has dicts of its own, or setting one path would set all."""
    return dict(train=dict(path=""), heldout=dict(path="")) | options


READERS = dict(
    json=files(root=""),
    uno=files(root="", several="leave_out"),
    uso_eval=files(root="", pictures=""),
    uno_1m=files(min_score=3.5, both=True),
    subjects200k=files(min_quality=5, collection="", both=True),
    omnistyle=files(content="content", style="style", stylised="OmniStyle-150K"),
    syncd=files(min_aesthetics=0.0, min_dino=0.0, max_dino=0.98),
    stylebooth=files(prompt="turn it into {style}", styles=False, table="train.csv"),
    webdataset=files(target="target", content="content", style="style"),
    folder=files(layout="shifted"),
    parquet=files(root=""),
    triplets=dict(train=dict(path="", split="train"), heldout=dict(path="", split="heldout")),  # curate.py convert
    features=files(),  # scripts/curate.py precompute
)

PROJECTOR = ((r"transformer/feature_embedder/.*", 1.0), (r".*", None))
LORA = ((r"transformer/.*/processor/.*", 1.0), (r".*", None))
TABLES = {  # of mini's evaluation: what is asked for, and what of it training never saw
    "main": dict(task="style_subject", split="heldout"),
    "subject": dict(task="subject", split="heldout_subjects"),
    "style": dict(task="style", split="heldout_styles"),
    "unseen_families": dict(task="style_subject", split="heldout_families"),
}
MINI_REWARD = dict(num_steps=8, last=3, guidance=3.0, judges=("judge_style", "judge_content"))
BOTH = ((r"transformer/(feature_embedder|.*/processor)/.*", 1.0), (r".*", None))


def get_config(variant: str = "mini") -> ConfigDict:
    """Give the configuration of a variant: mini, small, flux_dev or flux_dev_joint."""
    variants = {"mini": mini, "small": small, "flux_dev": flux_dev, "flux_dev_joint": flux_dev_joint}
    if variant not in variants:
        raise ValueError(f"unknown variant {variant!r}; known are {', '.join(variants)}")
    return ConfigDict(variants[variant]() | {"variant": variant})


def stage(**changes) -> dict:
    """Give a stage with UNO's trainer settings, which USO's paper leaves unsaid."""
    defaults = dict(
        loss="flow_matching",  # one of uso_jax.training.objectives.OBJECTIVES
        steps=1000,
        train=BOTH,  # (regex over parameter paths, learning-rate multiplier; None: frozen); first match wins
        conditions=("content", "style"),  # whose tokens are in the sequence
        batch_size=16,  # over all devices
        target_size=(512, 512),  # (height, width) in pixels
        content_size=(256, 256),
        target_aspects=(),  # (height, width) at 512 x 512, scaled to target_size's area; (): target_size alone
        content_aspects=(),
        data=dict(tasks=dict(style_subject=1.0)),  # further arguments of the source, if it knows them
        optimizer="adamw",  # or "muon", for the matrices of the blocks
        learning_rate=8e-5,
        warmup_steps=100,
        decay="constant",  # or "cosine", to zero at the last step
        weight_decay=0.01,
        betas=(0.9, 0.999),
        eps=1e-8,
        clip_norm=1.0,
        accumulate=1,  # micro-batches a step
        ema_decay=0.0,  # 0: none
        text_dropout=0.1,
        content_dropout=0.0,
        style_dropout=0.0,
        all_dropout=0.0,  # of text, content and style together
        clip_cut=0.0,  # how often CLIP reads a caption's beginning only, so that T5's tokens must tell the rest
        guidance=1.0,  # embedded scale in the loss; 4 is for sampling
        shift_mu=config_dict.placeholder(float),  # of the training times; None: FLUX's, by token count
        reward=None,  # or a `reward(...)`
    )
    return defaults | changes


def reward(**changes) -> dict:
    """Give style reward learning with UMO's numbers (arXiv 2509.06818), where USO's paper is silent."""
    defaults = dict(
        weights=dict(csd_style=1.0),  # of uso_jax.training.rewards.REWARDS; docs/reward.md
        start=0,  # steps of the stage before it; the paper's S
        scale=1.0,  # the paper's lambda, afterwards; 0: no reward at all
        num_steps=25,  # of the roll-out's schedule, T
        first=1,  # the roll-out stops at a random step, first ... last, counted from the end
        last=10,
        gradient_steps=1,  # more: DRaFT-K
        guidance=4.0,  # embedded scale in the roll-out
        shift="flux",  # of the roll-out's schedule; "upstream": what the released weights are sampled with
        phi="negative",  # minimise -r, or "clip": max(margin - r, 0), as ReFL does
        margin=2.0,
        anchor=0.0,  # weight of the squared velocity difference to the model before the reward
        blocks=1,  # that a batch is decoded and rewarded in, one after another, to save memory
        remat_decoder=True,
        tile=0,  # pixels a side that images are decoded in, to save memory; 0: whole
        judges=(),  # rewards that are only measured
        patience=0,  # judgements with a judge down and the reward up before the stage ends; 0: it never does
        tolerance=0.02,
        max_skipped=10,  # steps in a row without a finite reward before the run stops
    )
    return defaults | changes


def mini(pixels: int = 32) -> dict:
    """Give a small USO that learns on two CPU cores.

    It starts from the weights that come with the package (configs/mini_foundation.py): a base that follows text and
    relates to a reference of the same subject, as FLUX does, and knows nothing of style images.
    """
    square = dict(target_size=(pixels, pixels), content_size=(pixels, pixels))
    few = square | dict(batch_size=16, warmup_steps=50, betas=(0.9, 0.99), decay="cosine")
    style_data = dict(tasks=dict(style=1.0), style_words=0.0)  # only the style image tells it
    # Some of either alone, or adapters that only ever saw both together could do nothing else.
    both_data = dict(tasks=dict(style_subject=0.8, subject=0.1, style=0.1), style_words=0.0, plain=0.5)
    return dict(
        seed=0,
        run=("style_alignment", "disentanglement"),  # stages, in order
        model=mini_model() | mini_teachers() | dict(weights="mini"),
        data=mini_data(pixels),
        stages=dict(
            style_alignment=stage(
                **few,
                steps=600,
                train=PROJECTOR,
                conditions=("style",),
                data=style_data,
                learning_rate=2e-2,  # at 3e-3 seeds differed by 0.2 in CSD
                reward=reward(start=500, **MINI_REWARD),
            ),
            disentanglement=stage(
                **few,
                steps=2000,
                train=LORA,
                data=both_data,
                learning_rate=2e-3,
                content_dropout=0.1,
                style_dropout=0.1,
                reward=reward(start=1800, **MINI_REWARD),
            ),
        ),
        mesh=dict(data=-1, fsdp=1, sequence=1, tensor=1),
        checkpoint=dict(every=500, keep=2, keep_every=0),  # steps; the last 2; also multiples of keep_every; 0: none
        guard=dict(max_rollbacks=0, watchdog_seconds=0.0),
        profile=dict(start=0, steps=3),
        log_every=10,
        heldout=dict(
            num_batches=8, batch_size=32, every=0, grid_every=0, grid_rows=6, num_steps=12, guidance=3.0, shift="flux"
        ),
        evaluation=dict(
            tables=dict(main=TABLES["main"]),  # subjects and styles that it never saw
            perceptual=False,  # also LPIPS and Gram distances: pip install "uso_jax[perceptual]"
            num_triplets=128,
            batch_size=32,
            num_steps=12,
            guidance=3.0,
            shift="flux",
        ),
    )


def small() -> dict:
    """Give mini at 64 pixels, on a base that went on at that size (configs/mini_foundation.py:small)."""
    config = mini(pixels=64)
    config["model"]["weights"] = "small"
    for name, steps, rewarded in (("style_alignment", 900, 150), ("disentanglement", 3000, 300)):
        config["stages"][name]["steps"] = steps
        config["stages"][name]["reward"]["start"] = steps - rewarded
    config["evaluation"]["tables"] = TABLES
    return config


def mini_model() -> dict:
    """Give the networks of mini: a token is 8 x 8 pixels, so an image of 32 pixels is 16 tokens, one of 64 is 64."""
    return dict(
        transformer=dict(
            in_channels=32,
            vec_in_dim=64,
            context_in_dim=64,
            hidden_size=128,
            mlp_ratio=4.0,
            num_heads=4,
            depth=2,
            depth_single_blocks=3,
            axes_dim=(8, 12, 12),
            theta=100,  # positions run to 8 only
            qkv_bias=True,
            guidance_embed=True,
            lora_rank=32,
            lora_scale=1.0,
            projector=dict(siglip_tokens=16, style_tokens=4, siglip_dim=64, layers=(-2, -4, -6), kind="hierarchical"),
            dtype="float32",
            remat="none",
            attention="auto",
        ),
        autoencoder=dict(
            in_channels=3,
            ch=16,
            out_ch=3,
            ch_mult=(1, 2, 4),
            num_res_blocks=1,
            z_channels=8,
            scale_factor=1.0,
            shift_factor=0.0,
            norm_groups=8,
            dtype="float32",
        ),
        siglip=dict(
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=6,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
            layer_norm_eps=1e-6,
            dtype="float32",
            remat="none",
        ),
        text=dict(
            t5=dict(
                vocab_size=1024, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dtype="float32", remat="none"
            ),
            clip=dict(
                vocab_size=1024,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=16,
                eos_token_id=1,
                dtype="float32",
                remat="none",
            ),
            t5_length=16,
            t5_tokenizer="mini",
            clip_tokenizer="mini",
        ),
        patch=2,  # latents a side of one token
        reference_offset="d",  # content tokens follow the target diagonally
        style_encoder="siglip",  # or "autoencoder": one encoder for both references, what the paper argues against
        weights="",  # weights directory; "": from random numbers; "mini", "small": in the package
        fresh=("lora", "projector"),  # components that start from random numbers though the directory has them
        rewards=dict(),  # sizes of networks that only rewards read
        frozen_dtype="float32",  # of what no stage trains
        quantization="",  # of frozen kernels: "int8", "fp8" or "int4"; "": none (docs/low_memory.md)
    )


def mini_teachers() -> dict:
    """Give the networks that only mini's foundation and its rewards need."""
    return dict(
        siglip_text=dict(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=16,
            vocab_size=1024,
            projection_size=64,
            dtype="float32",
            remat="none",
        ),
        csd=dict(
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
            projection_dim=64,
            dtype="float32",
            remat="none",
        ),
        judge=dict(num_subjects=106, num_styles=35, channels=(32, 64, 96, 128)),  # of the procedural source
    )


def mini_data(pixels: int = 32) -> dict:
    """Give the drawings that mini is trained on and held out of."""
    return dict(
        source="procedural",
        procedural=dict(
            size=pixels,
            preserved=0.8,  # share of targets that keep the content's pose
            train=dict(split="train", seed=0, length=10_000_000),
            heldout=dict(split="heldout_styles", seed=1, length=100_000),
        ),
        emoji=EMOJI | dict(size=pixels),
        **READERS,
        **reading(num_threads=2),
    )


def reading(**changes) -> dict:
    """Give how sources are mixed and read."""
    names = ("procedural", "emoji", *READERS)
    defaults = dict(
        mixture=dict(
            weights=dict.fromkeys(names, 0.0)
        ),  # how often an example comes from which, if source is "mixture"
        num_styles=1,  # style images a triplet may have
        num_threads=2,  # that read and decode, in each worker process if there are any
        num_workers=0,  # processes that read and decode
        max_errors=0,  # examples that may be unreadable before the run stops
    )
    return defaults | changes


def flux_rewards() -> dict:
    """Give the networks that rewards may read, in their released sizes; only those that a stage names are loaded."""
    return dict(
        csd=dict(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            patch_size=14,
            projection_dim=768,
        ),
        clip_vision=dict(),  # CLIP B/32, the metrics' usual one
        clip_text=dict(
            hidden_size=512, intermediate_size=2048, num_attention_heads=8, projection_dim=512, dtype="float32"
        ),
        dino=dict(),  # ViT-S/16
        vgg=dict(),  # VGG-16
    )


def flux_dev() -> dict:
    """Give the paper's two stages on FLUX.1-dev; batch, steps, rate and resolution are its appendix F.1.1."""
    fit = dict(batch_size=16, content_size=(512, 512), target_aspects=UNO, content_aspects=UNO)
    return dict(
        seed=0,
        run=("style_alignment", "disentanglement"),
        model=dict(
            transformer=dict(
                in_channels=64,
                vec_in_dim=768,
                context_in_dim=4096,
                hidden_size=3072,
                mlp_ratio=4.0,
                num_heads=24,
                depth=19,
                depth_single_blocks=38,
                axes_dim=(16, 56, 56),
                theta=10_000,
                qkv_bias=True,
                guidance_embed=True,
                lora_rank=128,
                lora_scale=1.0,
                projector=dict(siglip_tokens=729, style_tokens=64, siglip_dim=1152, layers=(-2, -11, -20)),
                dtype="bfloat16",
                remat="full",
                attention="auto",
            ),
            autoencoder=dict(
                in_channels=3,
                ch=128,
                out_ch=3,
                ch_mult=(1, 2, 4, 4),
                num_res_blocks=2,
                z_channels=16,
                scale_factor=0.3611,
                shift_factor=0.1159,
                norm_groups=32,
                dtype="float32",
            ),
            siglip=dict(
                hidden_size=1152,
                intermediate_size=4304,
                num_hidden_layers=27,
                num_attention_heads=16,
                image_size=384,
                patch_size=14,
                layer_norm_eps=1e-6,
                dtype="float32",
                remat="full",
            ),
            text=dict(
                t5=dict(dtype="bfloat16", remat="full"),  # t5-v1_1-xxl
                clip=dict(dtype="bfloat16", remat="full"),  # clip-vit-large-patch14
                t5_length=512,
                t5_tokenizer="google/t5-v1_1-xxl",
                clip_tokenizer="openai/clip-vit-large-patch14",
            ),
            patch=2,
            reference_offset="d",
            style_encoder="siglip",  # or "autoencoder": one encoder for both references, what the paper argues against
            fresh=(),
            rewards=flux_rewards(),
            weights="weights/flux-dev",  # made by: python -m convert import FILE... --to weights/flux-dev
            frozen_dtype="bfloat16",
            quantization="",  # of frozen kernels: "int4" trains on one chip of 16 GB (docs/low_memory.md)
        ),
        data=dict(
            source="json",
            procedural=dict(size=1024, train=dict(split="train"), heldout=dict(split="heldout_styles")),
            emoji=EMOJI,
            **READERS
            | dict(
                json=dict(root="", train=dict(path="triplets/train.json"), heldout=dict(path="triplets/heldout.json"))
            ),
            **reading(num_threads=16, max_errors=100),
        ),
        stages=dict(
            style_alignment=stage(
                **fit,
                steps=23_000,
                train=PROJECTOR,
                conditions=("style",),
                target_size=(768, 768),
                data=dict(tasks=dict(style=1.0)),
                reward=reward(start=16_000, judges=("clip_text",), patience=2),
            ),
            disentanglement=stage(
                **fit | dict(batch_size=64),
                steps=21_000,
                train=LORA,
                target_size=(1024, 1024),
                content_dropout=0.125,
                style_dropout=0.125,
                reward=reward(start=18_000, judges=("clip_content", "clip_text"), patience=2),
            ),
        ),
        mesh=dict(data=1, fsdp=-1, sequence=1, tensor=1),
        checkpoint=dict(every=500, keep=3, keep_every=5000),
        # Roll-backs after a loss that is not finite; seconds without a step until the run ends itself (0: never).
        guard=dict(max_rollbacks=5, watchdog_seconds=3600.0),
        profile=dict(start=0, steps=3),  # steps for xprof, in WORKDIR/profile; start 0: none
        log_every=10,
        heldout=dict(
            num_batches=4,
            batch_size=16,
            every=1000,
            grid_every=1000,
            grid_rows=8,
            num_steps=25,
            guidance=4.0,
            shift="upstream",
        ),
    )


def flux_dev_joint() -> dict:
    """Give one stage that trains projector and adapters together, dropping either reference with p = 0.25."""
    config = flux_dev()
    joint = config["stages"]["disentanglement"] | dict(train=BOTH, content_dropout=0.25, style_dropout=0.25)
    return config | dict(run=("joint",), stages=dict(joint=joint))
