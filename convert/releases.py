# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The public checkpoints that are known by short names."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uso_jax.models import flux
from uso_jax.models.flux2 import SAMPLING


@dataclass(frozen=True)
class Release:
    """A repository of the hub, and the files of it that are needed."""

    repo: str
    files: tuple[str, ...]  # names, or patterns where the number of shards is not known
    licence: str
    gib: float  # of the files
    components: tuple[str, ...]  # of a weights directory that are imported from it
    weights: tuple[str, ...] = ()  # files to import, if not all .safetensors of `files`
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # for pipeline.json of a weights directory
    only: str | None = None  # component to read, where the files hold several

    @property
    def large(self) -> bool:
        """Whether it is worth being quantised."""
        return self.gib > 5

    @property
    def imported(self) -> tuple[str, ...]:
        """The files to import, as names or patterns."""
        return self.weights or tuple(name for name in self.files if name.endswith(".safetensors"))


_DEV = "FLUX.1 [dev] non-commercial"
_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "config.json")
_FLUX2 = ("transformer", "autoencoder", "qwen3")
_KLEIN = (
    "transformer/diffusion_pytorch_model*.safetensors", "vae/diffusion_pytorch_model*.safetensors",
    "text_encoder/model*.safetensors", "tokenizer/tokenizer.json", "tokenizer/vocab.json", "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json", "tokenizer/added_tokens.json",
    "tokenizer/chat_template.jinja",
)  # fmt: skip
RELEASES = {
    "flux-dev": Release("black-forest-labs/FLUX.1-dev", ("flux1-dev.safetensors",), _DEV, 22.2, ("transformer",)),
    "flux-schnell": Release(
        "black-forest-labs/FLUX.1-schnell",
        ("flux1-schnell.safetensors",),
        "Apache-2.0",
        22.2,
        ("transformer",),
        defaults=flux.SAMPLING["flux-schnell"],
    ),
    "flux-krea": Release(
        "black-forest-labs/FLUX.1-Krea-dev", ("flux1-krea-dev.safetensors",), _DEV, 22.2, ("transformer",)
    ),
    "flux-dev-fp8": Release("Comfy-Org/flux1-dev", ("flux1-dev-fp8.safetensors",), _DEV, 16.1, ("transformer",)),
    "autoencoder": Release(
        "black-forest-labs/FLUX.1-schnell", ("ae.safetensors",), "Apache-2.0", 0.3, ("autoencoder",)
    ),
    "uso": Release(
        "bytedance-research/USO",
        tuple(f"uso_flux_v1.0/{x}.safetensors" for x in ("dit_lora", "projector")),
        "Apache-2.0",
        0.5,
        ("lora", "projector"),
    ),
    "siglip": Release(
        "google/siglip-so400m-patch14-384",
        ("model.safetensors", "preprocessor_config.json", "config.json"),
        "Apache-2.0",
        3.3,
        ("siglip",),
    ),
    "t5": Release(
        "xlabs-ai/xflux_text_encoders",
        (
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "spiece.model",
            *_TOKENIZER,
        ),
        "Apache-2.0",
        8.9,
        ("t5",),
        weights=("model.safetensors.index.json",),
    ),
    "clip": Release(
        "openai/clip-vit-large-patch14",
        ("model.safetensors", "tokenizer.json", "vocab.json", "merges.txt", *_TOKENIZER),
        "MIT",
        1.6,
        ("clip",),
    ),
    "clip-metric": Release(
        "openai/clip-vit-base-patch32",
        ("model.safetensors", "preprocessor_config.json", "tokenizer.json", "vocab.json", "merges.txt", *_TOKENIZER),
        "MIT",
        0.6,
        ("clip_model",),
        only="clip_model",
    ),
    "csd": Release("yuxi-liu-wired/CSD", ("model.safetensors",), "MIT", 1.1, ("csd",)),
    "dino": Release(
        "facebook/dino-vits16",
        ("pytorch_model.bin", "preprocessor_config.json"),
        "Apache-2.0",
        0.1,
        ("dino",),
        weights=("pytorch_model.bin",),
    ),
    "dinov2": Release(
        "facebook/dinov2-base", ("model.safetensors", "preprocessor_config.json"), "Apache-2.0", 0.3, ("dinov2",)
    ),
    "klein-4b": Release(
        "black-forest-labs/FLUX.2-klein-4B", _KLEIN, "Apache-2.0", 14.9, _FLUX2, defaults=SAMPLING["klein-4b"]
    ),
    "klein-base-4b": Release(
        "black-forest-labs/FLUX.2-klein-base-4B", _KLEIN, "Apache-2.0", 14.9, _FLUX2, defaults=SAMPLING["klein-base-4b"]
    ),
    "klein-9b": Release(
        "black-forest-labs/FLUX.2-klein-9B", _KLEIN, "FLUX non-commercial", 32.4, _FLUX2, defaults=SAMPLING["klein-9b"]
    ),
}
