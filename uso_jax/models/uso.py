# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A complete USO: transformer, autoencoder, style tower and text encoders around one flat parameter dict.

Parameter paths start with the component: transformer/, autoencoder/, siglip/, text/.
Shapes: b batch, h w target pixels, hc wc content pixels, hs ws style pixels, n style images, l target tokens, r content
tokens, t text tokens, d token channels.
"""

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from uso_jax import flow
from uso_jax.models.families import FAMILIES
from uso_jax.models.joint_transformer import Kept
from uso_jax.models.layers.regions import Regions
from uso_jax.models.step_cache import StepCache
from uso_jax.models.uso_config import USOConfig, modules_of
from uso_jax.params import Params, structure

Batch = Mapping[str, Array]
"""Images and token ids, or their precomputed features: "target_moments", "content_moments" float [b, lh, lw, 2 z],
"style_features" [b, n, 3, s, c] or "style_moments" [b, n, lh, lw, 2 z], "txt" [b, t, context] and "vec" [b, vec]
(uso_jax.training.precompute)."""

Caches = tuple[StepCache, StepCache | None]
"""What a sampling step hands to the next one, of the pass with the prompt and of that with the negative text."""

NullText = tuple[Float[np.ndarray, "t context"], Float[np.ndarray, " vec"] | None]


@jax.tree_util.register_dataclass
@dataclass
class Inputs:
    """The transformer's inputs of a batch, apart from time and noise; None if the batch has no such condition.

    With `negative_txt`, classifier-free guidance moves the velocity away from that text's.
    """

    txt: Float[Array, "b t context"]
    y: Float[Array, "b vec"] | None  # None if the text side has no pooled vector
    img_ids: Float[Array, "1 l axes"]
    features: Float[Array, "b n 3 s c"] | None = None
    style_valid: Bool[Array, "b n"] | None = None
    ref_img: Float[Array, "b r d"] | None = None
    ref_ids: Float[Array, "1 r axes"] | None = None
    ref_valid: Bool[Array, "b r"] | None = None
    style_bias: Float[Array, "b n"] | None = None  # added to the attention logits of the images' tokens
    ref_bias: Float[Array, "b r"] | None = None
    style_owner: Int[Array, "b n"] | None = None  # number of the style, from 1, that an image belongs to
    ref_owner: Int[Array, "b r"] | None = None  # the same of references' tokens; 0: they belong to no style
    regions: Regions | None = None  # how much these styles count where; None: everywhere alike
    negative_txt: Float[Array, "b t context"] | None = None
    negative_y: Float[Array, "b vec"] | None = None
    negative_scale: Float[Array, " b"] | None = None  # None: the guidance scale is that of the second pass
    kept: Kept | None = None  # keys and values of isolated references, from `USO.prepare`
    isolated: flow.Isolated = field(default="none", metadata={"static": True})

    @classmethod
    def arrays(cls) -> tuple[str, ...]:
        """Return the names of the fields that hold arrays."""
        return tuple(one.name for one in fields(cls) if not one.metadata.get("static"))


_OF_STYLES = ("style_valid", "style_bias", "style_owner")
_OF_REFERENCES = ("ref_img", "ref_ids", "ref_valid", "ref_bias", "ref_owner")


def to_float(images: UInt8[Array, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
    """Map bytes to [-1, 1]: the range of the autoencoder and, with its mean and deviation of 0.5, of SigLIP."""
    return images.astype(jnp.float32) / 127.5 - 1


def to_bytes(images: Float[Array, "b h w 3"], round_down: bool = False) -> UInt8[Array, "b h w 3"]:
    """Map [-1, 1] to bytes, clipped and rounded to the nearest one, or down as upstream does."""
    levels = (jnp.clip(images, -1, 1) + 1) * 127.5
    return (jnp.floor(levels) if round_down else jnp.round(levels)).astype(jnp.uint8)


class USO:
    """The structures of all networks. Parameters are always passed in, so every method is pure."""

    def __init__(self, config: USOConfig, without: Collection[str] = (), null_text: NullText | None = None):
        """Build the structures of a config.

        Args:
          config: sizes of all networks.
          without: structures that are not needed, because features of images or prompts are precomputed.
          null_text: what `encode_text` returns for the empty prompt, if prompts are precomputed.
        """
        self.config, self.null_text = config, null_text
        self.family = FAMILIES[config.family]
        self.structures = {name: structure(make) for name, make in modules_of(config)}
        # Omitted structures keep their random key, so the others initialise identically.
        self._numbers = {name: number for number, name in enumerate(self.structures)}
        self.structures = {name: structure for name, structure in self.structures.items() if name not in without}
        self.shapes = {
            f"{name}/{path}": shape
            for name, structure in self.structures.items()
            for path, shape in structure.shapes.items()
        }

    def with_config(self, config: USOConfig) -> "USO":
        """Return the structures of another config, run like these."""
        return type(self)(config)

    @functools.cached_property
    def null_tokens(self) -> dict[str, np.ndarray]:
        """The empty prompt's tokens."""
        return self.config.text.tokenize("")

    def init(self, rng: jax.Array) -> Params:
        """Draw initial parameters of every component."""
        drawn = {name: self.structures[name].init(key) for name, key in self.keys(rng).items()}
        return {f"{name}/{path}": value for name, part in drawn.items() for path, value in part.items()}

    def keys(self, rng: jax.Array) -> dict[str, jax.Array]:
        """Return the key that each component's initial parameters are drawn with."""
        keys = jax.random.split(rng, len(self._numbers))
        return {name: keys[self._numbers[name]] for name in self.structures}

    def module(self, params: Params, name: str) -> nnx.Module:
        """Build one structure around its parameters."""
        prefix = f"{name}/"
        return self.structures[name]({k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)})

    def encode_images(self, params: Params, images: UInt8[Array, "b h w 3"]) -> Float[Array, "b l d"]:
        """Encode images to packed latents, by the posterior mean."""
        return flow.pack(self.module(params, "autoencoder").encode(to_float(images)), self.config.patch)

    def decode_tokens(
        self, params: Params, tokens: Float[Array, "b l d"], height: int, width: int, round_down: bool = False
    ) -> UInt8[Array, "b h w 3"]:
        """Decode packed latents; `height` and `width` count pixels."""
        grid = self.token_grid(height, width)
        latent = flow.unpack(tokens, *grid, self.config.patch)
        return to_bytes(self.module(params, "autoencoder").decode(latent), round_down)

    def target_size(self, batch: Batch) -> tuple[int, int]:
        """Return the (height, width) of a batch's targets in pixels."""
        return self._size(batch, "target")

    def _size(self, batch: Batch, name: str) -> tuple[int, int]:
        if name in batch:
            return batch[name].shape[1:3]
        rows, columns = batch[f"{name}_moments"].shape[1:3]
        return rows * self.config.autoencoder.downscale, columns * self.config.autoencoder.downscale

    def latent_tokens(self, params: Params, batch: Batch, name: str) -> Float[Array, "b l d"]:
        """Return the packed latents of a batch's "target" or other images, or of their precomputed moments."""
        if name in batch:
            return self.encode_images(params, batch[name])
        config = self.config.autoencoder
        mean = jnp.split(batch[f"{name}_moments"].astype(jnp.float32), 2, axis=-1)[0]
        return flow.pack(config.scale_factor * (mean - config.shift_factor), self.config.patch)

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of tokens of an image."""
        side = self.config.pixels_per_token
        return height // side, width // side

    def encode_text(
        self, params: Params, tokens: Mapping[str, Int[Array, "b _"]]
    ) -> tuple[Float[Array, "b t context"], Float[Array, "b vec"] | None]:
        """Return text features and pooled vectors of stacked results of the text config's `tokenize`."""
        return self.module(params, "text")(**tokens)

    def style_features(self, params: Params, images: UInt8[Array, "b n hs ws 3"]) -> Float[Array, "b n 3 s c"]:
        """Compute the SigLIP features that the projector reads, of images at the tower's size."""
        b, n = images.shape[:2]
        pixels = to_float(images).reshape(b * n, *images.shape[2:])
        states = self.module(params, "siglip")(pixels, hidden_states=self.config.transformer.projector.layers)
        return states.hidden_states.reshape(b, n, *states.hidden_states.shape[1:])

    def reference_ids(
        self, target: tuple[int, int], references: Sequence[tuple[int, int]], offset: flow.OffsetMode | None = None
    ) -> Float[Array, "1 r axes"]:
        """Return the ids of content references that follow each other; sizes are (rows, columns) of tokens."""
        offset = offset or self.config.reference_offset
        return jnp.concatenate(self.family.reference_ids(target, references, offset))[None]

    def position_ids(self, rows: int, columns: int) -> Float[Array, "1 l axes"]:
        """Return the ids of the target's tokens."""
        return self.family.position_ids(rows, columns)[None]

    def inputs(
        self, params: Params, batch: Batch, *, content: bool, style: bool, isolated: flow.Isolated = "none"
    ) -> Inputs:
        """Encode a batch's text and, if asked for, its content and style images, each image once."""
        if "txt" in batch:
            txt, y = batch["txt"], batch.get("vec")
        else:
            txt, y = self.encode_text(params, {name: batch[name] for name in self.null_tokens})
        grid = self.token_grid(*self.target_size(batch))
        inputs = Inputs(txt, y, self.position_ids(*grid), isolated=isolated)
        references = []  # (tokens, rows and columns, which samples have them)
        if content:
            size = self.token_grid(*self._size(batch, "content"))
            references.append((self.latent_tokens(params, batch, "content"), size, batch["content_valid"]))
        if style and self.config.style_encoder == "autoencoder":
            name = "style" if "style" in batch else "style_moments"
            for images, valid in zip(batch[name].swapaxes(0, 1), batch["style_valid"].T, strict=True):
                one = {name: images}
                size = self.token_grid(*self._size(one, "style"))
                references.append((self.latent_tokens(params, one, "style"), size, valid))
        elif style and self.config.transformer.projector is not None:
            known = batch.get("style_features")
            inputs.features = self.style_features(params, batch["style"]) if known is None else known
            inputs.style_valid = batch["style_valid"]
        if references:
            tokens, sizes, valid = zip(*references, strict=True)
            counts = [x.shape[1] for x in tokens]
            valid = [jnp.repeat(has[:, None], count, axis=1) for has, count in zip(valid, counts, strict=True)]
            inputs.ref_img, inputs.ref_valid = jnp.concatenate(tokens, axis=1), jnp.concatenate(valid, axis=1)
            inputs.ref_ids = self.reference_ids(grid, sizes)
        return inputs

    def style_tokens(self, params: Params, inputs: Inputs) -> Float[Array, "b s width"] | None:
        """Project the inputs' style features; None if there are none."""
        if inputs.features is None:
            return None
        return self.module(params, "transformer").feature_embedder(inputs.features)

    def prepare(
        self,
        params: Params,
        inputs: Inputs,
        guidance: float | Float[Array, " b"],
        style: Float[Array, "b s width"] | None = None,
    ) -> tuple[Inputs, Float[Array, "b s width"] | None]:
        """Return inputs and style tokens for many steps: what no step changes is computed here.

        Isolated references become keys and values; style tokens are projected unless they are passed in.
        """
        style = self.style_tokens(params, inputs) if style is None else style
        if inputs.isolated == "none" or inputs.kept is not None:
            return inputs, style
        conditions = self._reference_conditions(inputs)
        if inputs.isolated == "all":
            conditions |= self._style_conditions(inputs, style)
        if not conditions:
            return inputs, style
        conditions["regions"] = inputs.regions
        kept = self.module(params, "transformer").keep(inputs.y, self._scale(guidance, len(inputs.txt)), **conditions)
        inputs = replace(inputs, kept=kept, **dict.fromkeys(_OF_REFERENCES))
        if inputs.isolated == "all":
            inputs, style = replace(inputs, features=None, **dict.fromkeys(_OF_STYLES)), None
        return inputs, style

    def velocity(
        self,
        params: Params,
        inputs: Inputs,
        x_t: Float[Array, "b l d"],
        t: Float[Array, " b"],
        guidance: float | Float[Array, " b"],
        style: Float[Array, "b s width"] | None = None,
    ) -> Float[Array, "b l d"]:
        """Predict the velocity under the inputs' conditions.

        Args:
          guidance: embedded, distilled scale, or the scale of classifier-free guidance if the inputs have a negative
            text.
          style: style tokens, if `prepare` has returned them; otherwise they are projected here.
        """
        return self._velocity(params, inputs, x_t, t, guidance, style)[0]

    def cached_velocity(
        self,
        params: Params,
        inputs: Inputs,
        x_t: Float[Array, "b l d"],
        t: Float[Array, " b"],
        guidance: float | Float[Array, " b"],
        style: Float[Array, "b s width"] | None,
        caches: Caches,
    ) -> tuple[Float[Array, "b l d"], Caches]:
        """Predict the velocity as `velocity` does, by the caches of the step before; return those of the next one too.

        Without a negative text, its cache stays as it is.
        """
        return self._velocity(params, inputs, x_t, t, guidance, style, caches)

    def empty_caches(self, threshold: Float[Array, " b"], num_tokens: int, guided: bool) -> Caches:
        """Return the caches before the first step; `guided`: a step has a pass with the negative text."""
        c = self.config.transformer
        cache = StepCache.empty(threshold, num_tokens, c.hidden_size, jnp.dtype(c.dtype))
        return cache, cache if guided else None

    def _velocity(self, params, inputs, x_t, t, guidance, style, caches=None):
        inputs, style = self.prepare(params, inputs, guidance, style)
        conditions = self._reference_conditions(inputs) | self._style_conditions(inputs, style)
        conditions |= {"kept": inputs.kept, "regions": inputs.regions}
        model, embedded = self.module(params, "transformer"), self._scale(guidance, len(t))

        def predict(txt, y, cache):
            arguments = (x_t, inputs.img_ids, txt, t, y, embedded)
            if cache is None:
                return model(*arguments, **conditions), None
            return model(*arguments, **conditions, cache=cache)

        first, second = caches or (None, None)
        velocity, first = predict(inputs.txt, inputs.y, first)
        if inputs.negative_txt is not None:
            scale = guidance if inputs.negative_scale is None else inputs.negative_scale
            scale = jnp.broadcast_to(scale, t.shape).astype(t.dtype)
            negative, second = predict(inputs.negative_txt, inputs.negative_y, second)
            velocity = flow.guide(velocity, negative, scale)
        return velocity, caches and (first, second)

    def _scale(self, guidance: float | Array, batch_size: int) -> Float[Array, " b"] | None:
        """Return the scale that the transformer embeds; None if it embeds none."""
        if not self.config.transformer.guidance_embed:
            return None
        return jnp.broadcast_to(guidance, (batch_size,)).astype(jnp.float32)

    def _reference_conditions(self, inputs: Inputs) -> dict[str, Array | None]:
        if inputs.ref_img is None:
            return {}
        return {name: getattr(inputs, name) for name in _OF_REFERENCES}

    def _style_conditions(self, inputs: Inputs, style: Array | None) -> dict[str, Array]:
        if style is None:
            return {}
        of_images = {name: getattr(inputs, name) for name in _OF_STYLES}
        of_tokens = {
            name: jnp.repeat(value, style.shape[1] // value.shape[1], axis=1)
            for name, value in of_images.items()
            if value is not None
        }
        return {"style": style} | of_tokens

    def guided(self, params: Params, inputs: Inputs, guidance: float) -> Inputs:
        """Add the empty negative prompt if the base model is guided by it at this scale."""
        if not self.classifier_free or guidance == 1:
            return inputs
        encode = lambda: self.encode_text(params, {n: jnp.asarray(ids)[None] for n, ids in self.null_tokens.items()})
        null = self.null_text or encode()
        alike = lambda one, like: None if like is None else jnp.broadcast_to(one, like.shape).astype(like.dtype)
        return replace(inputs, negative_txt=alike(null[0], inputs.txt), negative_y=alike(null[1], inputs.y))

    @property
    def classifier_free(self) -> bool:
        """Whether the guidance scale weighs a pass with the negative prompt; otherwise it is embedded."""
        return self.family.classifier_free and not self.config.transformer.guidance_embed

    def generate(
        self,
        params: Params,
        inputs: Inputs,
        rng: jax.Array,
        *,
        height: int,
        width: int,
        num_steps: int,
        guidance: float,
        shift: flow.Shift,
    ) -> UInt8[Array, "b h w 3"]:
        """Sample images of `height` x `width` pixels by Euler steps from noise drawn from `rng`.

        `guidance` is the embedded scale or, with the empty prompt, that of classifier-free guidance.
        """
        sizes = dict(height=height, width=width)
        tokens = self.generate_tokens(params, inputs, rng, **sizes, num_steps=num_steps, guidance=guidance, shift=shift)
        return self.decode_tokens(params, tokens, **sizes)

    def generate_tokens(
        self,
        params: Params,
        inputs: Inputs,
        rng: jax.Array,
        *,
        height: int,
        width: int,
        num_steps: int,
        guidance: float,
        shift: flow.Shift,
    ) -> Float[Array, "b l d"]:
        """Sample the packed latents that `generate` decodes."""
        rows, columns = self.token_grid(height, width)
        shape = (inputs.txt.shape[0], rows * columns, self.config.transformer.in_channels)
        times = jnp.asarray(self.schedule(num_steps, height, width, shift), jnp.float32)
        inputs, style = self.prepare(params, self.guided(params, inputs, guidance), guidance)
        return flow.integrate(
            lambda x, t: self.velocity(params, inputs, x, t, guidance, style), jax.random.normal(rng, shape), times
        )

    def schedule(self, num_steps: int, height: int, width: int, shift: flow.Shift):
        """Return the `num_steps + 1` sampling times for an image of `height` x `width` pixels."""
        return self.family.schedule(num_steps, *self.token_grid(height, width), shift)
