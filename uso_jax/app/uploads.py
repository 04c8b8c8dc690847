# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Images that come from a browser, read by this package alone, and only from where they were uploaded to."""

import abc
import dataclasses
import pathlib
from typing import NamedTuple

import gradio as gr

from uso_jax.common.errors import InputError
from uso_jax.images.files import Reference


class Upload(NamedTuple):
    """An uploaded file as it was sent, and what the user calls it."""

    path: str
    name: str

    def said(self, text: str) -> str:
        """Name the file in a message as the user knows it."""
        return text.replace(repr(self.path), repr(self.name)).replace(self.path, self.name)

    def read(self) -> Reference:
        """Read the image; messages and the record name it as the user does."""
        try:
            reference = Reference.of(self.path)
        except InputError as error:
            raise InputError(self.said(str(error))) from error
        return dataclasses.replace(reference, path=self.name, notes=tuple(map(self.said, reference.notes)))


class _NoStub(type(gr.Image)):
    """Make component classes without gradio's own metaclass, which writes a .pyi file beside their module."""

    def __new__(cls, name, bases, attributes):
        return abc.ABCMeta.__new__(cls, name, bases, attributes)


class ImageBox(gr.Image, metaclass=_NoStub):
    """An image box that hands on the uploaded file undecoded, so that all formats are read, and refused, in one way."""

    def get_block_name(self) -> str:
        return "image"

    async def async_move_resource_to_block_cache(self, url_or_file_path):
        if "://" in str(url_or_file_path):
            raise gr.Error("images are uploaded, not fetched from addresses", print_exception=False)
        return await super().async_move_resource_to_block_cache(url_or_file_path)

    def preprocess(self, payload):
        if payload is None:
            return None
        if payload.path is None:
            raise gr.Error("images are uploaded as files", print_exception=False)
        return Upload(payload.path, pathlib.PurePath(payload.orig_name or payload.path).name)
