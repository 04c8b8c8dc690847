# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The compiled programs of inference and the loop over sampling steps.

A program depends on shapes only. Parameters, text, latents, references, seeds, times, guidance and strengths are its
arguments. A step is therefore compiled once per (target size, content sizes, number of styles, batch size, with or
without strengths, masks of styles, absent references, negative prompt, isolated references, step cache and solver). The
loop runs on the host and passes each step its two times, so the number of steps is free.

Shapes: b batch, l target tokens, d token channels, n styles, r content tokens.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int, UInt8

from uso_jax import flow
from uso_jax.common.errors import InputError
from uso_jax.inference import latents
from uso_jax.inference.conditions import Conditions
from uso_jax.inference.latents import Latents
from uso_jax.inference.tiling import Tiling
from uso_jax.models import tiled_decoding
from uso_jax.models.layers.regions import Regions
from uso_jax.models.uso import USO, Inputs, to_bytes, to_float
from uso_jax.parallel import sharding
from uso_jax.params import Params

HOST = "pinned_host"  # memory kind of offloaded parameters
Progress = Callable[[str, int, int], Any]  # name of the phase, steps done, total steps


class Sampler:
    """A USO with its parameters on a mesh.

    Offloaded parameters are on the devices only while their component runs, one component at a time: text encoders,
    SigLIP, transformer and autoencoder follow each other.

    Args:
      params: arrays, or shapes and dtypes if programs are only lowered.
      tile: images with a longer side (pixels) are decoded in tiles of this size, and encoded where they are edited or
        enlarged. None: whole.
    """

    def __init__(self, system: USO, params: Mapping[str, Any], mesh: Mesh, tile: int | None = None):
        self.system, self.mesh, self.tile = system, mesh, tile
        self._parts = {
            name: {path: value for path, value in params.items() if path.startswith(f"{name}/")}
            for name in system.structures
        }
        self._lent: tuple[str, Params] | None = None  # the offloaded component that is on the devices now
        self._replicated, self._batch = sharding.replicated(mesh), NamedSharding(mesh, sharding.BATCH)
        jit = lambda function, **options: jax.jit(function, out_shardings=self._batch, **options)
        self.programs = {  # jitted; uso_jax.planning.programs lowers them for devices of other machines
            "features": jax.jit(system.style_features),
            "encode": jax.jit(self._encode, static_argnums=2),
            "text": jit(system.encode_text),
            "style": jit(lambda params, features: system.module(params, "transformer").feature_embedder(features)),
            "prepare": jax.jit(self._prepare, static_argnums=4),
            "noise": jit(self._draw, static_argnums=1),
            "caches": jit(system.empty_caches, static_argnums=(1, 2)),
            "step": jit(self._advance),
            "decode": jit(self._image, static_argnums=(2, 3, 4)),
            # Of one image that is drawn in tiles: it is not a batch that could be split.
            "whole noise": jax.jit(self._draw, static_argnums=1, out_shardings=self._replicated),
            "whole decode": jax.jit(self._image, static_argnums=(2, 3, 4), out_shardings=self._replicated),
        }
        self.steps: dict[Any, Any] = {}  # compiled programs of one step, keyed by argument shapes

    @property
    def data_shards(self) -> int:
        """Number of shards of a batch; its size must be a multiple of this."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    @property
    def params(self) -> Params:
        """All parameters by path."""
        return {path: value for part in self._parts.values() for path, value in part.items()}

    def drop(self, paths: Collection[str]) -> None:
        """Free parameters, before others take their place."""
        self._lent = None
        for name, part in self._parts.items():
            self._parts[name] = {path: value for path, value in part.items() if path not in paths}

    def add(self, params: Params) -> None:
        """Add parameters in place of those that were dropped. Compiled programs stay."""
        self._lent = None
        for path, value in params.items():
            self._parts[path.partition("/")[0]][path] = value

    def features(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "3 s c"]:
        """Return the SigLIP features of a style image."""
        with jax.set_mesh(self.mesh):
            return np.asarray(self.programs["features"](self._part("siglip"), image[None, None])[0, 0], np.float32)

    def latents(self, image: UInt8[np.ndarray, "h w 3"], tiled: bool = False) -> Float[np.ndarray, "r d"]:
        """Return the packed latents of an image, by the posterior mean; `tiled`: larger ones than `tile` in tiles."""
        with jax.set_mesh(self.mesh):
            tile = self.tile if tiled and self.tile is not None and max(image.shape[:2]) > self.tile else None
            return np.asarray(self.programs["encode"](self._part("autoencoder"), image[None], tile)[0], np.float32)

    def _part(self, name: str) -> Params:
        """Return a component's parameters on the devices, after freeing those of the component before it."""
        if not (part := self._parts[name]):
            raise InputError(f"the {name} was not loaded; add it to `only`, or drop that argument")
        on_host = {path: value.sharding for path, value in part.items() if value.sharding.memory_kind == HOST}
        if not on_host:
            return part
        if self._lent is None or self._lent[0] != name:
            self._lent = None
            shardings = {path: sharding.with_memory_kind("device") for path, sharding in on_host.items()}
            self._lent = name, part | jax.device_put({path: part[path] for path in shardings}, shardings)
        return self._lent[1]

    def run(
        self, conditions: Conditions, progress: Progress, tiling: Tiling | None = None
    ) -> tuple[UInt8[np.ndarray, "b h w 3"], Int[np.ndarray, " b"]]:
        """Generate a batch of images, or with a tiling one image whose tiles are the batch.

        With a tiling, `conditions` has the tiles' size, one seed and one start of the whole image, no cache, and the
        solver is Euler's.

        Returns:
          the images, and how many passes of each reused what the pass before had computed.
        """
        c = conditions
        num_steps = c.times.shape[1] - 1
        with jax.set_mesh(self.mesh):
            progress("Encoding text", 0, num_steps)
            x, reused = self._sampled(c, self._inputs(c), tiling, progress)
            progress("Decoding", num_steps, num_steps)
            decode, size = ("decode", (c.height, c.width)) if tiling is None else ("whole decode", c.whole)
            images = np.asarray(self.programs[decode](self._part("autoencoder"), x, *size, c.round_down))
            return images, reused

    def _sampled(
        self, c: Conditions, inputs: dict[str, Any], tiling: Tiling | None, progress: Progress
    ) -> tuple[Float[Array, "b l d"], Int[np.ndarray, " b"]]:
        """Return the latents of the images and their reused passes; the transformer may be freed afterwards."""
        params, num_steps = self._part("transformer"), c.times.shape[1] - 1
        style = None if c.features is None else self.programs["style"](params, self._place(c.features))
        times, guidance = [self._place(t) for t in c.times.T], self._place(c.guidance)
        if c.isolated != "none":
            inputs, style = self.programs["prepare"](params, inputs, style, guidance, c.isolated)
        if tiling is None:
            rows, columns = self.system.token_grid(c.height, c.width)
            state, own_times = self._latents(c, "noise", rows * columns, self._place), times
        else:
            replicate = functools.partial(jax.device_put, device=self._replicated)
            state = self._latents(c, "whole noise", tiling.num_tokens, replicate)
            own_times = [replicate(t[:1]) for t in c.times.T]
        x = state.begin(own_times[0])
        plain = inputs | dict.fromkeys(("negative_txt", "negative_y", "negative_scale"))
        passes = [inputs if c.is_guided(number) else plain for number in range(num_steps)]
        like = x if tiling is None else self._place(tiling.cut(x)[: len(c.guidance)])
        caches = None
        if c.step_cache is not None:
            caches = self.programs["caches"](self._place(c.step_cache), like.shape[1], c.negative is not None)
        earlier = None
        if c.solver == "adams":
            never = np.full(len(like), np.inf, np.float32)
            earlier = self._place(np.zeros(like.shape, np.float32)), self._place(never)
        state_of_step = (times[0], times[1], guidance, caches, earlier)
        compiled = {
            id(one): self._step((params, one, style, like, *state_of_step), num_steps, progress)
            for one in {id(one): one for one in passes}.values()
        }
        regions = self._regions(c)

        def advance(x: Array, number: int, part: int = 0) -> Array:
            nonlocal caches, earlier
            step, one = compiled[id(passes[number])], passes[number] | {"regions": regions and regions[part]}
            now = (times[number], times[number + 1], guidance, caches, earlier)
            x, caches, earlier = step(params, one, style, x, *now)
            return x

        progress("Sampling", 0, num_steps)
        for number in range(num_steps):
            if tiling is None:
                x = advance(x, number)
            else:
                step = functools.partial(advance, number=number)
                x = replicate(self._by_tiles(step, x, tiling, len(c.guidance)))
            x = state.keep(x, own_times[number + 1]).block_until_ready()  # so that progress counts finished steps
            progress("Sampling", number + 1, num_steps)
        reused = sum(np.asarray(cache.reused) for cache in caches or () if cache is not None)
        return x, np.broadcast_to(reused, len(x))

    def _by_tiles(self, advance: Callable[..., Array], x: Array, tiling: Tiling, at_once: int) -> Array:
        """Advance the tiles of an image, some at a time, and blend them."""
        tiles = tiling.cut(x)
        parts = (self._place(tiles[i : i + at_once]) for i in range(0, len(tiles), at_once))
        return tiling.join(jnp.concatenate([advance(one, part=number) for number, one in enumerate(parts)]))

    def _regions(self, c: Conditions) -> list[Regions] | None:
        """Return the regions of the batch, or of the tiles that run together."""
        if c.regions is None:
            return None
        size, (target, others) = len(c.guidance), c.regions
        parts = (target[i : i + size] for i in range(0, len(target), size))
        return [jax.tree.map(self._place, Regions(part, others)) for part in parts]

    def _place(self, x: np.ndarray | Array | None) -> Array | None:
        """Put the arrays of a batch on the devices."""
        return None if x is None else jax.device_put(x, self._batch)

    def _inputs(self, c: Conditions) -> dict[str, Any]:
        """Encode texts. Return the transformer's inputs by name: the type-checked dataclass refuses shapes."""
        place, replicate = self._place, lambda x: None if x is None else jax.device_put(x, self._replicated)
        encode = lambda tokens: self.programs["text"](self._part("text"), jax.tree.map(place, tokens))
        txt, y = jax.block_until_ready(encode(c.tokens))
        negative = (None, None) if c.negative is None else jax.block_until_ready(encode(c.negative))
        regions = self._regions(c)
        inputs = Inputs(
            txt,
            y,
            replicate(self.system.position_ids(*self.system.token_grid(c.height, c.width))),
            style_valid=place(c.style_valid),
            style_bias=place(c.style_bias),
            ref_img=place(c.ref_img),
            ref_ids=replicate(c.ref_ids),
            ref_valid=place(c.ref_valid),
            ref_bias=place(c.ref_bias),
            style_owner=place(c.style_owner),
            ref_owner=place(c.ref_owner),
            regions=regions and regions[0],
            negative_txt=negative[0],
            negative_y=negative[1],
            negative_scale=place(c.negative_scale),
        )
        return {name: getattr(inputs, name) for name in Inputs.arrays()}

    def _latents(self, c: Conditions, program: str, num_tokens: int, place: Callable) -> Latents:
        noise = self.programs[program](place(c.seeds), num_tokens)
        if c.variation is not None:
            other = self.programs[program](place(c.variation_seeds), num_tokens)
            noise = latents.vary(noise, other, place(c.variation))
        return Latents(noise, *(None if one is None else place(one) for one in (c.start, c.drawn)))

    def _image(
        self, params: Params, tokens: Float[Array, "b l d"], height: int, width: int, round_down: bool = False
    ) -> UInt8[Array, "b h w 3"]:
        if self.tile is None:
            return self.system.decode_tokens(params, tokens, height, width, round_down)
        latent = flow.unpack(tokens, *self.system.token_grid(height, width), self.system.config.patch)
        decode, codec = self.system.module(params, "autoencoder").decode, self.system.config.autoencoder
        return to_bytes(
            tiled_decoding.decode_tiled(decode, latent, self.tile // codec.downscale, codec.cell), round_down
        )

    def _encode(
        self, params: Params, images: UInt8[Array, "b h w 3"], tile: int | None = None
    ) -> Float[Array, "b l d"]:
        if tile is None:
            return self.system.encode_images(params, images)
        encode, codec = self.system.module(params, "autoencoder").encode, self.system.config.autoencoder
        latents = tiled_decoding.encode_tiled(encode, to_float(images), tile, codec.downscale * codec.cell)
        return flow.pack(latents, self.system.config.patch)

    def _draw(self, seeds: jax.Array, num_tokens: int) -> jax.Array:
        """Draw each image's noise from its seed alone, so that it depends neither on the batch nor on the mesh."""
        shape = (num_tokens, self.system.config.transformer.in_channels)
        # The halves of a seed of 64 bits are the key; JAX's own key of a smaller seed is the same.
        draw = lambda halves: jax.random.normal(jax.random.wrap_key_data(halves, impl="threefry2x32"), shape)
        return jax.vmap(draw)(seeds)

    def _step(self, arguments: tuple, num_steps: int, progress: Progress) -> Callable[..., Array]:
        """Return the compiled step for arguments of these shapes."""
        leaves, structure = jax.tree.flatten(arguments[1:])
        key = structure, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
        if key not in self.steps:
            progress("Compiling (first image of this size)", 0, num_steps)
            self.steps[key] = self.programs["step"].lower(*arguments).compile()
        return self.steps[key]

    def _prepare(self, params, inputs, style, guidance, isolated):
        inputs, style = self.system.prepare(params, Inputs(**inputs, isolated=isolated), guidance, style)
        return {name: getattr(inputs, name) for name in Inputs.arrays()}, style

    def _advance(self, params, inputs, style, x, t, s, guidance, caches=None, earlier=None):
        """Take a step; `earlier` has the velocity and the time of the step before, where the solver needs them."""
        arguments = (params, Inputs(**inputs), x, t, guidance, style)
        if caches is None:
            velocity = self.system.velocity(*arguments)
        else:
            velocity, caches = self.system.cached_velocity(*arguments, caches)
        if earlier is None:
            return flow.euler_step(x, velocity, t, s), caches, None
        return flow.adams_step(x, velocity, *earlier, t, s), caches, (velocity, t)
