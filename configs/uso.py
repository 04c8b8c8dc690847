# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""USO's training, by variant.

    python scripts/train.py --config configs/uso.py                 mini: a small USO on drawings, minutes on 2 cores
    python scripts/train.py --config configs/uso.py:mini32          the same at 32 pixels, for tests and ablations
    python scripts/train.py --config configs/uso.py:flux_dev        the paper's recipe on FLUX.1-dev (arXiv 2508.18966)
    python scripts/train.py --config configs/uso.py:flux_dev_joint  projector and adapters together (the CVPR variant)
    python scripts/train.py --config configs/uso.py:flux_dev_nft    then from scores of its images, without gradients
    python scripts/train.py --config configs/uso.py:klein           the same on FLUX.2 [klein] base 4B; and klein_joint
    python scripts/train.py --config configs/uso.py:klein_nft       as flux_dev_nft
    python scripts/train.py --config configs/uso.py:klein_distilled four steps instead of fifty; and flux_dev_distilled
    python scripts/train.py --config configs/uso.py:mini_distilled  four steps instead of twelve, from the packaged mini
    python scripts/train.py --config configs/uso.py:klein_lora      adapters from references to targets, on your folder

Any value is overridden on the command line: --config.stages.disentanglement.learning_rate=1e-4
All values, with their documentation: python scripts/train.py --config configs/uso.py:flux_dev --help
"""

from dataclasses import replace

from uso_jax.data.buckets import UNO
from uso_jax.data.config import DataConfig, Drawn, Procedural
from uso_jax.models.autoencoder import AutoEncoderConfig
from uso_jax.models.autoencoder2 import AutoEncoder2Config
from uso_jax.models.clip import CLIP, ClipTextConfig, ClipVisionConfig
from uso_jax.models.dino import DinoConfig
from uso_jax.models.drawing_classifier import DrawingClassifierConfig
from uso_jax.models.flux import FluxConfig
from uso_jax.models.flux2 import PRESETS
from uso_jax.models.perceptual_backbones import VggConfig
from uso_jax.models.projector import ProjectorConfig
from uso_jax.models.siglip import SiglipConfig, SiglipTextConfig
from uso_jax.models.t5 import T5Config
from uso_jax.models.text import T5ClipConfig
from uso_jax.models.text_qwen3 import Qwen3TextConfig
from uso_jax.training.config import (
    CheckpointConfig,
    EvaluationConfig,
    GuardConfig,
    HeldoutConfig,
    TableConfig,
    TrainConfig,
    override,
)
from uso_jax.training.model_config import ModelConfig
from uso_jax.training.policy import PolicyConfig
from uso_jax.training.stage import BOTH, LORA, PROJECTOR, RewardConfig, StageConfig, TeacherConfig, by_name

VARIANTS = {
    "mini": "a small USO on drawings of 64 pixels, aligned by words; minutes on two CPU cores",
    "mini32": "mini at 32 pixels with the paper's alignment, for tests and ablations; needs a clone of the repository",
    "flux_dev": "the paper's recipe on FLUX.1-dev; needs converted weights and your triplets",
    "flux_dev_joint": "flux_dev with projector and adapters trained together",
    "flux_dev_nft": "learning from scores of images after flux_dev or flux_dev_joint: add --init_from its workdir",
    "klein": "the paper's recipe on FLUX.2 [klein] base 4B, which one 16 GB chip holds; needs converted weights",
    "klein_joint": "klein with projector and adapters trained together",
    "klein_nft": "learning from scores of images after klein or klein_joint: add --init_from its workdir",
    "mini_distilled": "mini in four steps; the teacher is the packaged one, or add --init_from a run of mini",
    "mini32_distilled": "the same for mini32",
    "flux_dev_distilled": "four steps instead of 25 after flux_dev or flux_dev_joint: add --init_from its workdir",
    "klein_distilled": "four steps without a second pass after klein or klein_joint: add --init_from its workdir",
    "klein_lora": "adapters of FLUX.2 [klein] base 4B from one reference or several to a target, on your own folder",
}
TABLES = {  # of mini's evaluation: what is generated, from subjects and styles that training never saw
    "main": TableConfig("style_subject", split="heldout"),
    "subject": TableConfig("subject", split="heldout_subjects"),
    "style": TableConfig("style", split="heldout_styles"),
    "unseen_families": TableConfig("style_subject", split="heldout_families"),
}
MINI_REWARD = RewardConfig(num_steps=8, last=3, guidance=3.0, judges=("judge_style", "judge_content"))


def get_config(variant: str = "mini") -> TrainConfig:
    """Return the configuration of a variant.

    Raises:
      ValueError: the variant is unknown.
    """
    builders = {
        "mini": mini,
        "mini32": mini32,
        "flux_dev": flux_dev,
        "flux_dev_joint": flux_dev_joint,
        "flux_dev_nft": flux_dev_nft,
        "klein": klein,
        "klein_joint": klein_joint,
        "klein_nft": klein_nft,
        "mini_distilled": lambda: _mini_distilled(mini(), steps=300),
        "mini32_distilled": lambda: _mini_distilled(mini32(), steps=400),
        "flux_dev_distilled": lambda: _distilled(flux_dev(), guidance=4.0),
        "klein_distilled": lambda: _distilled(klein(), guidance=4.0),
        "klein_lora": klein_lora,
    }
    if variant not in builders:
        raise ValueError(f"unknown variant {variant!r}; known are {', '.join(builders)}")
    return builders[variant]()


# ---------------------------------------------------------------------------------------------------- mini


def mini() -> TrainConfig:
    """Return a small USO that learns on two CPU cores, whose projector is aligned by words.

    It starts from the weights in the package (configs/mini_foundation.py): a base that follows text and relates to a
    reference of the same subject, as FLUX does, and knows nothing of style images.

    The projector first learns what the base reads for the style's words, from a style tower that knows drawings
    (configs/mini_foundation.py:tower), and then, slowly, with the adapters. The reward comes last. For the paper's
    alignment, by the flow-matching loss: --config.run=style_alignment,disentanglement
    """
    align, both = _mini_stages(64)
    words = replace(
        align,
        name="words",
        loss="words",
        steps=600,
        batch_size=64,
        data=dict(tasks=dict(style=1.0), captions="style"),
        learning_rate=2e-3,
        text_dropout=0.0,
        reward=None,
    )
    train = ((r"transformer/feature_embedder/.*", 0.1), *LORA)
    both = replace(both, steps=800, train=train, reward=replace(MINI_REWARD, start=720))
    tables = {name: TABLES[name] for name in ("main", "unseen_families")}
    return _mini("mini", 64, MINI, (words, both), tables, others=(align,))


def mini32() -> TrainConfig:
    """Return mini at 32 pixels, aligned as in the paper: four times as fast, for tests and ablations."""
    return _mini("mini32", 32, MINI32, _mini_stages(32), {"main": TABLES["main"]})


def _mini_stages(pixels: int) -> tuple[StageConfig, StageConfig]:
    """Return the paper's two stages for drawings."""
    few = dict(
        target_size=(pixels, pixels), content_size=(pixels, pixels), warmup_steps=50, betas=(0.9, 0.99), decay="cosine"
    )
    return (
        StageConfig(
            "style_alignment",
            **few,
            steps=600,
            train=PROJECTOR,
            conditions=("style",),
            data=dict(tasks=dict(style=1.0), style_words=0.0),  # only the style image shows the style
            learning_rate=2e-2,  # at 3e-3 seeds differed by 0.2 in CSD
            reward=replace(MINI_REWARD, start=500),
        ),
        StageConfig(
            "disentanglement",
            **few,
            steps=2000,
            train=LORA,
            # Without examples of one reference alone, adapters cannot follow one reference alone.
            data=dict(tasks=dict(style_subject=0.8, subject=0.1, style=0.1), style_words=0.0, plain=0.5),
            learning_rate=2e-3,
            content_dropout=0.1,
            style_dropout=0.1,
            reward=replace(MINI_REWARD, start=1800),
        ),
    )


