# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Images that a browser uploads: only this package decodes them, and only from the upload folder."""

import abc
import dataclasses
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import gradio as gr

from uso_jax.common.errors import InputError
from uso_jax.images import opening
from uso_jax.images.decode import ReferenceMode
from uso_jax.images.reference import Reference
from uso_jax.inference.canvas import read_mask


class Upload(NamedTuple):
    """An uploaded file as it was sent, and the user's name for it."""

    path: str
    name: str

    def renamed(self, text: str) -> str:
        """Replace the server's path in a message by the user's name for the file."""
        return text.replace(repr(self.path), repr(self.name)).replace(self.path, self.name)

    def read(self, mode: ReferenceMode = "displayed") -> Reference:
        """Read the image in a mode of `Reference.of`. Messages and the record have the user's name for it.

        Raises:
          InputError: the file is not an image, or is too large.
        """
        return self._read(lambda: Reference.of(self.path, opening.UPLOADS, mode))

    def mask(self) -> Reference:
        """Read the image as a mask, as `read`."""
        return self._read(lambda: read_mask(pathlib.Path(self.path), limits=opening.UPLOADS))

    def _read(self, function: Callable[[], Reference]) -> Reference:
        if not pathlib.Path(self.path).is_file():
            raise InputError(f"image {self.name!r} is no longer on the server; upload it again")
        try:
            reference = function()
        except InputError as error:
            raise InputError(self.renamed(str(error))) from error
        return dataclasses.replace(reference, path=self.name, notes=tuple(map(self.renamed, reference.notes)))


class _NoStub(type(gr.Image)):
    """A metaclass that skips gradio's, which would write a .pyi file beside the module of a component."""

    def __new__(cls, name, bases, attributes):
        return abc.ABCMeta.__new__(cls, name, bases, attributes)


class ImageBox(gr.Image, metaclass=_NoStub):
    """An image box that passes on the uploaded file undecoded, so that this package reads or refuses all formats."""

    def get_block_name(self) -> str:
        return "image"

    async def async_move_resource_to_block_cache(self, url_or_file_path):
        if "://" in str(url_or_file_path):
            raise gr.Error("images must be uploaded; they are not fetched from addresses", print_exception=False)
        # Gradio copies the file to its cache next, from where it can be downloaded. Uploads lie there already, and
        # examples beside it.
        folder = pathlib.Path(self.GRADIO_CACHE).resolve().parent
        if not pathlib.Path(url_or_file_path).resolve().is_relative_to(folder):
            raise gr.Error("images must be uploaded; other files are not read", print_exception=False)
        return await super().async_move_resource_to_block_cache(url_or_file_path)

    def preprocess(self, payload):
        if payload is None:
            return None
        if payload.path is None:
            raise gr.Error("images must be uploaded as files", print_exception=False)
        return Upload(payload.path, pathlib.PurePath(payload.orig_name or payload.path).name)
