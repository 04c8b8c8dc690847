# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""USO from prompt and images to images.

    pipe = USOPipeline.from_weights("mini")
    result = pipe(prompt="a red fox", content="fox.png", styles=["ink.png"], seed=7)
    result.images[0].save("fox_in_ink.png")

Preprocessing, schedule and defaults are those of bytedance/USO (inference.py, uso/flux/pipeline.py).
"""

import logging
import os
import pathlib
import platform
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh
from PIL import Image, ImageOps

import uso_jax
from uso_jax.common.errors import InputError
from uso_jax.images.decode import Pixels, squash
from uso_jax.images.files import ImageLike, Reference
from uso_jax.inference import request
from uso_jax.inference.request import Request
from uso_jax.inference.sampler import HOST, Conditions, Progress, Sampler
from uso_jax.inference.styles import StyleEmbedding
from uso_jax.models.uso import USO
from uso_jax.parallel import sharding
from uso_jax.params import Params
from uso_jax.weights.pretrained import Pretrained
from uso_jax.weights.quantized_kernels import QuantizedUSO

_log = logging.getLogger("uso_jax")
_PER_IMAGE = (
    "content", "width", "height", "keep_size", "num_steps", "guidance", "seed", "shift", "pe", "content_ref",
    "content_strength", "style_fit",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Result:
    """Images, and for each a record, in JSON terms, of everything that is needed to repeat it."""

    images: list[Image.Image]
    records: list[dict[str, Any]]


class USOPipeline:
    """A USO with its weights on the devices of a mesh."""

    def __init__(self, bundle: Pretrained, system: USO, params: Params, mesh: Mesh, tile: int | None = None):
        self.pretrained, self.system = bundle, system
        self.sampler = Sampler(system, params, mesh, tile)

    @classmethod
    def from_weights(
        cls,
        name: str | pathlib.Path,
        *,
        dtype: str | None = None,
        mesh: Mesh | None = None,
        offload: bool = False,
        tile: int | None = None,
        compilation_cache: bool = True,
        only: Collection[str] | None = None,
    ) -> "USOPipeline":
        """Load a weights directory, or "mini" or "small", which come with the package.

        Args:
          name: the directory.
          dtype: of transformer and text encoders; by default float32 if the weights are float32 or float16, otherwise
            bfloat16. The autoencoder and SigLIP run in float32, as upstream.
          mesh: where to run, see `sharding.make_mesh`; by default a batch is split over all devices of this process.
          offload: keep the weights in the host's memory, and on the devices only those of the network that is at work.
          tile: decode images with a longer side than this many pixels in tiles of that size; None: always whole.
          compilation_cache: keep compiled programs on disk for the next process, in JAX_COMPILATION_CACHE_DIR or the
            user's cache folder.
          only: networks to load, such as ["siglip"] for `encode_style`; by default all.
        """
        if compilation_cache:
            keep_compiled_programs()
        if mesh is None:
            mesh = sharding.make_mesh({"data": -1}, jax.local_devices())
        bundle = Pretrained.open(name, dtype)
        system = QuantizedUSO(bundle.system)
        sharding.check_heads(mesh, system.config.transformer.num_heads)
        side = system.config.pixels_per_token
        if tile is not None and (tile % side or tile < 8 * side):
            raise InputError(f"tile must be a multiple of {side}, at least {8 * side} pixels, not {tile}")
        params = bundle.load(system, mesh, HOST if offload else "device", only)
        return cls(bundle, system, params, mesh, tile)

    def __call__(
        self,
        prompt: str | Sequence[str] = "",
        *,
        contents: Sequence[ImageLike] | Sequence[Sequence[ImageLike]] | None = None,
        styles: Sequence[ImageLike | StyleEmbedding] | Sequence[Sequence[ImageLike | StyleEmbedding]] | None = None,
        style_strength: float | Sequence[float] | Sequence[Sequence[float]] = 1.0,
        batch_size: int | None = None,
        progress: Progress | None = None,
        **arguments: Any,
    ) -> Result:
        """Make one image, or as many as the lists are long; what is not a list holds for all of them.

        Args:
          prompt: what to draw; "" with a content image restyles it and keeps its layout.
          contents: several content references of each image, in place of `content`.
          styles: style images, style files or names of styles; each has tokens of its own.
          style_strength: by how much the styles' weight in attention is multiplied, one number or one a style; 1 is
            upstream and costs nothing, 0 equals no style.
          batch_size: the most images to make at once; by default all that have one size.
          progress: called with (what is being done, steps done, steps of all).
          arguments: each one value or a list, one an image:
            content: one content image (path, PIL image or uint8 array), or None.
            width, height: pixels, rounded down to whole tokens; `keep_size` takes the content's shape instead.
            num_steps, guidance, seed: as upstream; a seed gives the same noise in any batch and on any mesh.
            shift: of the schedule: "upstream", "flux" (as ComfyUI) or "none".
            pe: where content tokens lie, "d", "h", "w" or "o"; content_ref: the long side of a content image.
            content_strength: like style_strength, for the content's tokens.
            style_fit: "squash" a style image to SigLIP's square (upstream), or "crop" its centre (as ComfyUI).

        `contents`, `styles` and a list of style strengths belong to every image; a list of lists has one for each.

        Raises:
          InputError: a value makes no sense; the message names it.
        """
        if unknown := arguments.keys() - set(_PER_IMAGE):
            raise InputError(f"unknown arguments {', '.join(sorted(unknown))}; known are {', '.join(_PER_IMAGE)}")
        per_image = {"prompt": prompt, **arguments}
        for name, value in (("contents", contents), ("styles", styles), ("style_strength", style_strength)):
            if value is not None:
                nested = isinstance(value, list | tuple) and any(isinstance(item, list | tuple) for item in value)
                per_image[name] = list(value) if nested else _Shared(value)
        counts = {name: len(value) for name, value in per_image.items() if isinstance(value, list | tuple)}
        if len(set(counts.values())) > 1:
            raise InputError(f"lists are of different lengths: {', '.join(f'{k} {n}' for k, n in counts.items())}")
        each = lambda value, i: value[i] if isinstance(value, list | tuple) else value
        requests = []
        for i in range(max(counts.values(), default=1)):
            one = {name: each(value, i) for name, value in per_image.items()}
            one = {name: value.value if isinstance(value, _Shared) else value for name, value in one.items()}
            requests.append(self.request(**one))
        return self.generate(requests, batch_size=batch_size, progress=progress)

    def request(self, *, content: ImageLike | None = None, **arguments: Any) -> Request:
        """Check one image's arguments, all of them single values, and read its references."""
        if content is not None:
            if arguments.get("contents"):
                raise InputError("give content or contents, not both")
            arguments["contents"] = [content]
        return request.make_request(self.pretrained, self.system, **arguments)

    def generate(
        self, requests: Sequence[Request], *, batch_size: int | None = None, progress: Progress | None = None
    ) -> Result:
        """Make the images of requests; those of one size run together, with absent references masked."""
        groups = _groups(requests, batch_size or len(requests))
        total, done = sum(requests[group[0]].num_steps for group in groups), 0
        if progress is not None and any(one.styles or one.contents for one in requests):
            progress("Encoding references", 0, total)
        features, latents = self._features(requests), self._latents(requests)
        images: dict[int, Image.Image] = {}
        for group in groups:

            def report(what: str, step: int, _: int, done: int = done) -> None:
                if progress is not None:
                    progress(what, done + step, total)

            padded = [*group, *[group[-1]] * (-len(group) % self.sampler.data_shards)]
            conditions = self._conditions([requests[i] for i in padded], features, latents)
            arrays = self.sampler.run(conditions, report)
            images |= {i: Image.fromarray(pixels) for i, pixels in zip(group, arrays, strict=False)}
            done += requests[group[0]].num_steps
        for note in dict.fromkeys(note for one in requests for note in one.notes):
            _log.warning("note: %s", note)
        return Result([images[i] for i in range(len(requests))], [self.record(one) for one in requests])

    @property
    def context(self) -> dict[str, Any]:
        """Identify what a request is drawn with."""
        tile = {"tile": self.sampler.tile} if self.sampler.tile else {}
        return {"dtype": self.pretrained.dtype, "components": self.pretrained.fingerprints, **tile}

    def record(self, one: Request) -> dict[str, Any]:
        """Give everything that is needed to repeat an image, in JSON terms."""
        packages = ("jax", "jaxlib", "flax", "numpy", "pillow")
        return {
            "format": 1,
            "request": one.record(),
            "content_sizes": [list(pixels.shape[1::-1]) for pixels in one.contents],
            "notes": list(one.notes),
            "weights": {"name": self.pretrained.name, **self.context},
            "versions": {"uso_jax": uso_jax.__version__, "python": platform.python_version()}
            | {name: metadata.version(name) for name in packages},
            "device": jax.local_devices()[0].device_kind,
        }

    # ------------------------------------------------------------------------------------------------ references

    @property
    def tower(self) -> str:
        """Identify what style features are made by."""
        layers = self.system.config.transformer.projector.layers
        return f"{self.pretrained.fingerprints['siglip']} {','.join(map(str, layers))}"

    def encode_style(self, images: Sequence[ImageLike | Reference], style_fit: str = "squash") -> StyleEmbedding:
        """Give a style of one or more images, to be used again or written by `style_files.write`."""
        references = list(map(Reference.of, images))
        if not references:
            raise InputError("a style needs at least one image")
        features = np.stack([self._encode_style(reference, style_fit) for reference in references])
        names = [pathlib.Path(r.path).name if r.path else None for r in references]
        described = ({"name": n, "sha256": r.sha256} for n, r in zip(names, references, strict=True))
        return StyleEmbedding(features, self.tower, tuple(described))

    def _encode_style(self, reference: Reference, style_fit: str) -> np.ndarray:
        config = self.system.config
        if config.siglip is None or config.transformer.projector is None:
            raise InputError(
                f"{self.pretrained.directory} lacks siglip or projector, so it cannot read style images;"
                " import them first"
            )
        return self.sampler.features(_fit_style(reference.pixels, config.siglip.image_size, style_fit))

    def _features(self, requests: Sequence[Request]) -> dict[Any, np.ndarray]:
        """Give [n, 3, s, c] for every style, each distinct image encoded once."""
        projector = self.system.config.transformer.projector
        features: dict[Any, np.ndarray] = {}
        for one in requests:
            for style in one.styles:
                if isinstance(style, Reference):
                    if (key := (style.sha256, one.style_fit)) not in features:
                        features[key] = self._encode_style(style, one.style_fit)[None]
                    continue
                has, wants = style.features.shape[1:], (3, projector.siglip_tokens, projector.siglip_dim)
                known = "siglip" not in self.pretrained.fingerprints or style.tower == self.tower
                if has != wants or not known:
                    raise InputError(
                        f"style {style.path or 'given'} was made by another SigLIP than"
                        f" {self.pretrained.directory} has; make it again with these weights"
                    )
                features[id(style)] = style.features
        return features

    def _latents(self, requests: Sequence[Request]) -> dict[Any, np.ndarray]:
        """Give the packed latents of every content image, each distinct one encoded once."""
        latents: dict[Any, np.ndarray] = {}
        for one in requests:
            for reference, pixels in zip(one.references, one.contents, strict=True):
                if (key := (reference.sha256, pixels.shape)) not in latents:
                    latents[key] = self.sampler.latents(pixels)
        return latents

    def _conditions(self, batch: Sequence[Request], features: dict, latents: dict) -> Conditions:
        """Stack what a batch of one group needs; what a request lacks becomes zeros that are not valid."""
        system, first = self.system, batch[0]
        tokens = [system.config.text.tokenize(one.prompt) for one in batch]
        schedule = lambda one: system.schedule(one.num_steps, one.height, one.width, one.shift)
        conditions = Conditions(
            height=first.height,
            width=first.width,
            tokens={name: np.stack([t[name] for t in tokens]) for name in tokens[0]},
            seeds=np.asarray([one.seed for one in batch], np.uint32),
            times=np.stack([schedule(one) for one in batch]).astype(np.float32),
            guidance=np.asarray([one.guidance for one in batch], np.float32),
        )
        if any(one.styles for one in batch):
            rows = [[features[_style_key(one, style)] for style in one.styles] for one in batch]
            strengths = [
                [strength for strength, style in zip(one.style_strength, row, strict=True) for _ in style]
                for one, row in zip(batch, rows, strict=True)
            ]
            images = [[image for style in row for image in style] for row in rows]
            conditions.features, conditions.style_valid = _stack(images)
            conditions.style_valid, conditions.style_bias = _weigh(conditions.style_valid, strengths, first)
        if any(one.contents for one in batch):
            longest = max((one.contents for one in batch), key=len)
            ids = [system.token_grid(*pixels.shape[:2]) for pixels in longest]
            rows = [
                [x for r, p in zip(one.references, one.contents, strict=True) for x in latents[r.sha256, p.shape]]
                for one in batch
            ]
            conditions.ref_img, conditions.ref_valid = _stack(rows)
            strengths = [[one.content_strength] * len(row) for one, row in zip(batch, rows, strict=True)]
            conditions.ref_valid, conditions.ref_bias = _weigh(conditions.ref_valid, strengths, first)
            conditions.ref_ids = system.reference_ids(system.token_grid(first.height, first.width), ids, first.pe)
        return conditions