def _mini(
    variant: str,
    pixels: int,
    model: ModelConfig,
    run: tuple[StageConfig, ...],
    tables: dict[str, TableConfig],
    others: tuple[StageConfig, ...] = (),
) -> TrainConfig:
    """Return a run of stages on drawings; `others` are there to be named by --config.run."""
    return TrainConfig(
        variant=variant,
        run=tuple(stage.name for stage in run),
        model=model,
        data=mini_data(pixels),
        stages=by_name(*run, *others),
        checkpoint=CheckpointConfig(every=500, keep=2),
        heldout=HeldoutConfig(num_batches=8, batch_size=32, grid_rows=6, num_steps=12, guidance=3.0, shift="flux"),
        evaluation=EvaluationConfig(tables, num_triplets=64),
    )


def _mini_distilled(config: TrainConfig, steps: int) -> TrainConfig:
    """Return a stage that teaches the adapters of the weights in the package, or of a run, to draw in four steps."""
    both = config.stages["disentanglement"]
    config = replace(config, model=replace(config.model, fresh=()))
    return _distilled(config, guidance=3.0, steps=steps, learning_rate=1e-3, train=both.train)


def mini_data(pixels: int) -> DataConfig:
    """Return the drawings that mini is trained on and validated on."""
    config = DataConfig(
        source="procedural",
        procedural=Procedural(
            size=pixels,
            preserved=0.8,
            train=Drawn("train", length=10_000_000),
            heldout=Drawn("heldout_styles", seed=1, length=100_000),
        ),
    )
    return override(config, {"emoji.size": pixels})


