# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A metric as data, the registry of metric kinds, and the tools that kinds need.

A kind is a class (metric, tools) -> measure. A measure maps samples to results, one each, and its `identity` describes
everything its values depend on besides images and items.
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
from uso_jax.evaluation.protocol import JudgeProtocol, Wording
from uso_jax.evaluation.score_log import Result

AGAINST: Mapping[str, Callable[[EvalItem], Sequence[str]]] = {
    "content": lambda item: item.content_refs,
    "style": lambda item: item.style_refs,
    "target": lambda item: [item.target] if item.target else [],
    "subject": lambda item: item.meta.get("subject_images", item.content_refs),  # all photos of the subject
    "all": lambda item: [*item.content_refs, *item.style_refs],
}
"""Name -> the images of an item that a generated image is compared with."""


@dataclass(frozen=True)
class Metric:
    """One metric of a benchmark.

    Attributes:
      name: name of the metric and of its figure, if it has only one.
      kind: a key of KINDS.
      vector: embedding to compare, see `encoders`.
      against: a key of AGAINST; items without such images are not scored.
      subsets: subsets to score; () scores all.
      needs: further requirements of an item: "prompt", or a key of `meta`.
      options: further arguments of the kind.
      judge: how a judged metric asks.
    """

    name: str
    kind: str
    vector: str = ""
    against: str = ""
    subsets: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    judge: JudgeProtocol | None = None

    def applies(self, item: EvalItem) -> bool:
        """Return whether the metric is defined for an item."""
        if self.subsets and item.subset not in self.subsets:
            return False
        if self.against and not AGAINST[self.against](item):
            return False
        return all(item.prompt if need == "prompt" else item.meta.get(need) for need in self.needs)

    def references(self, item: EvalItem) -> Sequence[str]:
        """Return the paths of the images that the item's images are compared with."""
        return AGAINST[self.against](item)


@runtime_checkable
class Measure(Protocol):
    """Computes values for individual samples."""

    identity: Mapping[str, Any]

    def __call__(self, samples: Sequence[Sample]) -> list[Result]:
        """Return one result per sample; the metric must apply to each."""
        ...


@runtime_checkable
class WholeMeasure(Protocol):
    """Computes one value for the set of all images, such as FID."""

    identity: Mapping[str, Any]

    def whole(self, samples: Sequence[Sample]) -> Result:
        """Return the result for all samples that the metric applies to."""
        ...


@dataclass(frozen=True)
class Tools:
    """Resources for metrics; None means that the user passed none."""

    networks: Any = None  # encoders.Networks
    vlm: Any = None  # vlm.judges.CachedJudge
    faces: Any = None  # faces.Embeddings
    reader: Any = None  # ocr.Reader
    prompts: Wording | None = None  # texts for the judge in place of this project's
    compat: bool = False  # ask and count as the benchmark's own code does

    def need(self, tool: str, metric: Metric) -> Any:
        """Return a tool.

        Raises:
          InputError: the user did not pass it.
        """
        if (found := getattr(self, tool)) is None:
            raise InputError(f"metric {metric.name!r} needs {_TOOLS[tool]}; pass it, or omit the metric with --metrics")
        return found


_TOOLS = {  # descriptions for errors
    "networks": "a weights directory of networks (--metric_weights)",
    "vlm": "a judge (--judge)",
    "faces": "face embeddings (--faces)",
    "reader": "text read from the images (--texts)",
}


def value_digest(sample: Sample, metric: Metric, identity: Mapping[str, Any]) -> str:
    """Return a digest of everything that a metric's value for a sample depends on."""
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
    "judged": ("vlm", "Judged"),
    "presence": ("vlm", "Presence"),
    "identity_weight": ("identity_weight", "IdentityWeight"),
    "faces": ("faces", "Faces"),
    "reading": ("ocr", "Reading"),
    "reward": ("image_reward", "Reward"),
    "fid": ("fid", "Fid"),
    "truth": ("counterfactual", "Truth"),
}


def make_measure(metric: Metric, tools: Tools) -> Measure | WholeMeasure:
    """Build the measure of a metric. The kind's module is imported on demand.

    Raises:
      InputError: the kind is unknown, or a tool or network is missing.
    """
    if metric.kind not in KINDS:
        raise InputError(f"metric {metric.name!r}: unknown kind {metric.kind!r}; known kinds: {', '.join(KINDS)}")
    module, name = KINDS[metric.kind]
    return getattr(importlib.import_module(f"uso_jax.evaluation.metrics.{module}"), name)(metric, tools)
