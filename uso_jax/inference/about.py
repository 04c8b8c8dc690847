# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a page or a client must know of weights before it asks for an image."""

import dataclasses
import pathlib
from dataclasses import dataclass
from typing import Any

from uso_jax.models.uso import USO
from uso_jax.weights.pretrained import Pretrained


@dataclass(frozen=True)
class About:
    """Facts of weights, in JSON terms.

    Attributes:
      name: of the weights.
      dtype: of transformer and text encoders.
      width, height, content_ref, num_steps, guidance: defaults of generation.
      pixels_per_token: of which width and height are multiples.
      embeds_guidance: the guidance scale is an input of the transformer.
      classifier_free: the guidance scale weighs a second pass with the negative prompt.
    """

    name: str
    dtype: str
    width: int
    height: int
    content_ref: int
    num_steps: int
    guidance: float
    pixels_per_token: int
    embeds_guidance: bool
    classifier_free: bool

    @classmethod
    def of(cls, pretrained: Pretrained, system: USO) -> "About":
        """Return the facts of weights and their system."""
        config, names = system.config, ("width", "height", "content_ref", "num_steps", "guidance")
        return cls(
            name=pathlib.Path(pretrained.name).name,
            dtype=pretrained.dtype,
            **{name: getattr(pretrained.defaults, name) for name in names},
            pixels_per_token=config.pixels_per_token,
            embeds_guidance=config.transformer.guidance_embed,
            classifier_free=system.classifier_free,
        )

    def json(self) -> dict[str, Any]:
        """Return the facts by name."""
        return dataclasses.asdict(self)
