# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Networks that embed images and prompts for metrics, loaded on demand from a weights directory.

Embeddings are named "clip", "dino", "dinov2", "csd_style", "csd_content" and "siglip". All have length 1, so dot
products are cosines. Images are preprocessed on the host, as in each metric's original code, and embedded in batches
sharded over all local devices.
Shapes: n images or prompts, d channels.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from uso_jax import mini, weights
from uso_jax.common.errors import InputError
from uso_jax.evaluation.gallery import file_digest, pixels
from uso_jax.images import preprocess
from uso_jax.images.preprocess import Preprocess
from uso_jax.models.clip import unit
from uso_jax.models.components import COMPONENTS
from uso_jax.models.csd import Csd
from uso_jax.models.text import token_ids
from uso_jax.parallel import sharding
from uso_jax.params import ModelDef
from uso_jax.weights import manifest_configs
from uso_jax.weights.pretrained import Defaults, fingerprint

Vectors = Float[np.ndarray, "n d"]
_KEPT = 50_000  # cached image embeddings, so that references are embedded once


@dataclass(frozen=True)
class Network:
    """How a component embeds images.

    Attributes:
      sees: (config) -> preprocessing of an image.
      look: (module, pixels) -> embeddings by name.
    """

    sees: Callable[[Any], Preprocess]
    look: Callable[[Any, Any], Mapping[str, jax.Array]]


def _dino_sees(seen: Preprocess) -> Callable[[Any], Preprocess]:
    # 224 of 256 pixels, although DINOv2's position embedding is larger: the metric is defined so.
    return lambda config: seen.resized(min(config.image_size, seen.size))


def _csd(module: Csd, x: jax.Array) -> dict[str, jax.Array]:
    out = module(x)
    return {"csd_style": out.style, "csd_content": out.content}


