# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Base models as one named choice: transformer, text encoders, autoencoder, position ids and schedule.

A family names rows of `uso_jax.models.components` and holds the functions in which base models differ. `USO` asks its
family and has no branches on names, so another base model is its network files, its rows and one `Family` here.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from uso_jax import flow
from uso_jax.common.errors import InputError
from uso_jax.models import flux2
from uso_jax.models.components import COMPONENTS
from uso_jax.models.text import T5ClipConfig
from uso_jax.models.text_qwen3 import Qwen3TextConfig


@dataclass(frozen=True)
class Family:
    """One kind of base model.

    Attributes:
      name: as in `USOConfig.family`.
      transformer, autoencoder: rows of COMPONENTS. The transformer's module is called as
        `model(img, img_ids, txt, t, y, guidance, **conditions)`; `y` is None where the text side has no pooled vector.
      text: config class of the text side, with one encoder or more (`uso_jax.models.text.TextConfig`).
      position_ids: (rows, columns) of the target's tokens -> ids [l, axes].
      reference_ids: (target's rows and columns, those of each reference, offset mode) -> ids of each reference.
      schedule: (steps, rows, columns, shift) -> steps + 1 times from 1 to 0.
      shift_mu: number of the target's tokens -> shift exponent of training times.
      takes_references: the base model takes any number of references without USO, in other programs too.
      reference_pixels: number of content images -> the most pixels of one that the base model is made for.
      classifier_free: the guidance scale weighs a pass with the negative prompt, unless the transformer embeds it.
      defaults: of generation, where a weights directory names no others (`uso_jax.weights.pretrained.Defaults`).
    """

    name: str
    transformer: str
    autoencoder: str
    text: type  # that follows TextConfig
    position_ids: Callable
    reference_ids: Callable
    schedule: Callable[[int, int, int, flow.Shift], np.ndarray]
    shift_mu: Callable[[int], float]
    takes_references: bool = False
    reference_pixels: Callable[[int], float] = lambda count: math.inf
    classifier_free: bool = False
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def required(self) -> tuple[str, ...]:
        """Folders that a weights directory needs in order to generate images from text."""
        rows = (self.transformer, self.autoencoder, *self.text.encoders)
        return tuple(COMPONENTS[name].folder for name in rows)


FAMILIES: dict[str, Family] = {
    "flux1": Family(
        "flux1",
        transformer="flux",
        autoencoder="autoencoder",
        text=T5ClipConfig,
        position_ids=flow.position_ids,
        reference_ids=flow.reference_ids,
        # The shift counts tokens of 16 x 16 pixels, whatever the autoencoder's downscale is.
        schedule=lambda steps, rows, columns, shift: flow.schedule(steps, 16 * rows, 16 * columns, shift),
        shift_mu=flow.shift_mu,
    ),
    "flux2": Family(
        "flux2",
        transformer="flux2",
        autoencoder="autoencoder2",
        text=Qwen3TextConfig,
        position_ids=flow.layered_ids,
        reference_ids=flow.layered_reference_ids,
        schedule=lambda steps, rows, columns, shift: flow.empirical_schedule(steps, rows * columns, shift),
        # Training knows no number of steps; that of sampling with the base model is taken.
        shift_mu=lambda num_tokens: flow.empirical_mu(num_tokens, flux2.SAMPLING["klein-base-4b"]["num_steps"]),
        takes_references=True,
        # The original scales larger ones down (black-forest-labs/flux2, sampling.py).
        reference_pixels=lambda count: 2024**2 if count == 1 else 1024**2,
        classifier_free=True,
        defaults={**flux2.SAMPLING["klein-base-4b"], "content_ref": 1024},
    ),
}


def family_of(sections: Iterable[str]) -> Family:
    """Return the family whose transformer has one of a manifest's sections.

    Raises:
      InputError: no family has it.
    """
    sections = set(sections)
    for family in FAMILIES.values():
        if sections & set(COMPONENTS[family.transformer].fields()):
            return family
    raise InputError(f"no base model has a transformer described by {', '.join(sorted(sections))}; import it again")
