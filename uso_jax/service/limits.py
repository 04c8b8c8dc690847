# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a client may ask of the service, and how long it waits."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from uso_jax.common.errors import InputError

MEGABYTE = 1 << 20
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


def _bound(default: int | float, doc: str) -> Any:
    """Return a field that the operator may set; `doc` is its help."""
    return dataclasses.field(default=default, metadata={"doc": doc})


@dataclass(frozen=True)
class Limits:
    """Bounds of requests and of the queue."""

    batch: int = _bound(4, "images drawn at once, at most")
    wait: float = _bound(0.05, "seconds that an image waits for others to share a batch with")
    queue: int = _bound(64, "images that wait, at most")
    seconds: float = _bound(600.0, "from a request to its last image, at most")
    images: int = _bound(8, "of one request, at most")
    references: int = _bound(8, "content and style images of one request, at most")
    steps: int = _bound(100, "sampling steps, at most")
    pixels: int = _bound(4 * MEGABYTE, "of an image, at most")
    body: int = 64 * MEGABYTE  # bytes of a request
    body_seconds: float = 60.0  # in which a request must arrive

    def __post_init__(self):
        for name, value in vars(self).items():
            if value <= 0 and name != "wait":
                raise InputError(f"--{name} must be positive, not {value}")
        if self.images > self.queue:
            raise InputError(f"--images {self.images} must not exceed --queue {self.queue}, or they would never fit")
        if not 0 <= self.wait < self.seconds:
            raise InputError(f"--wait must be from 0 to below --seconds {self.seconds:g}, not {self.wait:g}")


BOUNDS: dict[str, tuple[float, str]] = {
    item.name: (item.default, item.metadata["doc"]) for item in dataclasses.fields(Limits) if item.metadata
}
"""Default and help of each bound that the operator may set."""


def read_size(text: Any) -> tuple[int, int] | None:
    """Return (width, height) of "1024x768"; None for anything else."""
    found = _SIZE.fullmatch(text) if isinstance(text, str) else None
    return found and (int(found[1]), int(found[2]))
