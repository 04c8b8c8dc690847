# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The checkpoint files this project knows, recognised by the names of their tensors, never by the file's name.

To add a layout: write its table (see convert.table) and append a `Family` to `FAMILIES`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from convert.autoencoder import AUTOENCODER
from convert.flux import LORA, PROJECTOR, TRANSFORMER
from convert.siglip import VISION
from convert.table import Row
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
        # An empty tensor may claim any other size without a byte to show for it.
        if len(shape := shapes[key]) <= axis or 0 in shape:
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
            "mlp_ratio":           ratio(lambda shapes: dim(_LAST, 1)(shapes) - dim(_DOWN, 1)(shapes), dim(_DOWN, 1)),
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


def model(family: Family, sections: weights.Sections) -> tuple[Any, dict[str, jax.ShapeDtypeStruct]]:
    """Give the config of these sizes, and the parameters of its model that the family's tensors fill."""
    if family.component == "siglip":
        config = weights.build("siglip", {"siglip": {"num_attention_heads": 1, **sections["siglip"]}})
        return config, params.shapes(lambda rngs: SiglipVision(config, rngs=rngs))
    if family.component == "autoencoder":
        config = weights.build("autoencoder", sections)
        return config, params.shapes(lambda rngs: AutoEncoder(config, rngs=rngs))
    # No shape depends on how heads are rotated, nor any adapter's on how many there are.
    flux = {"num_heads": 1, **sections["flux"]}
    flux.setdefault("axes_dim", (flux["hidden_size"] // flux["num_heads"],))
    config = weights.build("flux", {**sections, "flux": flux})
    return config, weights.split(params.shapes(lambda rngs: Flux(config, rngs=rngs)))[family.component]
