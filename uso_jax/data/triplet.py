# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The canonical training record that every source yields and the pipeline reads.

Prompt convention: "" means "keep the layout, only restyle" and is allowed where the layout is preserved; where the
layout is shifted, the prompt is a natural sentence.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np

from uso_jax.common.errors import InputError

Task = Literal["subject", "style", "style_subject", "text"]
Layout = Literal["preserved", "shifted"]

# Which conditions each task carries: (content, styles).
CONDITIONS: dict[str, tuple[bool, bool]] = {
    "subject": (True, False),
    "style": (False, True),
    "style_subject": (True, True),
    "text": (False, False),
}


def check_words(prompt: Any, layout: Any, where: str) -> None:
    """Raise an InputError, which says where, unless prompt and layout are what a triplet may have."""
    if layout not in get_args(Layout):
        raise InputError(f"{where}: layout is {layout!r}; use one of {', '.join(get_args(Layout))}.")
    if not isinstance(prompt, str):
        raise InputError(f"{where}: the prompt must be text, not {type(prompt).__name__}.")
    if not prompt and layout == "shifted":
        raise InputError(f"{where}: a shifted layout needs a prompt; say what the target shows.")


@dataclass(frozen=True, eq=False)
class Triplet:
    """A content image, style images and the target that joins them.

    Images are uint8 [h, w, 3], of any size; only a triplet that is to be generated from has no target. `task` is a Task
    and `layout` a Layout. `meta` holds ground truth where the
    source knows it (subject, style, pose); of it, training reads only meta["labels"], for descriptors and judges.
    `key` is unique within the source. Wrong values are an InputError, also without a type checker.
    """

    prompt: str
    content: np.ndarray | None
    styles: tuple[np.ndarray, ...]
    target: np.ndarray | None
    task: str
    layout: str
    key: str
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.task not in CONDITIONS:
            raise InputError(f"triplet {self.key!r}: task is {self.task!r}; use one of {', '.join(CONDITIONS)}.")
        check_words(self.prompt, self.layout, f"triplet {self.key!r}")
        has = (self.content is not None, bool(self.styles))
        if has != CONDITIONS[self.task]:
            raise InputError(
                f"triplet {self.key!r}: task {self.task!r} wants content {_yes(CONDITIONS[self.task][0])} and style"
                f" {_yes(CONDITIONS[self.task][1])}, but content is {_yes(has[0])} and style {_yes(has[1])}."
            )
        for name, image in self._images():
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
                raise InputError(
                    f"triplet {self.key!r}: the {name} image is {image.dtype} {list(image.shape)};"
                    " images are uint8 [height, width, 3]."
                )

    def _images(self):
        if self.content is not None:
            yield "content", self.content
        for style in self.styles:
            yield "style", style
        if self.target is not None:
            yield "target", self.target


def task_of(*, content: bool, styles: bool) -> Task:
    """Name the task that has these conditions."""
    return next(task for task, conditions in CONDITIONS.items() if conditions == (content, styles))


def _yes(present: bool) -> str:
    return "present" if present else "absent"


Tokenize = Callable[[str], dict[str, np.ndarray]]


@runtime_checkable
class TripletSource(Protocol):
    """Random access to triplets.

    A source may have `sizes()`, int32 [n, 4]: (height, width) of all targets and content images, 0 where unknown. One
    that has `fitted(index, target, content, style)` resizes by these functions while it decodes, which is faster. One
    that has `example(index, content_size, num_styles)` gives that instead of a triplet: arrays of one example, ready to
    be stacked, whose sizes are what `sizes()` says.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Triplet: ...
