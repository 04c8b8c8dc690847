# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What FLUX.1 and FLUX.2 have in common: from groups of tokens to a velocity, with USO's conditions.

Sequence: [style | txt | img | ref_img]. Style tokens have the ids zero; references follow the target.

References are plain or isolated. Plain ones are part of the sequence in every step. Isolated ones (FLUX.2 [klein]'s
key-value pipeline: diffusers, pipeline_flux2_klein_kv.py) are modulated at t = 0 and attend to each other only, so they
do not depend on the step: `keep` returns their keys and values of every block, and each step attends to them. Style
tokens can be among them.

Shapes: b batch, l tokens, i t r s image, text, reference and style tokens, d hidden_size, n heads, k head width,
a rotary axes, c latent channels of a token.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from uso_jax.models.attention.dispatch import PairBias
from uso_jax.models.layers import scan
from uso_jax.models.layers.embeddings import rotary_embedding
from uso_jax.models.layers.joint_blocks import Condition, Joint, KeysValues
from uso_jax.models.layers.regions import Regions
from uso_jax.models.layers.token_groups import TokenGroup, join_groups
from uso_jax.models.step_cache import StepCache
from uso_jax.parallel.constraints import sequence_shards


class Kept(NamedTuple):
    """The keys and values of isolated references, from `JointTransformer.keep`.

    Attributes:
      double, single: of every block, [layers, b, r, n, k].
      valid: [b, r], False masks a token; None: all valid.
      bias: [b, r], added to the attention logits of a token; None: zeros.
      owner: [b, r], the style that a token belongs to; None: to none.
    """

    double: KeysValues
    single: KeysValues
    valid: Array | None = None
    bias: Array | None = None
    owner: Array | None = None

    def group(self) -> TokenGroup:
        """Return the tokens as keys of a step."""
        return TokenGroup(self.double.keys[0], None, self.valid, self.bias, self.owner)