_ENCODER = dict(hidden_size=64, num_attention_heads=4, dtype="float32", remat="none")
_WORDS = dict(vocab_size=1024, max_position_embeddings=16)
# A token is 8 x 8 pixels, so an image of 32 pixels has 16 tokens and one of 64 pixels has 64.
MINI32 = ModelConfig(
    transformer=FluxConfig(
        in_channels=32,
        vec_in_dim=64,
        context_in_dim=64,
        hidden_size=128,
        num_heads=4,
        depth=2,
        depth_single_blocks=3,
        axes_dim=(8, 12, 12),
        theta=100,  # positions run to 8 only
        lora_rank=32,
        projector=ProjectorConfig(siglip_tokens=16, style_tokens=4, siglip_dim=64, layers=(-2, -4, -6)),
        dtype="float32",
        remat="none",
    ),
    autoencoder=AutoEncoderConfig(
        ch=16, ch_mult=(1, 2, 4), num_res_blocks=1, z_channels=8, scale_factor=1.0, shift_factor=0.0, norm_groups=8
    ),
    siglip=SiglipConfig(**_ENCODER, intermediate_size=256, num_hidden_layers=6, image_size=32, patch_size=8),
    text=T5ClipConfig(
        t5=T5Config(
            vocab_size=1024, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dtype="float32", remat="none"
        ),
        clip=ClipTextConfig(**_ENCODER, **_WORDS, intermediate_size=128, num_hidden_layers=2, eos_token_id=1),
        t5_length=16,
        t5_tokenizer="mini",
        clip_tokenizer="mini",
    ),
    siglip_text=SiglipTextConfig(**_ENCODER, **_WORDS, intermediate_size=128, num_hidden_layers=2, projection_size=64),
    csd=ClipVisionConfig(
        **_ENCODER, intermediate_size=256, num_hidden_layers=4, image_size=32, patch_size=8, projection_dim=64
    ),
    judge=DrawingClassifierConfig(),
    weights="tests/mini32",
    fresh=("lora", "projector"),
)


# A style image of 64 pixels is 16 tokens, of which 24 style tokens are made; 16 of those have a word to become.
MINI = replace(
    MINI32,
    transformer=replace(
        MINI32.transformer,
        projector=ProjectorConfig(
            siglip_tokens=16, style_tokens=8, siglip_dim=96, layers=(-1, -3, -5), kind="level_resampler"
        ),
    ),
    siglip=SiglipConfig(
        hidden_size=96,
        num_attention_heads=4,
        intermediate_size=288,
        num_hidden_layers=6,
        image_size=64,
        patch_size=16,
        stem=(32, 64, 96),
        dtype="float32",
        remat="none",
    ),
    siglip_text=replace(MINI32.siglip_text, max_position_embeddings=32, projection_size=96),
    weights="mini",
)


# ---------------------------------------------------------------------------------------------------- FLUX.1-dev


