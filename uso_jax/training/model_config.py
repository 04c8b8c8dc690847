# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The section `model` of a configuration: the networks of a run, and where their parameters come from."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from uso_jax import flow
from uso_jax.common.errors import InputError
from uso_jax.models.autoencoder import AutoEncoderConfig
from uso_jax.models.clip import ClipVisionConfig
from uso_jax.models.components import COMPONENTS
from uso_jax.models.drawing_classifier import DrawingClassifierConfig
from uso_jax.models.flux import FluxConfig
from uso_jax.models.siglip import SiglipConfig, SiglipTextConfig
from uso_jax.models.text import T5ClipConfig
from uso_jax.models.uso_config import USOConfig
from uso_jax.weights import manifest_configs


@dataclass(frozen=True)
class ModelConfig:
    """The networks of a run; the defaults are USO on FLUX.1-dev."""

    family: str = "flux1"  # base model, one of uso_jax.models.families.FAMILIES
    transformer: Any = FluxConfig().with_uso()  # denoising transformer with adapters and style projector
    autoencoder: Any = AutoEncoderConfig()  # image codec
    siglip: SiglipConfig | None = SiglipConfig(remat="full")  # style tower; None: style_encoder is "autoencoder"
    text: Any = T5ClipConfig()  # text encoders and their tokenizers
    patch: int = 2  # latents a side of one token
    reference_offset: flow.OffsetMode = "d"
    """Where positions of content tokens follow the target's: d diagonally, h below, w to the right, o nowhere."""
    style_encoder: str = "siglip"
    """Encoder of style images: "siglip", or "autoencoder" to encode both references alike (the paper's ablation)."""
    siglip_text: SiglipTextConfig | None = None  # text tower of SigLIP, where SigLIP is trained or rewards
    csd: ClipVisionConfig | None = None  # style descriptors, where they are trained or reward
    judge: DrawingClassifierConfig | None = None  # classifier of drawings, where it is trained or judges
    rewards: Mapping[str, Any] = field(default_factory=dict)
    """Sizes of networks that only rewards and judges read, by name; loaded where a stage of the run names them."""
    weights: str = ""  # weights directory; "mini": in the package; "": random numbers
    fresh: tuple[str, ...] = ()  # components that start from random numbers although the directory has them
    frozen_dtype: str = "float32"  # dtype of parameters that no stage trains
    quantization: str = ""
    """Format of frozen kernels: int8, fp8, int4, or "" for none (docs/low_memory.md)."""

    def system(self, components: Iterable[str] = ()) -> USOConfig:
        """Return the networks as one system, with those of `rewards` that belong to the named components.

        Raises:
          InputError: the networks do not fit together.
        """
        sizes = {name: values if isinstance(values, Mapping) else vars(values) for name, values in self.rewards.items()}
        networks = {name: network for name in _OWN if (network := getattr(self, name)) is not None}
        for name in components:
            if name in COMPONENTS and COMPONENTS[name].fields().keys() <= sizes.keys():
                networks[name] = manifest_configs.build(name, sizes)
        shared = {name: getattr(self, name) for name in _SHARED}
        try:
            return USOConfig(**shared, networks={name: networks[name] for name in COMPONENTS if name in networks})
        except ValueError as error:
            raise InputError(f"config.model: {error}") from error


_SHARED = {part.name for part in dataclasses.fields(USOConfig)} & {
    part.name for part in dataclasses.fields(ModelConfig)
}
_OWN = {part.name for part in dataclasses.fields(ModelConfig)} & COMPONENTS.keys() - _SHARED  # rows with a section