_INCEPTION = Preprocess(299, None, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NETWORKS: Mapping[str, Network] = {
    "clip_model": Network(
        lambda c: preprocess.CLIP.resized(c.vision.image_size), lambda m, x: {"clip": m.embed_images(x)}
    ),
    "dino": Network(_dino_sees(preprocess.DINO), lambda m, x: {"dino": unit(m(x).pooler_output)}),
    "dinov2": Network(_dino_sees(preprocess.DINOV2), lambda m, x: {"dinov2": unit(m(x).pooler_output)}),
    "csd": Network(lambda c: preprocess.CSD.resized(c.image_size), _csd),
    "siglip": Network(
        lambda c: preprocess.SIGLIP.resized(c.image_size),
        lambda m, x: {"siglip": unit(m(x).pooler_output)},
    ),
    "image_reward": Network(lambda c: preprocess.IMAGE_REWARD.resized(c.vision.image_size), lambda m, x: {}),
    "inception": Network(lambda c: _INCEPTION, lambda m, x: {}),
}
COMPONENT = {
    "clip": "clip_model", "dino": "dino", "dinov2": "dinov2", "csd_style": "csd", "csd_content": "csd",
    "siglip": "siglip",
}  # fmt: skip
TEXT_COMPONENT = {"clip": "clip_model", "siglip": "siglip_text"}


class Networks:
    """Embeds images and prompts with the networks of a weights directory, or of "mini"."""

    def __init__(self, directory: str, *, batch_size: int = 32, num_threads: int = 4):
        self.directory, self.batch_size = mini.directory(directory), batch_size
        self.components = weights.components(self.directory)
        self.mesh = sharding.make_mesh({"data": -1}, jax.local_devices())
        self._threads = ThreadPoolExecutor(num_threads)
        self._kept: dict[tuple[str, str], Mapping[str, np.ndarray]] = {}
        self._programs: dict[tuple[str, str], Callable] = {}

    def identity_of(self, component: str) -> dict[str, Any]:
        """Return a component's fingerprint and preprocessing, for metrics that call `run` themselves."""
        self._check({component})
        prints = {component: self._fingerprint(component)}
        return {"networks": prints, "preprocess": preprocess_id(self.sees(component))}

    def tokenizer(self, component: str, otherwise: str) -> str:
        """Return the component's tokenizer in the weights directory, or `otherwise` if there is none."""
        folder = weights.tokenizer(self.directory, component)
        return str(folder) if folder.is_dir() else otherwise

    def identity(self, vector: str, *, text: bool = False) -> dict[str, Any]:
        """Return the network fingerprints and the preprocessing that determine an embedding."""
        names = {COMPONENT[vector]} | ({TEXT_COMPONENT[vector]} if text else set())
        self._check(names)
        prints = {name: self._fingerprint(name) for name in sorted(names)}
        return {"networks": prints, "preprocess": preprocess_id(self.sees(COMPONENT[vector]))}

    def sees(self, component: str) -> Preprocess:
        """Return the preprocessing of a component's images."""
        return NETWORKS[component].sees(self._config(component))

    def images(self, vector: str, paths: Sequence[str]) -> Vectors:
        """Return the embeddings of image files; results are cached by file content.

        Raises:
          InputError: the directory lacks the network, or a file is not an image.
        """
        component = COMPONENT[vector]
        self._check({component})
        name = lambda path: (component, file_digest(path))
        new = {name(path): path for path in paths if name(path) not in self._kept}
        prepare = lambda path: self.sees(component).host(pixels(path))
        while self._kept and len(self._kept) + len(new) > _KEPT:
            del self._kept[next(iter(self._kept))]
        new = {name(path): path for path in paths if name(path) not in self._kept}
        for batch in _chunks(list(new.items()), self.batch_size):
            prepared = np.stack(list(self._threads.map(prepare, [path for _, path in batch])))
            vectors = self.run(component, "images", NETWORKS[component].look, prepared)
            for number, (key, _) in enumerate(batch):
                self._kept[key] = {part: values[number] for part, values in vectors.items()}
        return np.stack([self._kept[name(path)][vector] for path in paths])

    def texts(self, vector: str, prompts: Sequence[str]) -> Vectors:
        """Return the embeddings of prompts; long prompts are truncated.

        Raises:
          InputError: the directory lacks the network.
        """
        component = TEXT_COMPONENT[vector]
        self._check({component})
        defaults, config = Defaults.read(self.directory), self._config(component)
        if component == "clip_model":
            tokenizer, length = defaults.clip_tokenizer, config.text.max_position_embeddings
            look = lambda m, x: {vector: m.embed_texts(x)}
        else:
            tokenizer, length = defaults.t5_tokenizer, defaults.t5_length
            look = lambda m, x: {vector: unit(m(x))}
        ids = np.stack([token_ids(tokenizer, prompt, length) for prompt in prompts])
        parts = [self.run(component, "texts", look, part)[vector] for part in _chunks(ids, self.batch_size)]
        return np.concatenate(parts)

    def run(
        self, component: str, what: str, look: Callable, batch: np.ndarray | Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Apply a component to one batch, padded to the batch size and sharded over the devices.

        Args:
          component: name of the component.
          what: key under which the compiled program is cached.
          look: (module, batch) -> results by name; must be the same function for the same `what`.
          batch: array or arrays with a leading batch axis.

        Raises:
          InputError: the directory lacks the network.
        """
        self._check({component})
        devices = self.mesh.size
        rows = -(-max(self.batch_size, devices) // devices) * devices
        named = {"": batch} if isinstance(batch, np.ndarray) else batch
        count = len(next(iter(named.values())))
        fill = lambda x: np.concatenate([x, np.repeat(x[-1:], rows - count, axis=0)])
        placed = sharding.global_batch(self.mesh, {name: fill(x) for name, x in named.items()})
        placed = placed[""] if isinstance(batch, np.ndarray) else placed
        program = self._program(component, what, look)
        return {name: np.asarray(value)[:count] for name, value in program(self._params(component), placed).items()}

    def module(self, component: str) -> tuple[ModelDef, Any]:
        """Return a component's definition and config."""
        self._check({component})
        return self._structure(component), self._config(component)

    def _check(self, names: set[str]) -> None:
        if missing := sorted(names - set(self.components)):
            release = COMPONENTS[missing[0]].release or missing[0]
            raise InputError(
                f"{self.directory} has no {', '.join(missing)}, only {', '.join(self.components) or 'nothing'}; import"
                f" it (uso-convert download {release} shows how), or omit its metrics with --metrics"
            )

    @functools.cache  # noqa: B019 (one object a command)
    def _fingerprint(self, component: str) -> str:
        return fingerprint(self.directory / component)

    @functools.cache  # noqa: B019
    def _config(self, component: str) -> Any:
        found = weights.manifest(self.directory, component)["config"]
        return manifest_configs.build(component, found, dtype="float32", remat="none")

    @functools.cache  # noqa: B019
    def _structure(self, component: str) -> ModelDef:
        return ModelDef(lambda rngs: COMPONENTS[component].module(self._config(component), rngs=rngs))

    @functools.cache  # noqa: B019
    def _params(self, component: str) -> dict[str, jax.Array]:
        place = sharding.replicated(self.mesh)
        structs = {
            path: jax.ShapeDtypeStruct(struct.shape, struct.dtype, sharding=place)
            for path, struct in self._structure(component).shapes.items()
        }
        return weights.load(self.directory, component, structs)

    def _program(self, component: str, what: str, look: Callable) -> Callable:
        if (component, what) not in self._programs:
            structure = self._structure(component)
            out = sharding.replicated(self.mesh)
            self._programs[component, what] = jax.jit(lambda p, x: look(structure(p), x), out_shardings=out)
        return self._programs[component, what]


def preprocess_id(seen: Preprocess) -> str:
    """Return a text that identifies a preprocessing."""
    centre = "centre by torchvision" if seen.rounded else "centre"
    resize = "squash" if seen.short_side is None else f"short side {seen.short_side}, {centre}"
    numbers = hashlib.sha256(repr((seen.mean, seen.std)).encode()).hexdigest()[:6]
    return f"PIL bicubic, {resize} {seen.size}, normalised {numbers}"


def _chunks(values: Any, size: int) -> list:
    return [values[start : start + size] for start in range(0, len(values), size)]