def flux_dev() -> TrainConfig:
    """Return the paper's two stages on FLUX.1-dev.

    Batch sizes, steps, learning rate and resolutions are those of the paper's appendix F.1.1.
    """
    fit = dict(content_size=(512, 512), target_aspects=UNO, content_aspects=UNO)
    config = TrainConfig(
        variant="flux_dev",
        run=("style_alignment", "disentanglement"),
        model=ModelConfig(
            weights="weights/flux-dev",  # made by: python -m convert import FILE... --to weights/flux-dev
            frozen_dtype="bfloat16",
            rewards=FLUX_REWARDS,
        ),
        data=DataConfig(procedural=Procedural(size=1024), num_threads=16, max_errors=100),
        stages=by_name(
            StageConfig(
                "style_alignment",
                **fit,
                steps=23_000,
                train=PROJECTOR,
                conditions=("style",),
                target_size=(768, 768),
                data=dict(tasks=dict(style=1.0)),
                reward=RewardConfig(start=16_000, judges=("clip_text",), patience=2),
            ),
            StageConfig(
                "disentanglement",
                **fit,
                steps=21_000,
                train=LORA,
                batch_size=64,
                target_size=(1024, 1024),
                content_dropout=0.125,
                style_dropout=0.125,
                reward=RewardConfig(start=18_000, judges=("clip_content", "clip_text"), patience=2),
            ),
        ),
        mesh=dict(data=1, fsdp=-1, sequence=1, tensor=1),
        checkpoint=CheckpointConfig(keep_every=5000),
        guard=GuardConfig(max_rollbacks=5, watchdog_seconds=3600.0),
        heldout=HeldoutConfig(every=1000, grid_every=1000),
    )
    paths = {f"data.json.{split}.path": f"triplets/{split}.json" for split in ("train", "heldout")}
    return override(config, paths)


def flux_dev_joint() -> TrainConfig:
    """Return one stage that trains projector and adapters together, and drops either reference with p = 0.25."""
    return _joint(flux_dev())


def _joint(config: TrainConfig) -> TrainConfig:
    both = config.stages["disentanglement"]
    joint = replace(both, name="joint", train=BOTH, content_dropout=0.25, style_dropout=0.25)
    return replace(config, variant=f"{config.variant}_joint", run=("joint",), stages=by_name(joint))


def flux_dev_nft() -> TrainConfig:
    """Return a stage that learns from scores of style and subject by DiffusionNFT, after a run of `flux_dev`.

    Images have 512 pixels and ten steps, as in the paper (arXiv 2509.16117), which trains another base.
    """
    return _from_scores(flux_dev(), guidance=4.0)


def _from_scores(config: TrainConfig, guidance: float) -> TrainConfig:
    """Return one stage with a policy in place of a recipe's stages: a hundred rounds, with a step each."""
    both = config.stages["disentanglement"]
    policy = PolicyConfig(
        weights={"csd_style": 1.0, "clip_content": 1.0},
        prompts=16,
        group=8,
        sample_batch=16,
        levels=4,
        common_noise=True,
        guidance=guidance,
        judges=("clip_text",),
        patience=2,
    )
    stage = replace(
        both,
        name="policy",
        steps=100,
        train=BOTH,
        batch_size=128,
        accumulate=8,
        target_size=(512, 512),
        target_aspects=(),
        content_aspects=(),
        learning_rate=3e-4,
        warmup_steps=5,
        reward=None,
        policy=policy,
    )
    often = dict(
        heldout=replace(config.heldout, every=0, grid_every=10), checkpoint=replace(config.checkpoint, every=10)
    )
    name = f"{config.variant}_nft"
    return replace(config, variant=name, run=("policy",), stages=by_name(stage), **often)


def _distilled(config: TrainConfig, guidance: float, **changes) -> TrainConfig:
    """Return one stage that distils to four steps in place of a recipe's stages (docs/train.md, Few steps).

    `guidance` is the teacher's scale. On FLUX.2 it is that of a second pass, which the student does without.
    """
    both, shift = config.stages["disentanglement"], config.heldout.shift
    stage = replace(
        both,
        name="distillation",
        loss="distillation",
        teacher=TeacherConfig(guidance=guidance, shift=shift),
        reward=None,
        **dict(steps=4000, train=BOTH, batch_size=16) | changes,
    )
    one_pass = 1.0 if config.system.family == "flux2" else guidance
    sampled = dict(num_steps=stage.teacher.num_steps, guidance=one_pass, shift=shift)
    evaluation = config.evaluation and replace(config.evaluation, **sampled)
    heldout = replace(config.heldout, **sampled)
    name = f"{config.variant}_distilled"
    run = dict(run=("distillation",), stages=by_name(stage))
    return replace(config, variant=name, **run, heldout=heldout, evaluation=evaluation)


