# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A metric as data: which figure, of what kind, compared with what; and the tools that kinds are made with.

A kind is a function (metric, tools) -> measure; a measure is called with samples and gives a result for each, and its
`identity` says everything that its values depend on besides images and items.
"""

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from uso_jax.common.errors import InputError
from uso_jax.evaluation.gallery import Sample, file_digest
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.score_log import Result

AGAINST: Mapping[str, Callable[[EvalItem], Sequence[str]]] = {
    "content": lambda item: item.content_refs,
    "style": lambda item: item.style_refs,
    "target": lambda item: [item.target] if item.target else [],
    "subject": lambda item: item.meta.get("subject_images", item.content_refs),  # all photographs of the subject
    "all": lambda item: [*item.content_refs, *item.style_refs],
}
"""The images of an item that an image may be compared with."""


@dataclass(frozen=True)
class Metric:
    """One metric of a benchmark.

    Attributes:
      name: of the metric and, where it has one, of its figure.
      kind: one of `kinds.KINDS`.
      vector: what an encoder gives, see `encoders`.
      against: one of AGAINST; an item that has no such image is not asked.
      subsets: of the items that are asked; () all.
      needs: what else an item must have to be asked: "prompt", or the name of an entry of meta.
      options: what else the kind reads.
    """

    name: str
    kind: str
    vector: str = ""
    against: str = ""
    subsets: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def applies(self, item: EvalItem) -> bool:
        """Tell whether the metric has something to say of an item."""
        if self.subsets and item.subset not in self.subsets:
            return False
        if self.against and not AGAINST[self.against](item):
            return False
        return all(item.prompt if need == "prompt" else item.meta.get(need) for need in self.needs)

    def references(self, item: EvalItem) -> Sequence[str]:
        """Give the images that an image of the item is compared with."""
        return AGAINST[self.against](item)


@runtime_checkable
class Measure(Protocol):
    """What a kind makes: values of samples."""

    identity: Mapping[str, Any]

    def __call__(self, samples: Sequence[Sample]) -> list[Result]:
        """Judge samples that the metric applies to."""
        ...


@runtime_checkable
class WholeMeasure(Protocol):
    """What a kind makes whose value is of all images together."""

    identity: Mapping[str, Any]

    def whole(self, samples: Sequence[Sample]) -> Result:
        """Judge all samples that the metric applies to."""
        ...


@dataclass(frozen=True)
class Tools:
    """What kinds are made with; what is None was not given, and a metric that needs it says so."""

    networks: Any = None  # encoders.Networks
    vlm: Any = None  # vlm_judge.Vlm
    faces: Any = None  # faces.Embeddings by path
    reader: Any = None  # ocr.Reader
    prompts: Mapping[str, str] = field(default_factory=dict)  # the judge's, by name, in place of this project's
    compat: bool = False

    def need(self, tool: str, metric: Metric) -> Any:
        """Give a tool.

        Raises:
          InputError: it was not given.
        """
        if (found := getattr(self, tool)) is None:
            raise InputError(f"metric {metric.name!r} needs {_TOOLS[tool]}; or leave it out with --metrics")
        return found


_TOOLS = {  # what the user calls them
    "networks": "a weights directory of networks (--metric_weights)",
    "vlm": "a judge (--judge)",
    "faces": "face embeddings (--faces)",
    "reader": "what was read in the images (--texts)",
}


def value_digest(sample: Sample, metric: Metric, identity: Mapping[str, Any]) -> str:
    """Give the digest of everything that a metric's value of a sample depends on."""
    item = sample.item
    facts = {
        "picture": sample.sha256,
        "prompt": item.prompt,
        "references": [file_digest(path) for path in item.references],
        "subset": item.subset,
        "meta": {name: value for name, value in item.meta.items() if name not in ("subject_images", "image_files")},
        "metric": [metric.kind, metric.vector, metric.against, dict(metric.options)],
        "identity": identity,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


KINDS: Mapping[str, tuple[str, str]] = {  # kind -> module and class in uso_jax.evaluation.metrics
    "cosine": ("similarity", "Cosine"),
    "text": ("similarity", "TextCosine"),
    "lpips": ("similarity", "Distance"),
    "gram": ("similarity", "Distance"),
    "instruction": ("vlm", "Instruction"),
    "presence": ("vlm", "Presence"),
    "viescore": ("vlm", "VieScore"),
    "identity_weight": ("vlm", "IdentityWeight"),
    "scales": ("vlm", "Scales"),
    "faces": ("faces", "Faces"),
    "reading": ("ocr", "Reading"),
    "reward": ("image_reward", "Reward"),
    "fid": ("fid", "Fid"),
    "truth": ("counterfactual", "Truth"),
}


def make_measure(metric: Metric, tools: Tools) -> Measure | WholeMeasure:
    """Make what judges samples; modules are imported as they are needed.

    Raises:
      InputError: a tool or a network is missing.
    """
    if metric.kind not in KINDS:
        raise InputError(f"metric {metric.name!r}: unknown kind {metric.kind!r}; known are {', '.join(KINDS)}")
    module, name = KINDS[metric.kind]
    return getattr(importlib.import_module(f"uso_jax.evaluation.metrics.{module}"), name)(metric, tools)
