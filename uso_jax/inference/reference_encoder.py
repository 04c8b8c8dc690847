# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Reference images as the transformer takes them: SigLIP features of styles, latents of content images.

Shapes: n images of a style, s SigLIP tokens, c SigLIP width, r content tokens, d token channels.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps

from uso_jax.common.errors import InputError
from uso_jax.images.decode import Pixels, ReferenceMode, squash
from uso_jax.images.reference import ImageLike, Reference
from uso_jax.inference.request import Request
from uso_jax.inference.sampler import Sampler
from uso_jax.inference.styles import StyleEmbedding
from uso_jax.models.uso import USO
from uso_jax.weights.pretrained import Pretrained


class EncodedReferences:
    """The encoded references of some requests. Each distinct image is encoded once."""

    def __init__(self):
        self._features: dict[Any, np.ndarray] = {}
        self._latents: dict[Any, np.ndarray] = {}

    def features(self, request: Request) -> list[Float[np.ndarray, "n 3 s c"]]:
        """Return the features of each of a request's styles."""
        return [self._features[_style_key(request, style)] for style in request.styles]

    def latents(self, request: Request) -> list[Float[np.ndarray, "r d"]]:
        """Return the packed latents of each of a request's content images."""
        return [self._latents[key] for key in _content_keys(request)]

    def start(self, request: Request) -> Float[np.ndarray, "l d"]:
        """Return the packed latents of the image that a request edits."""
        return self._latents[_canvas_key(request)]


class ReferenceEncoder:
    """SigLIP and the autoencoder's encoder of one weights directory."""

    def __init__(self, pretrained: Pretrained, system: USO, sampler: Sampler):
        self.pretrained, self.config, self.sampler = pretrained, system.config, sampler

    @property
    def tower(self) -> str:
        """Identify the network and the layers that style features come from."""
        layers = self.config.transformer.projector.layers
        return f"{self.pretrained.fingerprints['siglip']} {','.join(map(str, layers))}"

    def encode(self, requests: Sequence[Request]) -> EncodedReferences:
        """Encode every reference of some requests.

        Raises:
          InputError: a style cannot be used with these weights.
        """
        found = EncodedReferences()
        for request in requests:
            for style in request.styles:
                if (key := _style_key(request, style)) in found._features:
                    continue
                if isinstance(style, Reference):
                    found._features[key] = self._style_features(style, request.options.style_fit)[None]
                else:
                    found._features[key] = self._checked(style).features
            for key, pixels in zip(_content_keys(request), request.contents, strict=True):
                if key not in found._latents:
                    found._latents[key] = self.sampler.latents(pixels)
            if request.canvas is not None and (key := _canvas_key(request)) not in found._latents:
                found._latents[key] = self.sampler.latents(request.canvas.pixels, tiled=True)
        return found

    def encode_style(
        self, images: Sequence[ImageLike | Reference], style_fit: str, mode: ReferenceMode
    ) -> StyleEmbedding:
        """Encode one style from one or more images."""
        references = [Reference.of(image, mode=mode) for image in images]
        if not references:
            raise InputError("a style needs at least one image")
        features = np.stack([self._style_features(reference, style_fit) for reference in references])
        names = [pathlib.Path(r.path).name if r.path else None for r in references]
        described = ({"name": n, "sha256": r.sha256} for n, r in zip(names, references, strict=True))
        return StyleEmbedding(features, self.tower, tuple(described))

    def _style_features(self, reference: Reference, style_fit: str) -> Float[np.ndarray, "3 s c"]:
        if self.config.siglip is None or self.config.transformer.projector is None:
            raise InputError(
                f"{self.pretrained.directory} lacks siglip or projector, so it cannot encode style images;"
                " import them first"
            )
        return self.sampler.features(_square(reference.pixels, self.config.siglip.image_size, style_fit))

    def _checked(self, style: StyleEmbedding) -> StyleEmbedding:
        projector = self.config.transformer.projector
        expected = (3, projector.siglip_tokens, projector.siglip_dim)
        # Weights without SigLIP can use a style by its shape alone.
        same_tower = "siglip" not in self.pretrained.fingerprints or style.tower == self.tower
        if style.features.shape[1:] != expected or not same_tower:
            raise InputError(
                f"style {style.path or 'embedding'} was encoded by another SigLIP than that of"
                f" {self.pretrained.directory}; encode it again with these weights"
            )
        return style


def _style_key(request: Request, style: Reference | StyleEmbedding) -> Any:
    return (style.sha256, style.mode, request.options.style_fit) if isinstance(style, Reference) else id(style)


def _content_keys(request: Request) -> list[Any]:
    pairs = zip(request.references, request.contents, strict=True)
    return [(reference.sha256, reference.mode, pixels.shape) for reference, pixels in pairs]


def _canvas_key(request: Request) -> Any:
    canvas = request.canvas
    return canvas.image.sha256, canvas.image.mode, canvas.pixels.shape, request.options.outpaint


def _square(image: Pixels, side: int, style_fit: str) -> Pixels:
    if style_fit == "squash":
        return squash(image, (side, side))
    return np.asarray(ImageOps.fit(Image.fromarray(image), (side, side), Image.Resampling.BICUBIC))
