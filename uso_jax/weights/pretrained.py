# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A weights directory seen as one USO: its networks, its defaults and what identifies it.

Components: transformer, autoencoder, and t5 and clip (FLUX.1) or qwen3 (FLUX.2); lora, projector and siglip where
there are any. What their manifests do not say may stand in DIR/pipeline.json; it only needs the entries that differ
from FLUX.1's and USO's:

    {"t5_length": 512, "t5_tokenizer": "google/t5-v1_1-xxl", "clip_tokenizer": "openai/clip-vit-large-patch14",
     "width": 1024, "height": 1024, "content_ref": 512, "num_steps": 25, "guidance": 4.0, "shift": "upstream"}

A tokenizer is a folder inside DIR, any other folder, a name in the hub's cache, or "mini"; DIR/tokenizer_t5,
DIR/tokenizer_clip and DIR/tokenizer_qwen3, which imports make, need not be named.
"""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from uso_jax import flow, mini, weights
from uso_jax.common import progress, untrusted
from uso_jax.common.errors import InputError
from uso_jax.models.components import by_component, folders, placement_rules
from uso_jax.models.families import FAMILIES, family_of
from uso_jax.models.uso import USO
from uso_jax.models.uso_config import USOConfig
from uso_jax.parallel import sharding
from uso_jax.params import Params
from uso_jax.weights import quantization, safetensors_store
from uso_jax.weights.adapters.adapted import Adapted
from uso_jax.weights.adapters.adapter import Adapter
from uso_jax.weights.manifest_text import ZARR_FORMAT, parse_struct
from uso_jax.weights.missing import missing_components
from uso_jax.weights.placing import place

_SAMPLE = 4096  # bytes that are hashed of a place in a file
FULL_PRECISION = folders(lambda row: row.full_precision)  # as upstream; their results are cast to the run's dtype


@dataclass(frozen=True)
class Defaults:
    """What manifests do not say: tokenizers, and the values a request has when it names no others."""

    t5_length: int = 512
    t5_tokenizer: str = "google/t5-v1_1-xxl"
    clip_tokenizer: str = "openai/clip-vit-large-patch14"
    qwen3_length: int = 512
    qwen3_tokenizer: str = "Qwen/Qwen3-4B"
    width: int = 1024
    height: int = 1024
    content_ref: int = 512  # the long side of a content reference
    num_steps: int = 25
    guidance: float = 4.0
    shift: str = "upstream"

    @classmethod
    def read(cls, directory: pathlib.Path, of_family: Mapping[str, Any] = MappingProxyType({})) -> "Defaults":
        """Read DIR/pipeline.json, if there is one; `of_family` are the base model's defaults."""
        path, values = directory / "pipeline.json", {}
        if path.exists():
            values = untrusted.json(path, dict[str, Any], remedy="correct or remove it")
        fields = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        for name, value in values.items():
            if name not in fields:
                raise InputError(f"{path}: unknown key {name!r}; known are {', '.join(fields)}")
            kinds = (float, int) if fields[name] is float else (fields[name],)
            if type(value) not in kinds or (not isinstance(value, str) and not 0 <= value < math.inf):
                raise InputError(f"{path}: {name} must be a {fields[name].__name__}, not {value!r}")
            values[name] = fields[name](value)
        if values.get("shift", cls.shift) not in get_args(flow.Shift):
            raise InputError(f"{path}: shift must be one of {', '.join(get_args(flow.Shift))}")
        for component in (name.removesuffix("_tokenizer") for name in fields if name.endswith("_tokenizer")):
            folder = directory / (values.get(f"{component}_tokenizer") or weights.tokenizer(directory, component).name)
            if folder.is_dir():
                values[f"{component}_tokenizer"] = str(folder)
        return cls(**{**of_family, **values})


