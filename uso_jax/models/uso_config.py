# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The networks of one USO and how its tokens are laid out."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np
from flax import nnx

from uso_jax import flow
from uso_jax.models.components import COMPONENTS
from uso_jax.models.families import FAMILIES
from uso_jax.models.siglip import SiglipConfig
from uso_jax.models.text import TextConfig, token_ids


@dataclass(frozen=True)
class USOConfig:
    """The networks of one USO.

    Attributes:
      transformer, autoencoder, text: configs of the family's networks.
      siglip: the style tower; None if style features are given ready-made.
      patch: latents per side of a token.
      reference_offset: where content tokens lie, see `flow.reference_ids`.
      style_encoder: "siglip", or "autoencoder" to treat style images as references like the content.
      networks: configs of further networks by row of `components.COMPONENTS`: rewards, judges, SigLIP's text tower.
      family: name of the base model, see `uso_jax.models.families`.
    """

    transformer: Any
    autoencoder: Any
    siglip: SiglipConfig | None
    text: TextConfig
    patch: int = 2
    reference_offset: flow.OffsetMode = "d"
    style_encoder: str = "siglip"
    networks: Mapping[str, Any] = field(default_factory=dict)
    family: str = "flux1"

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise ValueError(f"family {self.family!r} is unknown; known are {', '.join(FAMILIES)}")
        if unknown := self.networks.keys() - COMPONENTS.keys():
            raise ValueError(f"network {min(unknown)!r} is unknown; known are {', '.join(COMPONENTS)}")
        z, c = self.autoencoder.z_channels, self.transformer.in_channels
        if c != z * self.patch**2:
            raise ValueError(f"transformer.in_channels {c} must be z_channels {z} times patch {self.patch} squared")
        if self.style_encoder not in ("siglip", "autoencoder"):
            raise ValueError(f"style_encoder {self.style_encoder!r} is unknown; known are siglip, autoencoder")
        if (p := self.transformer.projector) is not None and self.siglip is not None:
            has, wants = (p.siglip_tokens, p.siglip_dim), (self.siglip.num_tokens, self.siglip.hidden_size)
            if has != wants:
                raise ValueError(f"projector expects {has} (tokens, width) of the style tower, which gives {wants}")
        has, wants = (
            (self.text.txt_width, self.text.vec_width),
            (self.transformer.context_in_dim, self.transformer.vec_in_dim),
        )
        if has != wants:
            raise ValueError(f"the transformer expects text of (context_in_dim, vec_in_dim) {wants}, not {has}")

    def network(self, component: str) -> Any:
        """Return the config of a weights component such as "transformer", "t5" or "csd"; None if it is not used."""
        family = FAMILIES[self.family]
        known = {
            COMPONENTS[family.transformer].folder: self.transformer,
            COMPONENTS[family.autoencoder].folder: self.autoencoder,
            "siglip": self.siglip,
            **{name: getattr(self.text, name) for name in self.text.encoders},
            **self.networks,
        }
        return known.get(component)

    def with_networks(self, networks: Mapping[str, Any]) -> "USOConfig":
        """Return the config with further networks, by row, in place of those it has."""
        tower = {"siglip": networks["siglip"]} if "siglip" in networks else {}
        others = {name: config for name, config in networks.items() if name not in tower}
        return replace(self, **tower, networks={**self.networks, **others})

    def has(self, component: str) -> bool:
        """Return whether a weights component such as "csd" is one of these networks."""
        return self.network(component) is not None

    def tokenize(self, prompt: str) -> dict[str, np.ndarray]:
        """Return a prompt's token ids: those of the text encoders, and CLIP's if it rewards (`token_counts`)."""
        found = self.text.tokenize(prompt)
        more = self.token_counts().keys() - found.keys()
        return found | {name: token_ids(self.text.clip_tokenizer, prompt, self._clip_length) for name in more}

    def token_counts(self) -> dict[str, int]:
        """Return how many ids `tokenize` returns by name, without a tokenizer."""
        return ({"clip_ids": self._clip_length} if "clip_model" in self.networks else {}) | self.text.token_counts()

    @property
    def _clip_length(self) -> int:
        return self.networks["clip_model"].text.max_position_embeddings

    @property
    def pixels_per_token(self) -> int:
        return self.autoencoder.downscale * self.patch

    def to_json(self) -> dict[str, Any]:
        """Return the config in JSON terms, as checkpoints of training runs store it."""
        core = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("networks", "family")}
        # Checkpoints name these networks even where a run has none of them.
        named = dict.fromkeys(("siglip_text", "csd", "judge", "clip_model", "dino", "vgg")) | dict(self.networks)
        family = {} if self.family == "flux1" else {"family": self.family}
        found = {k: asdict(v) if is_dataclass(v) else v for k, v in (core | named | family).items()}
        if not self.transformer.lora_rules:  # checkpoints from before this setting lack it
            del found["transformer"]["lora_rules"]
        return found


@dataclass(frozen=True)
class Maker:
    """What builds a network of a config; makers of equal networks are equal."""

    module: Callable[..., nnx.Module]
    config: Any

    def __call__(self, rngs: nnx.Rngs) -> nnx.Module:
        return self.module(self.config, rngs=rngs)


def modules_of(config: USOConfig) -> Iterator[tuple[str, Maker]]:
    """Yield the structures of a config: the first segment of parameter paths, and what builds the module.

    The order decides the random keys of initial values.
    """
    family = FAMILIES[config.family]
    for name, network in ((family.transformer, config.transformer), (family.autoencoder, config.autoencoder)):
        yield COMPONENTS[name].path, Maker(COMPONENTS[name].module, network)
    yield "text", Maker(type(config.text).build, config.text)
    for name, row in COMPONENTS.items():
        network = config.siglip if name == "siglip" else config.networks.get(name)
        if network is not None:
            yield row.path, Maker(row.module, network)
