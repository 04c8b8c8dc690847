# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The checkpoint files this project knows, recognised by the names of their tensors, never by the file's name.

To add a layout: write its table (see convert.table) and append a `Family` to `FAMILIES`.
"""

import dataclasses
import functools
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convert.autoencoder import AUTOENCODER
from convert.flux import LORA, PROJECTOR, TRANSFORMER
from convert.safetensors_file import SafetensorsFile
from convert.siglip import VISION
from convert.table import Entry, Row, expand
from uso_jax import params, weights
from uso_jax.errors import InputError
from uso_jax.models.autoencoder import AutoEncoder
from uso_jax.models.flux import Flux
from uso_jax.models.siglip import SiglipVision

Shapes = Mapping[str, tuple[int, ...]]
Size = Callable[[Shapes], Any]  # reads one size off the tensors; None: they do not tell it


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of file: the component it holds, its table, and how its shapes tell the model's sizes."""

    name: str
    title: str
    component: str
    rows: Sequence[Row]
    sizes: Mapping[str, Mapping[str, Size]]  # by section and field of weights.FIELDS
    prefixes: tuple[str, ...] = ("",)  # that all its keys may have
    ignore: str = ""  # regex of keys that belong to other networks in the same file
    foreign: str = ""  # regex of keys whose presence means that this is another, similar network


# ---------------------------------------------------------------------------------------------------- reading sizes


def dim(key: str, axis: int) -> Size:
    """Take a size from one axis of a tensor."""

    def read(shapes: Shapes) -> int:
        if len(shape := shapes[key]) <= axis or not shape[axis]:
            raise ValueError(f"tensor {key} has shape {list(shape)}")
        return shape[axis]

    return read


def count(pattern: str) -> Size:
    """Count the different numbers that `(\\d+)` takes in keys; a lone huge number counts once and is then stray."""
    return lambda shapes: len({match[1] for key in shapes if (match := re.match(pattern, key))})


def has(key: str) -> Size:
    """Tell whether a tensor is there."""
    return lambda shapes: key in shapes


def ratio(size: Size, base: Size) -> Size:
    """Divide two sizes."""
    return lambda shapes: size(shapes) / base(shapes)


def known(size: Size, values: Mapping[Any, Any]) -> Size:
    """Look up what follows from a size in the released models only."""
    return lambda shapes: values.get(size(shapes))


# fmt: off
_WIDTH    = dim("img_in.weight", 0)
_HEAD     = dim("double_blocks.0.img_attn.norm.query_norm.scale", 0)
_DOWN     = "double_blocks.0.processor.proj_lora1.down.weight"
_LAST     = "single_blocks.0.processor.proj_lora.down.weight"  # reads [attention | mlp]
_CH       = dim("encoder.conv_in.weight", 0)
_PATCH    = dim("embeddings.patch_embedding.weight", 2)
_POSITION = dim("embeddings.position_embedding.weight", 0)


