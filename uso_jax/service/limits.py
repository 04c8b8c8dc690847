# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a client may ask of the service, and how long it waits."""

from dataclasses import dataclass

from uso_jax.common.errors import InputError

MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds of requests and of the queue."""

    batch: int = 4  # images drawn at once, at most
    wait: float = 0.05  # seconds that an image waits for others to share a batch with
    queue: int = 64  # images that wait, at most
    seconds: float = 600.0  # from a request to its last image, at most
    images: int = 8  # of one request
    references: int = 8  # content and style images of one request
    steps: int = 100  # sampling steps
    pixels: int = 4 * MEGABYTE  # of an image
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
