# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The pipeline: prompts and reference images in, images and their records out.

    pipe = USOPipeline.from_weights("mini")
    result = pipe(prompt="a red fox", content="fox.png", styles=["ink.png"], seed=7)
    result.images[0].save("fox_in_ink.png")
    pipe.load_adapter("turbo.safetensors", strength=0.8)

Preprocessing, schedule and defaults are those of bytedance/USO (inference.py, uso/flux/pipeline.py).
"""

import dataclasses
import logging
import pathlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from uso_jax import mini, weights
from uso_jax.common.errors import InputError
from uso_jax.hardware.compilation_cache import keep_compiled_programs
from uso_jax.images.reference import ImageLike, Reference
from uso_jax.inference.about import About
from uso_jax.inference.adapter_exchange import exchange_adapters
from uso_jax.inference.arguments import one_per_image
from uso_jax.inference.generator import Generator
from uso_jax.inference.option_kinds import Number, Whole
from uso_jax.inference.options import SPECS, GenerationOptions
from uso_jax.inference.records import Result, context_of, record_of
from uso_jax.inference.request import ContentLike, Request, StyleLike, make_request
from uso_jax.inference.sampler import HOST, Progress, Sampler
from uso_jax.inference.styles import StyleEmbedding
from uso_jax.models.uso import USO
from uso_jax.parallel import sharding
from uso_jax.params import Params
from uso_jax.weights.adapters.adapted import Adapted
from uso_jax.weights.adapters.adapter import Adapter, Strength, open_adapters
from uso_jax.weights.pretrained import Pretrained
from uso_jax.weights.quantized_kernels import QuantizedUSO, check_products

_log = logging.getLogger("uso_jax")


class USOPipeline:
    """A USO with its weights on the devices of a mesh."""

    def __init__(self, pretrained: Pretrained, system: USO, params: Params, mesh: Mesh, tile: int | None = None):
        self.pretrained, self.system = pretrained, system
        self.sampler = Sampler(system, params, mesh, tile)
        self._generator = Generator(pretrained, system, self.sampler)

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
        verify: bool = False,
        adapters: Sequence[tuple[str | pathlib.Path, Strength]] = (),
        projector: str | pathlib.Path | None = None,
        merge: bool = True,
        quantize_activations: bool = False,
    ) -> "USOPipeline":
        """Load a weights directory, or the packaged weights "mini".

        Args:
          name: the directory.
          dtype: of transformer and text encoders. By default float32 if the weights are float32 or float16, otherwise
            bfloat16. The autoencoder and SigLIP run in float32, as upstream.
          mesh: devices to run on, see `sharding.make_mesh`. By default a batch is split over all local devices.
          offload: keep the weights in host memory, and only those of the running network on the devices.
          tile: decode images with a longer side than this many pixels in tiles of that size. None decodes them whole.
          compilation_cache: keep compiled programs on disk for the next process, in JAX_COMPILATION_CACHE_DIR or the
            user's cache folder.
          only: networks to load, such as ["siglip"] for `encode_style`. By default all.
          verify: compare every file with its SHA-256 first, about a second for a gigabyte. Files of up to 64 MiB are
            always compared.
          adapters: paths and strengths of adapters, as `load_adapter` takes them.
          projector: style projector in place of the weights' own: a file, folder or workdir that has one.
          merge: merge the weights' own adapters into the transformer, unless it is quantised. False keeps them beside
            it, as in training: steps take longer, and images differ by rounding.
          quantize_activations: multiply in the 8 bits of a transformer in int8 or fp8, which moves images further from
            those of the unquantised weights (docs/low_memory.md).

        Raises:
          InputError: the weights are incomplete, or an argument does not fit them.
        """
        if compilation_cache:
            keep_compiled_programs()
        if mesh is None:
            mesh = sharding.make_mesh({"data": -1}, jax.local_devices())
        opened = open_adapters(directory := mini.directory(name), adapters, projector)
        pretrained = Pretrained.open(name, dtype, Adapted(directory, opened, merge=merge))
        if quantize_activations:
            check_products(pretrained.quantization, (one := mesh.devices.flat[0]).platform, one.device_kind)
        system = QuantizedUSO(pretrained.system, quantize_activations=quantize_activations)
        sharding.check_heads(mesh, system.config.transformer.num_heads)
        side = system.config.pixels_per_token
        if tile is not None and (tile % side or tile < 8 * side):
            raise InputError(f"tile must be a multiple of {side} and at least {8 * side} pixels, not {tile}")
        if verify:
            weights.verify(pretrained.directory, only)
        _log_notes(note for adapter in opened for note in adapter.notes)
        params = pretrained.load(system, mesh, HOST if offload else "device", only)
        return cls(pretrained, system, params, mesh, tile)

    # ------------------------------------------------------------------------------------------------ adapters

    def load_adapter(self, path: str | pathlib.Path, *, strength: Strength = 1.0, name: str | None = None) -> str:
        """Add an adapter to the transformer, and the style projector beside it if there is one.

        It is merged into the weights: the parameters that it changes are read again, so no copy of them is kept. Beside
        quantised weights, what is low-rank in the attention's projections is kept apart, and the next image compiles.

        Args:
          path: a safetensors file of any public layout; a folder with one; a weights directory with a `lora`; or a
            training's --workdir, whose last checkpoint counts.
          strength: multiplies its changes.
          name: by which it can be unloaded; by default that of the file.

        Returns:
          the name.

        Raises:
          InputError: it cannot be read, does not fit these weights, or has the name of another. Nothing has changed.
        """
        before = self.pretrained.adapted.adapters
        (adapter,) = open_adapters(self.pretrained.directory, [(path, strength)], beside=before)
        adapter = dataclasses.replace(adapter, name=name or adapter.name)
        self._use([*before, adapter])
        _log_notes(adapter.notes)
        return adapter.name

    def unload(self, name: str) -> None:
        """Remove an adapter by its name; what it had changed is read from disk again.

        Raises:
          InputError: no adapter has this name.
        """
        has = self.pretrained.adapted.adapters
        if name not in (known := [adapter.name for adapter in has]):
            raise InputError(f"no adapter is called {name!r}; loaded are {', '.join(known) or 'none'}")
        self._use([adapter for adapter in has if adapter.name != name])

    @property
    def adapters(self) -> dict[str, float]:
        """Names and strengths of the adapters."""
        return {adapter.name: adapter.strength for adapter in self.pretrained.adapted.adapters}

    def _use(self, adapters: Sequence[Adapter]) -> None:
        """Load what differs with these adapters."""
        after = self.pretrained.with_adapters(adapters)
        self.system, self.sampler = exchange_adapters(self.sampler, self.pretrained, after)
        self.pretrained = after
        self._generator = Generator(after, self.system, self.sampler)

    # ------------------------------------------------------------------------------------------------ images

    def __call__(
        self,
        prompt: str | Sequence[str] = "",
        *,
        content: ContentLike | Sequence[ContentLike | None] | None = None,
        contents: Sequence[ContentLike] | Sequence[Sequence[ContentLike]] | None = None,
        styles: Sequence[StyleLike] | Sequence[Sequence[StyleLike]] | None = None,
        image: ContentLike | Sequence[ContentLike | None] | None = None,
        mask: ContentLike | Sequence[ContentLike | None] | None = None,
        content_mask: ContentLike | Sequence[ContentLike | None] | None = None,
        style_masks: Sequence[ContentLike | None] | Sequence[Sequence[ContentLike | None] | None] | None = None,
        width: Whole | Sequence[Whole | None] | None = None,
        height: Whole | Sequence[Whole | None] | None = None,
        keep_size: bool | Sequence[bool] = GenerationOptions.keep_size,
        num_steps: Whole | Sequence[Whole | None] | None = None,
        guidance: Number | Sequence[Number | None] | None = None,
        seed: Whole | Sequence[Whole] = GenerationOptions.seed,
        shift: str | Sequence[str | None] | None = None,
        pe: str | Sequence[str] = GenerationOptions.pe,
        content_ref: Whole | Sequence[Whole | None] | None = None,
        content_strength: Number | Sequence[Number] = GenerationOptions.content_strength,
        style_strength: Number | Sequence[Number] | Sequence[Sequence[Number]] = GenerationOptions.style_strength,
        style_fit: str | Sequence[str] = GenerationOptions.style_fit,
        reference_mode: str | Sequence[str] = GenerationOptions.reference_mode,
        negative_prompt: str | Sequence[str] = GenerationOptions.negative_prompt,
        isolated: str | Sequence[str] = GenerationOptions.isolated,
        solver: str | Sequence[str] = GenerationOptions.solver,
        step_cache: Number | Sequence[Number] = GenerationOptions.step_cache,
        true_guidance: Number | Sequence[Number] = GenerationOptions.true_guidance,
        guidance_steps: Sequence[Number] | Sequence[Sequence[Number]] = GenerationOptions.guidance_steps,
        strength: Number | Sequence[Number] = GenerationOptions.strength,
        outpaint: Whole | Sequence[Whole] | Sequence[Sequence[Whole]] = GenerationOptions.outpaint,
        upscale: Number | Sequence[Number] = GenerationOptions.upscale,
        upscale_strength: Number | Sequence[Number] = GenerationOptions.upscale_strength,
        variation: Number | Sequence[Number] = GenerationOptions.variation,
        variation_seed: Whole | Sequence[Whole] = GenerationOptions.variation_seed,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """Generate one image, or as many as the lists are long.

        Every argument is one value for all images, or a list with one value per image. `contents`, `styles`,
        `style_masks` and `style_strength` are lists for one image already: a list of lists has one list per image. None
        takes the default of the weights directory.

        Args:
          prompt: the description of the image. With a content image, "" restyles that image and keeps its layout.
          content: one content image: a path, a PIL image or a uint8 array.
          contents: several content images of one image, in place of `content`.
          styles: style images, style files or names of saved styles. Each style has separate tokens.
          image: an image to edit: generation starts from it and keeps its size.
          mask: white where that image is drawn anew, of its size. What is black keeps its pixels.
          content_mask: white where the content image counts, of its size: what is black is not looked at.
          style_masks: for each style an image that is white where the style counts, stretched over the target; None:
            it counts everywhere.
          width: image width in pixels, rounded down to whole tokens.
          height: image height in pixels, rounded down to whole tokens.
          keep_size: use the shape of the content image in place of width and height.
          num_steps: sampling steps.
          guidance: guidance scale.
          seed: random seed; gives the same noise in any batch and on any mesh.
          shift: shift of the schedule: "upstream", "flux" (as ComfyUI) or "none".
          pe: position of the content tokens relative to the image's: "d", "h", "w" or "o".
          content_ref: long side of content images, in pixels.
          content_strength: factor on the attention weights of content images. 1 is upstream and costs nothing; 0 equals
            no content image.
          style_strength: the same for styles, one number or one per style.
          style_fit: "squash" style images to SigLIP's square (upstream), or "crop" their centre (as ComfyUI).
          reference_mode: "displayed" reads images as viewers show them; "upstream" as bytedance/USO, without EXIF
            orientation, transparency and colour profiles, and rounds the pixels of the result down.
          negative_prompt: what guidance by a second pass moves away from (FLUX.2 base models, or `true_guidance`).
          isolated: "content" images attend to each other only, or "all" references with styles, for models that were
            trained so. Each step is then faster. "none" is FLUX.1's and FLUX.2's usual way.
          solver: "euler" steps (upstream), or "adams", which use the velocity of the step before, too: as many passes
            and less error of each step.
          step_cache: relative change of the first block's output below which a step reuses what the other blocks
            computed before, such as 0.1; records count the passes that did. 0: all blocks run in every step.
          true_guidance: scale of guidance by a second pass, for models that embed their guidance. 1: no second pass.
          guidance_steps: share of the schedule from which, and up to which, a second pass guides.
          strength: how much of `image` is drawn anew: 0 returns it, 1 starts from noise.
          outpaint: pixels to draw around `image`: left, top, right and bottom, or one number.
          upscale: enlarge the image by this factor, and draw its details in overlapping tiles.
          upscale_strength: how much of the enlarged image is drawn anew.
          variation: how far the noise is moved towards that of `variation_seed`; 1 is that seed's image.
          variation_seed: random seed of the variation.
          batch_size: the most images to generate at once. By default all that can share a batch.
          progress: called with (name of the phase, steps done, total steps).

        Raises:
          InputError: a value is not allowed; the message names it.
        """
        values = dict(
            prompt=prompt, content=content, contents=contents, styles=styles, width=width, height=height,
            keep_size=keep_size, num_steps=num_steps, guidance=guidance, seed=seed, shift=shift, pe=pe,
            content_ref=content_ref, content_strength=content_strength, style_strength=style_strength,
            style_fit=style_fit, reference_mode=reference_mode, negative_prompt=negative_prompt, isolated=isolated,
            solver=solver, step_cache=step_cache,
            true_guidance=true_guidance, guidance_steps=guidance_steps, strength=strength, outpaint=outpaint,
            upscale=upscale, upscale_strength=upscale_strength, variation=variation, variation_seed=variation_seed,
            image=image, mask=mask, content_mask=content_mask, style_masks=style_masks,
        )  # fmt: skip
        requests = []
        for one in one_per_image(values):
            named = {name: one.pop(name) for name in list(one) if name not in SPECS and name != "content"}
            if (content := one.pop("content")) is not None:
                if named["contents"]:
                    raise InputError("pass content or contents, not both")
                named["contents"] = [content]
            requests.append(self.request(**named, options=GenerationOptions(**one)))
        return self.generate(requests, batch_size=batch_size, progress=progress)

    def request(
        self,
        prompt: str = "",
        *,
        contents: Sequence[ContentLike] | ContentLike | None = None,
        styles: Sequence[StyleLike] | StyleLike | None = None,
        image: ContentLike | None = None,
        mask: ContentLike | None = None,
        content_mask: ContentLike | None = None,
        style_masks: Sequence[ContentLike | None] | None = None,
        options: GenerationOptions | None = None,
    ) -> Request:
        """Read the references of one image and complete its options, without generating it.

        Raises:
          InputError: a value is not allowed; the message names it.
        """
        read = dict(contents=contents, styles=styles, image=image, mask=mask, content_mask=content_mask)
        return make_request(self.pretrained, self.system, prompt, **read, style_masks=style_masks, options=options)

    def generate(
        self, requests: Sequence[Request], *, batch_size: int | None = None, progress: Progress | None = None
    ) -> Result:
        """Generate the images of requests. Images of one size run together; missing references are masked."""
        _log_notes(note for request in requests for note in request.notes)  # before minutes of compilation
        images, reused = self._generator.generate(requests, batch_size, progress)
        records = [self.record(request) for request in requests]
        for record, request, count in zip(records, requests, reused, strict=True):
            if request.options.step_cache:
                record["reused_passes"] = count
        return Result(images, records)

    def encode_style(
        self,
        images: Sequence[ImageLike | Reference],
        style_fit: str = GenerationOptions.style_fit,
        reference_mode: str = GenerationOptions.reference_mode,
    ) -> StyleEmbedding:
        """Encode one style from one or more images, to be used in `styles` or saved by `write_style`."""
        return self._generator.references.encode_style(images, style_fit, reference_mode)

    @property
    def about(self) -> About:
        """Facts of the weights that a page or a client needs."""
        return About.of(self.pretrained, self.system)

    @property
    def context(self) -> dict[str, Any]:
        """What decides an image besides its request, in JSON terms."""
        return context_of(self.pretrained, self.system, self.sampler.tile)

    def record(self, request: Request) -> dict[str, Any]:
        """Return everything that repeats an image, in JSON terms."""
        return record_of(request, {"name": self.pretrained.name, **self.context})


def _log_notes(notes: Iterable[str]) -> None:
    for note in dict.fromkeys(notes):
        _log.warning("note: %s", note)