def _ch_mult(shapes: Shapes) -> tuple[int, ...]:
    levels = count(r"encoder\.down\.(\d+)\.")(shapes)
    return tuple(dim(f"encoder.down.{i}.block.0.conv1.weight", 0)(shapes) // _CH(shapes) for i in range(levels))


def _image_size(shapes: Shapes) -> int:
    patch, positions = _PATCH(shapes), _POSITION(shapes)
    # 384 is no multiple of 14: that model drops a margin, which no shape shows.
    return 384 if (patch, positions) == (14, 729) else patch * math.isqrt(positions)


FAMILIES: tuple[Family, ...] = (
    Family("flux", "FLUX transformer (black-forest-labs names)", "transformer", TRANSFORMER, {"flux": {
        "in_channels":         dim("img_in.weight", 1),
        "vec_in_dim":          dim("vector_in.in_layer.weight", 1),
        "context_in_dim":      dim("txt_in.weight", 1),
        "hidden_size":         _WIDTH,
        "mlp_ratio":           ratio(dim("double_blocks.0.img_mlp.0.weight", 0), _WIDTH),
        "num_heads":           lambda shapes: _WIDTH(shapes) // _HEAD(shapes),
        "depth":               count(r"double_blocks\.(\d+)\."),
        "depth_single_blocks": count(r"single_blocks\.(\d+)\."),
        "axes_dim":            known(_HEAD, {128: (16, 56, 56)}),
        "qkv_bias":            has("double_blocks.0.img_attn.qkv.bias"),
        "guidance_embed":      has("guidance_in.in_layer.weight"),
    }}),
    Family("uso-lora", "USO adapters for FLUX", "lora", LORA, {
        "lora": {
            "rank":                dim(_DOWN, 0),
        },
        "flux": {
            "hidden_size":         dim(_DOWN, 1),
            "mlp_ratio":           lambda shapes: ratio(dim(_LAST, 1), dim(_DOWN, 1))(shapes) - 1,
            "depth":               count(r"double_blocks\.(\d+)\."),
            "depth_single_blocks": count(r"single_blocks\.(\d+)\."),
        },
    }),
    Family("uso-projector", "USO style projector", "projector", PROJECTOR, {
        "projector": {
            "siglip_tokens": dim("feature_embedder.high_embedding_linear.0.weight", 1),
            "style_tokens":  dim("feature_embedder.high_embedding_linear.0.weight", 0),
            "siglip_dim":    dim("feature_embedder.high_projection.weight", 1),
        },
        "flux": {"hidden_size": dim("feature_embedder.high_projection.weight", 0)},
    }),
    Family("siglip", "SigLIP vision tower (transformers names)", "siglip", VISION, {"siglip": {
        "hidden_size":         dim("embeddings.patch_embedding.weight", 0),
        "intermediate_size":   dim("encoder.layers.0.mlp.fc1.weight", 0),
        "num_hidden_layers":   count(r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": known(dim("embeddings.patch_embedding.weight", 0), {768: 12, 1024: 16, 1152: 16}),
        "image_size":          _image_size,
        "patch_size":          _PATCH,
    }}, prefixes=("vision_model.", ""), ignore=r"text_model\..*|logit_(scale|bias)",
        foreign=r"(vision_model\.)?embeddings\.class_embedding"),
    Family("flux-ae", "FLUX autoencoder (black-forest-labs names)", "autoencoder", AUTOENCODER, {"autoencoder": {
        "in_channels":    dim("encoder.conv_in.weight", 1),
        "ch":             _CH,
        "out_ch":         dim("decoder.conv_out.weight", 0),
        "ch_mult":        _ch_mult,
        "num_res_blocks": count(r"encoder\.down\.0\.block\.(\d+)\."),
        "z_channels":     dim("decoder.conv_in.weight", 1),
    }}),
)
# fmt: on


# ---------------------------------------------------------------------------------------------------- recognition


@functools.cache
def _pattern(name: str) -> re.Pattern:
    family = next(family for family in FAMILIES if family.name == name)
    keys = (re.escape(module + suffix) for module, _, kind in family.rows for suffix in kind)
    return re.compile("|".join(re.sub(r"\\{\w\\}", r"\\d+", key) for key in keys))


def detect(keys: Iterable[str]) -> tuple[Family, str] | None:
    """Give the family, and the prefix of its keys, that explains the most keys; None if none explains any."""
    keys, best, most = list(keys), None, 0
    for family in FAMILIES:
        if family.foreign and any(re.fullmatch(family.foreign, key) for key in keys):
            continue
        for prefix in family.prefixes:
            inner = (key.removeprefix(prefix) for key in keys if key.startswith(prefix))
            found = sum(_pattern(family.name).fullmatch(key) is not None for key in inner)
            if found > most:
                best, most = (family, prefix), found
    return best


def for_component(component: str, name: str) -> Family:
    """Give the family to export a component in: the one it came from, or the component's first."""
    fitting = [family for family in FAMILIES if family.component == component]
    if not fitting:
        raise InputError(f"{component} has no export; components are {', '.join(f.component for f in FAMILIES)}")
    return next((family for family in fitting if family.name == name), fitting[0])


def read_config(path: str | pathlib.Path) -> dict[str, dict]:
    """Read a `--config` file: sizes by section, as in a manifest's `config`.

    Raises:
      InputError: it is not JSON, or a name or type in it is wrong.
    """
    try:
        values = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give --config a JSON file") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if isinstance(values, dict):
        # Such files also describe how a model is sampled and trained, which weights do not depend on.
        values = {section: value for section, value in values.items() if section != "sampling"}
        if isinstance(values.get("autoencoder"), dict):
            values["autoencoder"] = {k: v for k, v in values["autoencoder"].items() if k != "resolution"}
    return weights.check_sections(values, str(path))


def model_shapes(family: Family, sections: weights.Sections) -> dict[str, jax.ShapeDtypeStruct]:
    """Give the parameters that a family's tensors fill, for a model of these sizes."""
    if family.component == "siglip":
        config = weights.build("siglip", {"siglip": {"num_attention_heads": 1, **sections["siglip"]}})
        return params.shapes(lambda rngs: SiglipVision(config, rngs=rngs))
    if family.component == "autoencoder":
        config = weights.build("autoencoder", sections)
        return params.shapes(lambda rngs: AutoEncoder(config, rngs=rngs))
    # No shape depends on how heads are rotated, nor any adapter's on how many there are.
    flux = {"num_heads": 1, **sections["flux"]}
    flux.setdefault("axes_dim", (flux["hidden_size"] // max(flux["num_heads"], 1),))
    config = weights.build("flux", {**sections, "flux": flux})
    return weights.split(params.shapes(lambda rngs: Flux(config, rngs=rngs)))[family.component]


# ---------------------------------------------------------------------------------------------------- checkpoints


@dataclasses.dataclass
class Checkpoint:
    """One component in one or several files, compared with the model it should fill; only headers have been read."""

    family: Family
    prefix: str
    files: list[SafetensorsFile]
    sections: dict[str, dict]
    untold: list[str]  # sizes that neither the tensors nor --config tell
    shapes: dict[str, jax.ShapeDtypeStruct]
    entries: dict[str, Entry]
    missing: list[str]
    wrong: list[str]
    stray: list[str]
    twice: list[str]
    ignored: int

    @property
    def names(self) -> str:
        return ", ".join(str(file.path) for file in self.files)

    @property
    def problems(self) -> dict[str, list[str]]:
        found = {"missing": self.missing, "stray": self.stray, "given twice": self.twice, "of wrong shape": self.wrong}
        return {name: keys for name, keys in found.items() if keys}

    def check(self) -> None:
        """Refuse what cannot be imported."""
        if self.untold:
            raise InputError(
                f"{self.names}: the tensors do not tell {' and '.join(self.untold)};"
                ' say it in a JSON file, for example {"flux": {"axes_dim": [16, 56, 56]}}, and pass that as --config'
            )
        if self.problems:
            lists = (f"{len(v)} {k} ({', '.join(v[:3])}{', ...' * (len(v) > 3)})" for k, v in self.problems.items())
            raise InputError(f"{self.names}: the tensors do not fit {self.family.name}: {'; '.join(lists)}")

    def dtypes(self) -> dict[str, np.dtype]:
        """Give each parameter the narrowest dtype that keeps every tensor in it exact."""
        found: dict[str, set[np.dtype]] = {}
        for file in self.files:
            for key, tensor in file.tensors.items():
                if entry := self.entries.get(key.removeprefix(self.prefix)):
                    for path in entry.paths:
                        found.setdefault(path, set()).add(tensor.dtype)
        return {path: _common(dtypes) for path, dtypes in found.items()}


def _common(dtypes: set[np.dtype]) -> np.dtype:
    try:
        return np.dtype(functools.reduce(jnp.promote_types, dtypes))
    except ValueError:  # float8 has no implicit promotion
        return np.dtype(np.float32)


def recognise(files: Sequence[SafetensorsFile], config: weights.Sections) -> list[Checkpoint]:
    """Group files by component, several files of one being its shards, and compare each with its model.

    Raises:
      InputError: a file is of no known family, shards are of different ones, or a size cannot be read.
    """
    groups: dict[str, tuple[Family, str, list[SafetensorsFile]]] = {}
    for file in files:
        if (found := detect(file.tensors)) is None:
            some = ", ".join(list(file.tensors)[:3]) or "none"
            titles = "; ".join(family.title for family in FAMILIES)
            raise InputError(f"{file.path}: no known family has its tensors ({some}); known: {titles}")
        family, prefix = found
        first = groups.setdefault(family.component, (family, prefix, []))
        if first[:2] != found:
            raise InputError(
                f"{file.path} is {prefix}{family.name} but {first[2][0].path} is {first[1]}{first[0].name}:"
                f" shards of one {family.component} must share a layout; import one of them"
            )
        first[2].append(file)
    return [_compare(*group, config) for group in groups.values()]


def _compare(family: Family, prefix: str, files: list[SafetensorsFile], config: weights.Sections) -> Checkpoint:
    shapes: dict[str, tuple[int, ...]] = {}
    stray, twice, kinds, ignored = [], [], [], 0
    for file in files:
        for key, tensor in file.tensors.items():
            name = key.removeprefix(prefix)
            if family.ignore and re.fullmatch(family.ignore, key):
                ignored += 1
            elif not key.startswith(prefix):
                stray.append(key)
            elif name in shapes:
                twice.append(key)
            else:
                shapes[name] = tensor.shape
                if not jnp.issubdtype(tensor.dtype, jnp.floating):
                    kinds.append(f"{key} is {tensor.dtype}, not floating")
    names = ", ".join(str(file.path) for file in files)
    sections, untold = _sizes(family, shapes, config, names)
    targets = model_shapes(family, sections)
    entries = expand(family.rows, targets)
    stray += [prefix + key for key in shapes if key not in entries]
    missing = [prefix + key for key in entries if key not in shapes]
    wrong = kinds + [
        f"{prefix}{key} is {list(shapes[key])}, not {list(entry.shape)}"
        for key, entry in entries.items()
        if key in shapes and shapes[key] != entry.shape
    ]
    return Checkpoint(family, prefix, files, sections, untold, targets, entries, missing, wrong, stray, twice, ignored)


def _sizes(family: Family, shapes: Shapes, config: weights.Sections, names: str) -> tuple[dict[str, dict], list[str]]:
    sections, untold = {}, []
    for section, fields in family.sizes.items():
        # An adapter's file tells what it needs of the transformer; only the fields it can tell are taken over.
        given = config.get(section, {})
        own = weights.FIELDS[section] if section != "flux" or family.component == "transformer" else fields
        sections[section] = {name: value for name, value in given.items() if name in own}
        for name, size in fields.items():
            if name in sections[section]:
                continue
            try:
                value = size(shapes)
            except KeyError as error:
                raise InputError(f"{names}: {section}.{name} cannot be told, tensor {error} is missing") from error
            except (ValueError, ZeroDivisionError) as error:
                raise InputError(f"{names}: {section}.{name} cannot be told, {error}") from error
            if value is None:
                untold.append(f"{section}.{name}")
            else:
                sections[section][name] = value
    return sections, untold
