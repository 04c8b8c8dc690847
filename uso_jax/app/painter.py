# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the page draws with: a pipeline in this process, or a server."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from uso_jax.inference.about import About
from uso_jax.inference.records import Result
from uso_jax.inference.sampler import Progress


@runtime_checkable
class Painter(Protocol):
    """A `USOPipeline`, or a `ServiceClient`; requests are the painter's."""

    @property
    def about(self) -> About:
        """Facts of the weights."""

    @property
    def context(self) -> dict[str, Any]:
        """What decides an image besides its request."""

    def request(self, prompt: str = "", **values: Any) -> Any:
        """Read the references of one image, without generating it."""

    def generate(self, requests: Sequence[Any], *, progress: Progress | None = None) -> Result:
        """Generate the images of requests."""

    def encode_style(self, images: Sequence[Any]) -> Any:
        """Encode one style from one or more images."""


@runtime_checkable
class Styles(Protocol):
    """A `StyleLibrary`, or the styles of a server."""

    def names(self) -> list[str]:
        """Return the names of all styles."""

    def read(self, name: str) -> Any:
        """Return a style as a request takes it."""

    def write(self, name: str, style: Any) -> None:
        """Save a style under a new name."""
