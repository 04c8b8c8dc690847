# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The training record that every source yields, and the protocol of sources.

The empty prompt means "keep the layout, only change the style". It is allowed where the layout is preserved; where the
layout is shifted, the prompt is a sentence that describes the target.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np

from uso_jax.common.errors import InputError

Task = Literal["subject", "style", "style_subject", "text"]
Layout = Literal["preserved", "shifted"]
_LAYOUTS = get_args(Layout)
Tokenize = Callable[[str], dict[str, np.ndarray]]

# task -> (has a content image, has style images)
TASK_CONDITIONS: dict[str, tuple[bool, bool]] = {
    "subject": (True, False),
    "style": (False, True),
    "style_subject": (True, True),
    "text": (False, False),
}


@dataclass(frozen=True, eq=False)
class Triplet:
    """A content image, style images and the target that combines them.

    Images are uint8 [h, w, 3] of any size. `target` is None only for triplets that are generated from. `task` is a Task
    and `layout` a Layout. `meta` holds ground truth that the source knows (subject, style, pose); training reads only
    meta["labels"]. `key` is unique within the source. `mask` is white where the target counts in full; None is
    everywhere.

    Raises:
      InputError: a value is invalid, or the images do not match the task.
    """

    prompt: str
    content: np.ndarray | None
    styles: tuple[np.ndarray, ...]
    target: np.ndarray | None
    task: str
    layout: str
    key: str
    meta: dict[str, Any] = field(default_factory=dict)
    mask: np.ndarray | None = None

    def __post_init__(self):
        where = f"triplet {self.key!r}"
        if self.task not in TASK_CONDITIONS:
            raise InputError(f"{where}: task is {self.task!r}; use one of {', '.join(TASK_CONDITIONS)}.")
        check_words(self.prompt, self.layout, where)
        wanted, found = TASK_CONDITIONS[self.task], (self.content is not None, bool(self.styles))
        if found != wanted:
            raise InputError(
                f"{where}: task {self.task!r} requires content {_yes(wanted[0])} and style {_yes(wanted[1])}, but"
                f" content is {_yes(found[0])} and style {_yes(found[1])}."
            )
        for name, image in self._images():
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
                raise InputError(
                    f"{where}: the {name} image is {image.dtype} {list(image.shape)};"
                    " images are uint8 [height, width, 3]."
                )

    def _images(self):
        if self.content is not None:
            yield "content", self.content
        for style in self.styles:
            yield "style", style
        if self.target is not None:
            yield "target", self.target
        if self.mask is not None:
            yield "mask", self.mask


@runtime_checkable
class TripletSource(Protocol):
    """Random access to triplets.

    Optional methods make a source faster:
      sizes(): int32 [n, 4], (height, width) of every target and content image, 0 where unknown.
      fitted(index, target, content, style): the triplet, resized by these functions while it is decoded; its mask is
        resized as the target is.
      digest(): a text that identifies the rows, without reading images.
      example(index, content_size, num_styles): arrays of one example, ready to be stacked, instead of a triplet.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Triplet: ...


def task_of(*, content: bool, styles: bool) -> Task:
    """Return the task that has exactly these conditions."""
    return next(task for task, conditions in TASK_CONDITIONS.items() if conditions == (content, styles))


def check_words(prompt: Any, layout: Any, where: str) -> None:
    """Raise an InputError, prefixed with `where`, if the prompt or the layout is invalid."""
    if layout not in _LAYOUTS:
        raise InputError(f"{where}: layout is {layout!r}; use one of {', '.join(_LAYOUTS)}.")
    if not isinstance(prompt, str):
        raise InputError(f"{where}: the prompt must be text, not {type(prompt).__name__}.")
    if not prompt and layout == "shifted":
        raise InputError(f"{where}: a shifted layout needs a prompt that describes the target.")


def _yes(present: bool) -> str:
    return "present" if present else "absent"
