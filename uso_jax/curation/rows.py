# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The rows of every step of a curation and its manifest, as schemas: these files may be damaged or edited.

A row of a step is a result, or the reason for having none. Further entries are kept.
"""

from typing import Any, NotRequired, TypedDict


class Manifest(TypedDict):
    """The source, layouts and shard size of a curation."""

    source: dict[str, Any]
    examples: int
    layouts: list[str]
    shard_size: int


class Caption(TypedDict):
    """A candidate, with the place of its image: in a file of the source, or a copy with the number "picture"."""

    number: int
    index: int
    layout: str
    key: NotRequired[str]
    hash: NotRequired[str]
    caption: NotRequired[str]
    place: NotRequired[list]
    picture: NotRequired[int]
    failed: NotRequired[str]


class Made(TypedDict):
    """A generated image."""

    number: int
    failed: NotRequired[str]


class Score(TypedDict):
    """Scores by networks, those that were asked for."""

    number: int
    style: NotRequired[float]
    subject: NotRequired[float]
    failed: NotRequired[str]


class Judgement(TypedDict):
    """The model's score with those of the parts, or why the candidate waits for it."""

    number: int
    judge: NotRequired[float]
    parts: NotRequired[dict[str, float]]
    waiting: NotRequired[str | None]
    failed: NotRequired[str]


class Truth(TypedDict):
    """Whether references are right, and whether true ones pass the same checks."""

    number: int
    style_right: NotRequired[bool]
    content_right: NotRequired[bool]
    true_style_right: NotRequired[bool]
    true_content_right: NotRequired[bool]
    failed: NotRequired[str]


ROWS: dict[str, Any] = {
    "captions": Caption,
    "stylize": Made,
    "destylize": Made,
    "score": Score,
    "judge": Judgement,
    "truth": Truth,
}
RESULTS = {  # what a row has unless the step failed for its candidate
    "captions": ("key", "hash", "caption"),
    "truth": ("style_right", "content_right", "true_style_right", "true_content_right"),
}