@dataclass(frozen=True)
class Pretrained:
    """The networks of a weights directory, without their parameters; `dtype` is the run's, of transformer and text.

    `adapted` has the adapters that are merged into the directory's transformer when it is loaded.
    """

    name: str
    directory: pathlib.Path
    system: USOConfig
    defaults: Defaults
    dtype: str
    adapted: Adapted

    @classmethod
    def open(cls, name: str | pathlib.Path, dtype: str | None = None, adapted: Adapted | None = None) -> "Pretrained":
        """Read the manifests of a weights directory, or of "mini", which comes with the package.

        Without `dtype`, weights in float32 or float16 run in float32, all others in bfloat16. `adapted` is the
        directory with adapters; None: with those that it has, beside the transformer.

        Raises:
          InputError: a component is missing, damaged, or of another variant than the rest.
        """
        directory = mini.directory(name)
        have = weights.components(directory)
        if "transformer" not in have:
            wanted = next(iter(FAMILIES.values())).required
            raise missing_components(directory, [name for name in wanted if name not in have], _only(have))
        stored = weights.manifest(directory, "transformer")
        family = family_of(stored["config"])
        if absent := [name for name in family.required if name not in have]:
            raise missing_components(directory, absent, _only(have))
        dtype = dtype or ("float32" if stored["dtype"] in ("float32", "float16") else "bfloat16")
        defaults = Defaults.read(directory, family.defaults)
        size = functools.partial(weights.config, directory)
        adapted = adapted or Adapted(directory)
        if adapted.projector is not None and "siglip" not in have:
            raise missing_components(directory, ["siglip"], ", whose features the style projector reads")
        transformer, autoencoder = size("transformer", dtype=dtype, remat="none"), size("autoencoder")
        patch = math.isqrt(transformer.in_channels // autoencoder.z_channels)
        try:
            uso_config = USOConfig(
                transformer=adapted.config(transformer),
                autoencoder=autoencoder,
                siglip=size("siglip", remat="none") if "siglip" in have else None,
                text=family.text.from_defaults(functools.partial(size, dtype=dtype, remat="none"), defaults),
                patch=patch,
                family=family.name,
            )
        except ValueError as error:
            raise InputError(f"{directory} mixes components of different variants: {error}") from error
        return cls(str(name), directory, uso_config, defaults, dtype, adapted)

    def load(
        self,
        system: USO,
        mesh: Mesh,
        memory: str = "device",
        only: Collection[str] | None = None,
        paths: Mapping[str, Collection[str]] | None = None,
    ) -> Params:
        """Load parameters onto the mesh; quantised kernels stay quantised.

        Args:
          system: the networks.
          mesh: the mesh to shard over.
          memory: kind of memory, "device" or "pinned_host".
          only: components to load; None: all.
          paths: of the parameters to load, by component, and nothing else; None: all.
        """
        shardings = sharding.shardings(mesh, placement_rules(), system.shapes)
        shardings = {path: place.with_memory_kind(memory) for path, place in shardings.items()}
        params: Params = {}
        changed = self.adapted.arrays()
        for component, inside in by_component(system.shapes).items():
            if (only is not None and component not in only) or (paths is not None and not paths.get(component)):
                continue
            dtype = jnp.dtype("float32" if component in FULL_PRECISION else self.dtype)
            structs = {
                inner: jax.ShapeDtypeStruct(system.shapes[path].shape, dtype, sharding=shardings[path])
                for inner, path in inside.items()
            }
            few = None if paths is None else paths[component]
            with progress.phase(f"loading the {component} of {self.name}"):
                loaded = self._load(component, structs, changed.get(component, {}), few)
            names = inside | {
                quantization.scale_path(inner): quantization.scale_path(path) for inner, path in inside.items()
            }
            params |= {names[inner]: _as_int8(value) for inner, value in loaded.items()}
        return params

    def _load(
        self,
        component: str,
        structs: Mapping[str, jax.ShapeDtypeStruct],
        changed: Mapping[str, Any],
        paths: Collection[str] | None,
    ) -> Params:
        if changed.keys() >= structs.keys():  # the directory need not have this component
            wanted = {
                path: (changed[path], struct) for path, struct in structs.items() if paths is None or path in paths
            }
            return place(self.directory / component, wanted, check_finite=True)
        return weights.load_quantized(self.directory, component, structs, changed=changed, paths=paths)

    def with_adapters(self, adapters: Sequence[Adapter]) -> "Pretrained":
        """Return the same weights with other adapters.

        Raises:
          InputError: they do not fit together, or the weights.
        """
        found = Pretrained.open(self.directory, self.dtype, self.adapted.with_adapters(adapters))
        return dataclasses.replace(found, name=self.name)

    @property
    def quantization(self) -> str:
        """The format of the transformer's kernels; "": not quantised."""
        return weights.manifest(self.directory, "transformer").get("quantization", {}).get("mode", "")

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of each component: sizes, dtypes, the SHA-256 of its sources, and a sample of its numbers.

        The sample is the beginning, middle and end of every parameter, or of every layer of a stack. It takes
        milliseconds; hashing all numbers of a large component would take minutes.
        """
        return {name: fingerprint(self.directory / name) for name in weights.components(self.directory)}


def _only(have: Sequence[str]) -> str:
    return f", only {', '.join(have) or 'nothing'}"


def fingerprint(folder: pathlib.Path) -> str:
    """Return the fingerprint of a component's folder; see `Pretrained.fingerprints`.

    Raises:
      InputError: the component is damaged.
    """
    try:
        return _fingerprint(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder} cannot be read ({error}); import or copy the {folder.name} again") from error


def _fingerprint(folder: pathlib.Path) -> str:
    weights.manifest(folder.parent, folder.name)  # raises InputError where it is damaged
    record: dict[str, Any] = untrusted.json(folder / "manifest.json")
    sources = [source.get("sha256") for source in record.get("sources", []) if isinstance(source, dict)]
    facts = [record["config"], record["tensors"], record.get("quantization"), sources]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    if record["format"] > ZARR_FORMAT:
        for sample in _samples(folder, {path: parse_struct(text) for path, text in record["tensors"].items()}):
            digest.update(sample)
        return digest.hexdigest()[:16]
    # Components written before format 3 keep the fingerprints that runs and features have recorded.
    if (folder / safetensors_store.FILE).is_file():
        with (folder / safetensors_store.FILE).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]
    for name, size in sorted(record["files"].items()):
        with (folder / name).open("rb", buffering=0) as file:
            for place in (0, size // 2, max(size - _SAMPLE, 0)):
                file.seek(place)
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:16]


def _samples(folder: pathlib.Path, structs: Mapping[str, jax.ShapeDtypeStruct]) -> Iterator[bytes]:
    """Yield the beginning, middle and end of every parameter, of every layer where it is a stack of matrices."""
    for path, extent in sorted(safetensors_store.read_extents(folder, structs).items()):
        layers = structs[path].shape[0] if len(structs[path].shape) == 3 else 1
        size = extent.size // max(layers, 1)
        with extent.file.open("rb", buffering=0) as file:
            for start in range(extent.start, extent.start + extent.size, max(size, 1)):
                for place in (0, size // 2, max(size - _SAMPLE, 0)):
                    file.seek(start + place)
                    yield file.read(min(_SAMPLE, size - place))


def _as_int8(value: jax.Array) -> jax.Array:
    """Convert int4 to int8: compiled programs of jaxlib 0.10 reject int4 arguments, whose layout they mistake."""
    if value.dtype != jnp.int4:
        return value
    on_device = jax.device_put(value, value.sharding.with_memory_kind("device"))
    return jax.device_put(on_device.astype(jnp.int8), value.sharding)