class JointTransformer(nnx.Module):
    """A transformer of double-stream, then single-stream blocks.

    A subclass builds `img_in`, `txt_in`, `double_blocks`, `single_blocks`, `final_layer` and, if its config has a
    projector, `feature_embedder`.
    """

    def vector(
        self, timesteps: Float[Array, " b"], y: Float[Array, "b vec"] | None, guidance: Float[Array, " b"] | None
    ) -> Float[Array, "b d"]:
        """Return the conditioning vector."""
        raise NotImplementedError

    def conditions(self, vec: Float[Array, "b d"]) -> tuple[Condition, Condition]:
        """Return what modulates the double and the single blocks."""
        return vec, vec

    def text_ids(self, length: int) -> Float[Array, "1 t a"] | None:
        """Return the position ids of text tokens; None: zeros."""

    def __call__(
        self,
        img: Float[Array, "b l c"],
        img_ids: Float[Array, "_ l a"],
        txt: Float[Array, "b t context"],
        timesteps: Float[Array, " b"],
        y: Float[Array, "b vec"] | None = None,
        guidance: Float[Array, " b"] | None = None,
        *,
        style: Float[Array, "b s d"] | None = None,
        style_valid: Bool[Array, "b s"] | None = None,
        ref_img: Float[Array, "b r c"] | None = None,
        ref_ids: Float[Array, "_ r a"] | None = None,
        ref_valid: Bool[Array, "b r"] | None = None,
        style_bias: Float[Array, "b s"] | None = None,
        ref_bias: Float[Array, "b r"] | None = None,
        style_owner: Int[Array, "b s"] | None = None,
        ref_owner: Int[Array, "b r"] | None = None,
        regions: Regions | None = None,
        kept: Kept | None = None,
        cache: StepCache | None = None,
    ) -> Float[Array, "b l c"] | tuple[Float[Array, "b l c"], StepCache]:
        """Return the float32 velocity of `img` at `timesteps` and, with a cache, the cache of the next step.

        Args:
          img: packed tokens of the noisy target.
          img_ids: position ids; a leading axis of 1 is shared by the batch.
          txt: text features.
          timesteps: times in [0, 1]; 1 is noise.
          y: pooled vector of the text, for models that have one.
          guidance: distilled guidance scale; required exactly if the config has `guidance_embed`.
          style: style tokens from `feature_embedder`, prepended to the text.
          style_valid: False where a sample lacks the token, which is equivalent to omitting it.
          ref_img: packed tokens of all plain references, concatenated.
          ref_ids: position ids of `ref_img`.
          ref_valid: like `style_valid`, for `ref_img`.
          style_bias: added to the attention logits of a style token as a key: the logarithm of its weight.
          ref_bias: like `style_bias`, for `ref_img`.
          style_owner: the style, from 1, whose region decides how much a style token counts; 0: it counts everywhere.
          ref_owner: like `style_owner`, for `ref_img`.
          regions: how much each of these styles counts for each token.
          kept: isolated references.
          cache: of the step before; all blocks but the first may be left out.

        Raises:
          ValueError: `guidance` does not match the config, or only one of `ref_img` and `ref_ids` is passed.
        """
        dtype = jnp.dtype(self.config.dtype)
        vec = self._vector(timesteps, y, guidance)
        text = [TokenGroup(self.txt_in(txt.astype(dtype)), self.text_ids(txt.shape[1]))]
        image = [TokenGroup(self.img_in(img.astype(dtype)), img_ids)]
        if style is not None:
            text.insert(0, TokenGroup(style.astype(dtype), None, style_valid, style_bias, style_owner))
        if (references := self._references(ref_img, ref_ids, ref_valid, ref_bias, ref_owner)) is not None:
            image.append(references)
        _fill(text), _fill(image)
        keys = text + image + ([] if kept is None else [kept.group()])
        start = sum(group.tokens.shape[1] for group in text)
        pairs = None if regions is None else regions.bias(text + image, keys, start)
        joint = self._joint(text + image, join_groups(keys, "valid"), join_groups(keys, "bias"), pairs)
        if cache is None:
            x, _ = self._blocks(vec, text, image, joint, kept)
            x = x[:, start : start + img.shape[1]]
        else:
            x, cache = self._target_by_cache(vec, text, image, joint, kept, cache)
        velocity = self.final_layer(x, vec).astype(jnp.float32)
        return velocity if cache is None else (velocity, cache)

    def keep(
        self,
        y: Float[Array, "b vec"] | None = None,
        guidance: Float[Array, " b"] | None = None,
        *,
        style: Float[Array, "b s d"] | None = None,
        style_valid: Bool[Array, "b s"] | None = None,
        ref_img: Float[Array, "b r c"] | None = None,
        ref_ids: Float[Array, "_ r a"] | None = None,
        ref_valid: Bool[Array, "b r"] | None = None,
        style_bias: Float[Array, "b s"] | None = None,
        ref_bias: Float[Array, "b r"] | None = None,
        style_owner: Int[Array, "b s"] | None = None,
        ref_owner: Int[Array, "b r"] | None = None,
        regions: Regions | None = None,
    ) -> Kept:
        """Return the keys and values of isolated references, style tokens or both; arguments are those of a step.

        Raises:
          ValueError: there is nothing to keep, or arguments do not go together.
        """
        if style is None and ref_img is None:
            raise ValueError("there is nothing to keep: pass ref_img, style or both")
        b, c = len(ref_img if style is None else style), self.config
        nothing = TokenGroup(jnp.zeros((b, 0, c.hidden_size), jnp.dtype(c.dtype)), jnp.zeros((1, 0, len(c.axes_dim))))
        vec = self._vector(jnp.zeros((b,), jnp.float32), y, guidance)
        of_style = (None, style_valid, style_bias, style_owner)
        text = [nothing if style is None else TokenGroup(style.astype(c.dtype), *of_style)]
        image = [self._references(ref_img, ref_ids, ref_valid, ref_bias, ref_owner) or nothing]
        _fill(text), _fill(image)
        valid, bias, owner = (join_groups(text + image, field) for field in ("valid", "bias", "owner"))
        pairs = None if regions is None or owner is None else regions.bias(text + image, text + image)
        # In a sample without references, they attend to all: what no token reads must be finite nevertheless.
        attended = None if valid is None else valid | ~valid.any(axis=1, keepdims=True)
        joint = self._joint(text + image, attended, pairs=pairs)
        _, own = self._blocks(vec, text, image, joint, keep=True)
        return Kept(*own, valid, bias, owner)

    def _vector(self, timesteps: Array, y: Array | None, guidance: Array | None) -> Array:
        c = self.config
        if (guidance is None) == c.guidance_embed:
            raise ValueError(
                f"guidance must {'' if c.guidance_embed else 'not '}be passed: guidance_embed={c.guidance_embed}"
            )
        return self.vector(timesteps, y, guidance)

    def _references(
        self,
        tokens: Array | None,
        ids: Array | None,
        valid: Array | None,
        bias: Array | None,
        owner: Array | None,
    ) -> TokenGroup | None:
        if (tokens is None) != (ids is None):
            raise ValueError("ref_img and ref_ids must be passed together")
        if tokens is None:
            return None
        return TokenGroup(self.img_in(tokens.astype(self.config.dtype)), ids, valid, bias, owner)

    def _joint(
        self,
        groups: list[TokenGroup],
        valid: Array | None,
        bias: Array | None = None,
        pairs: PairBias | None = None,
    ) -> Joint:
        pe = rotary_embedding(join_groups(groups, "ids"), self.config.axes_dim, self.config.theta)
        return Joint.build(self.config, pe, valid, bias, pairs)

    def _blocks(
        self,
        vec: Array,
        text: list[TokenGroup],
        image: list[TokenGroup],
        joint: Joint,
        kept: Kept | None = None,
        keep: bool = False,
    ) -> tuple[Array, Any]:
        """Return the sequence and, with `keep`, the keys and values of both stacks."""
        double, single = self.conditions(vec)
        img, txt = join_groups(image, "tokens"), join_groups(text, "tokens")
        (img, txt), own_double = self._through_double((img, txt), double, joint, kept, keep)
        x, own_single = self._through_single((img, txt), single, joint, kept, keep)
        return x, (own_double, own_single)

    def _target_by_cache(
        self,
        vec: Array,
        text: list[TokenGroup],
        image: list[TokenGroup],
        joint: Joint,
        kept: Kept | None,
        cache: StepCache,
    ) -> tuple[Array, StepCache]:
        """Return the target's tokens after all blocks, by the cache where it serves, and the next step's cache."""
        double, single = self.conditions(vec)
        img, txt = join_groups(image, "tokens"), join_groups(text, "tokens")
        start, length = txt.shape[1], image[0].tokens.shape[1]
        streams, _ = self._through_double((img, txt), double, joint, kept, layers=range(1))
        after_first = streams[0][:, :length]

        def run():
            later = range(1, self.config.depth)
            x, _ = self._through_single(
                self._through_double(streams, double, joint, kept, layers=later)[0], single, joint, kept
            )
            return x[:, start : start + length] - after_first

        rest, cache = cache.advance(after_first - img[:, :length], run)
        return after_first + rest, cache

    def _through_double(
        self,
        streams: tuple[Array, Array],
        condition: Condition,
        joint: Joint,
        kept: Kept | None,
        keep: bool = False,
        layers: range | None = None,
    ) -> tuple[tuple[Array, Array], Any]:
        """Return image and text after the double blocks of `layers`, None: of all."""

        def step(block, streams, kept):
            streams, own = block(*streams, condition, joint, kept)
            return streams, own if keep else None  # a scan would store what nothing reads

        return self._scan(self.double_blocks, step, streams, kept and kept.double, layers=layers)

    def _through_single(
        self, streams: tuple[Array, Array], condition: Condition, joint: Joint, kept: Kept | None, keep: bool = False
    ) -> tuple[Array, Any]:
        """Return the sequence after the single blocks."""

        def step(block, x, kept):
            x, own = block(x, condition, joint, kept)
            return x, own if keep else None

        img, txt = streams
        return self._scan(self.single_blocks, step, jnp.concatenate([txt, img], axis=1), kept and kept.single)

    def _scan(self, *arguments: Any, **options: Any) -> tuple[Any, Any]:
        return scan.scan_layers(*arguments, remat=self.config.remat, constrain=scan.constrain_tokens, **options)


def _fill(stream: list[TokenGroup]) -> None:
    """Pad a stream with masked tokens to a multiple of the mesh's sequence axis."""
    if missing := -sum(group.tokens.shape[1] for group in stream) % sequence_shards():
        b, _, width = stream[0].tokens.shape
        filling = jnp.zeros((b, missing, width), stream[0].tokens.dtype)
        stream.append(TokenGroup(filling, valid=jnp.zeros((b, missing), bool)))