FLUX_REWARDS = dict(  # released sizes; only the networks that a stage names are loaded
    csd=ClipVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        patch_size=14,
        projection_dim=768,
    ),
    clip_vision=CLIP["B/32"].vision,
    clip_text=CLIP["B/32"].text,
    dino=DinoConfig(),  # ViT-S/16
    vgg=VggConfig(),  # VGG-16
)


# ---------------------------------------------------------------------------------------------------- FLUX.2 [klein]


def klein() -> TrainConfig:
    """Return the paper's two stages on FLUX.2 [klein] base 4B: flux_dev with another base.

    Samples and rewarded images are guided by a second pass with the empty prompt, as those of the base model are.
    """
    config = flux_dev()
    return replace(config, variant="klein", model=_klein(), heldout=replace(config.heldout, shift="flux"))


def klein_joint() -> TrainConfig:
    """Return klein in one stage that trains projector and adapters together."""
    return _joint(klein())


def klein_nft() -> TrainConfig:
    """Return `flux_dev_nft` on klein, without guidance: DiffusionNFT needs none."""
    return _from_scores(klein(), guidance=1.0)


def klein_lora() -> TrainConfig:
    """Return a stage that trains adapters alone, on references as FLUX.2 has them: tokens of any number of images.

    A folder of the user's has target/NAME.png, content/NAME.png, style/NAME.png, style_2/NAME.png ... and
    prompt/NAME.txt; what is missing is left out (docs/datasets.md). There is no style tower and no projector, and all
    images and prompts are encoded first.
    """
    stage = StageConfig(
        "lora",
        steps=2000,
        train=LORA,
        batch_size=8,
        accumulate=8,  # one image at a time, as much as a chip of 16 GB holds
        target_size=(1024, 1024),
        content_size=(512, 512),  # of all references
        target_aspects=UNO,
        content_aspects=UNO,
        data={},
        learning_rate=1e-4,
        reward=RewardConfig(scale=0.0, start=1500),  # scale 1 switches it on
    )
    return TrainConfig(
        variant="klein_lora",
        run=("lora",),
        model=replace(_klein(projector=None, lora_rank=32), siglip=None, style_encoder="autoencoder"),
        data=DataConfig(source="folder", heldout_share=0.1, encode_first=True, num_threads=8),
        stages=by_name(stage),
        mesh=dict(data=1, fsdp=-1, sequence=1, tensor=1),
        checkpoint=CheckpointConfig(every=250),
        guard=GuardConfig(max_rollbacks=5),
        heldout=HeldoutConfig(
            num_batches=4, batch_size=1, every=250, grid_every=500, grid_rows=1, num_steps=25, shift="flux"
        ),
    )


def _klein(**changes) -> ModelConfig:
    """Return the networks of FLUX.2 [klein] base 4B with USO's additions; `changes` are of the transformer.

    - Adapters are trained on the base weights. The distilled ones have learned to draw in four steps without guidance,
      and the loss of flow matching would undo that. Adapters have the same shapes for both.
    - Adapters have the paper's rank, 128, and its places. The projector has the shapes of FLUX.1's, whose width is 3072
      too.
    - The base is kept in bfloat16. It takes 7.2 GiB, so a chip of 16 GB needs no quantisation (docs/fits.md).
    - Qwen3 has 27 of its 36 layers, because no later state is read, and prompts have 512 tokens, as in the release.
    - Rewards are those of FLUX.1. They see images, so they depend on no base.
    """
    return ModelConfig(
        family="flux2",
        transformer=replace(PRESETS["klein-base-4b"].with_uso(), **changes),
        autoencoder=AutoEncoder2Config(),
        text=Qwen3TextConfig(qwen3_tokenizer="weights/klein-base-4b/tokenizer_qwen3"),
        weights="weights/klein-base-4b",  # made by: python -m convert download klein-base-4b, and the import it prints
        frozen_dtype="bfloat16",
        rewards=FLUX_REWARDS,
    )