@dataclass(frozen=True)
class _Shared:
    """A list that belongs to every image."""

    value: Any


def keep_compiled_programs() -> None:
    """Let JAX keep compiled programs on disk, unless the user has chosen a place for them already."""
    if jax.config.jax_compilation_cache_dir is None:
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home, "uso_jax", "compiled")))
        # The encoders' programs are quick to compile one by one, and there are many.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        compilation_cache.reset_cache()


def _fit_style(image: Pixels, side: int, style_fit: str) -> Pixels:
    if style_fit == "squash":
        return squash(image, (side, side))
    return np.asarray(ImageOps.fit(Image.fromarray(image), (side, side), Image.Resampling.BICUBIC))


def _groups(requests: Sequence[Request], most: int) -> list[list[int]]:
    """Divide requests into batches that one program serves: the same sizes, with contents at most left out."""
    if most < 1:
        raise InputError(f"batch_size must be at least 1, not {most}")
    groups: list[list[int]] = []
    for i, one in enumerate(requests):
        for group in groups:
            if len(group) < most and all(_alike(one, requests[other]) for other in group):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def _alike(a: Request, b: Request) -> bool:
    static = lambda one: (one.height, one.width, one.num_steps, one.pe, _has_strength(one))
    # The shorter list of content sizes must be how the longer one starts: positions then agree.
    return static(a) == static(b) and all(p.shape == q.shape for p, q in zip(a.contents, b.contents, strict=False))


def _has_strength(one: Request) -> bool:
    return any(s != 1 for s in one.style_strength) or (bool(one.contents) and one.content_strength != 1)


def _style_key(one: Request, style: Reference | StyleEmbedding) -> Any:
    return (style.sha256, one.style_fit) if isinstance(style, Reference) else id(style)


def _stack(rows: list[list[np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Stack rows of different lengths; the second array says what is not filling."""
    longest = max(map(len, rows))
    like = next(x for row in rows for x in row)
    stacked = np.stack([np.stack([*row, *[np.zeros_like(like)] * (longest - len(row))]) for row in rows])
    return stacked, np.arange(longest)[None] < np.asarray([[len(row)] for row in rows])


def _weigh(valid: np.ndarray, strengths: list[list[float]], first: Request) -> tuple[np.ndarray, np.ndarray | None]:
    """Give validity and logits of strengths: log(strength), but a strength of 0 is an absence."""
    if not _has_strength(first):
        return valid, None
    factors = np.ones(valid.shape, np.float32)
    for row, values in zip(factors, strengths, strict=True):
        row[: len(values)] = values
    return valid & (factors > 0), np.log(np.where(factors > 0, factors, 1))
