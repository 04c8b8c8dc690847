# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A client of `uso-serve` that is used like a pipeline, so that the web app can draw on another machine.

client = ServiceClient("http://tpu-vm:8000", key="...")
image = client.generate([client.request("a red fox", styles=["ink"])]).images[0]
"""

import base64
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from PIL import Image

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.common.http import HttpAnswer, HttpError, HttpServer
from uso_jax.images import decode, opening
from uso_jax.images.reference import Reference
from uso_jax.inference.about import About
from uso_jax.inference.canvas import read_mask
from uso_jax.inference.options import GenerationOptions
from uso_jax.inference.records import Result
from uso_jax.inference.sampler import Progress

_MAX_ANSWER = 256 << 20  # bytes
_REMEDY = "check that it is a uso-serve server"


class _Model(TypedDict):
    uso: dict[str, Any]


class _Models(TypedDict):
    data: list[_Model]


class _Names(TypedDict):
    data: list[str]


class _Image(TypedDict):
    b64_json: str
    record: dict[str, Any]


class _Images(TypedDict):
    data: list[_Image]


class _Error(TypedDict):
    error: dict[str, Any]


@dataclass(frozen=True, eq=False)
class RemoteRequest:
    """One image to ask for: the fields of the call. The server notes in the record what it changes."""

    values: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def identity(self, context: Mapping[str, Any]) -> str:
        """Return a short hash of the request and its context."""
        text = json.dumps([dict(self.values), dict(context)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]


class ServiceClient:
    """A server, by its address.

    Args:
      address: such as http://127.0.0.1:8000.
      key: of this client, if the server has keys. It is sent over https, or to this machine.
      seconds: for a request and its answer.

    Raises:
      InputError: the server cannot be reached, or is another one.
    """

    def __init__(self, address: str, key: str | None = None, seconds: float = 600.0):
        self._server = HttpServer(address, key=key, timeout=seconds, max_bytes=_MAX_ANSWER)
        facts = self._get("v1/models", _Models)["data"]
        try:
            self.about = About(**facts[0]["uso"])
        except (IndexError, TypeError) as error:
            raise InputError(f"{self._server.address} does not say what it draws; {_REMEDY}") from error

    @property
    def context(self) -> dict[str, Any]:
        """What decides an image besides its request, as far as it is known here."""
        return {"server": self._server.address, "name": self.about.name, "dtype": self.about.dtype}

    def styles(self) -> list[str]:
        """Return the names of the styles that are saved on the server."""
        return self._get("v1/styles", _Names)["data"]

    def request(
        self,
        prompt: str = "",
        *,
        contents: Sequence[Any] = (),
        styles: Sequence[Any] = (),
        image: Any = None,
        mask: Any = None,
        content_mask: Any = None,
        style_masks: Sequence[Any] | None = None,
        options: GenerationOptions | None = None,
    ) -> RemoteRequest:
        """Read the references of one image; a style may be the name of one that the server has.

        Raises:
          InputError: an image cannot be read.
        """
        options = options or GenerationOptions()
        values = {name: value for name, value in options.record().items() if value is not None}
        values |= {"keep_size": options.keep_size} if options.keep_size else {}
        send = lambda one: _encoded(Reference.of(one, opening.UPLOADS, options.reference_mode))
        values |= {"prompt": prompt, "content": list(map(send, contents))}
        values["styles"] = [one if isinstance(one, str) else send(one) for one in styles]
        values |= {} if image is None else {"image": send(image)}
        send_mask = lambda one, name: _encoded(read_mask(one, name, opening.UPLOADS))
        masks = {"mask": mask, "content_mask": content_mask}
        values |= {name: send_mask(one, name) for name, one in masks.items() if one is not None}
        if style_masks is not None:
            values["style_masks"] = [None if one is None else send_mask(one, "style_masks") for one in style_masks]
        return RemoteRequest(values)

    def generate(
        self, requests: Sequence[RemoteRequest], *, batch_size: int | None = None, progress: Progress | None = None
    ) -> Result:
        """Draw the images of requests, one after another.

        Raises:
          InputError: the server refuses, fails or cannot be reached.
        """
        images, records = [], []
        for number, request in enumerate(requests):
            tick = progress and functools.partial(progress, "Drawing on the server", number, len(requests))
            post = functools.partial(self._server.post, "v1/images/generations", request.values, tick)
            answer = self._checked(post, _Images)
            for made in answer["data"]:
                try:
                    data = base64.b64decode(made["b64_json"], validate=True)
                except ValueError as error:
                    raise InputError(f"the answer of {self._server.address} holds no image; {_REMEDY}") from error
                pixels, _ = decode.read_image(data, what="the server's image", limits=opening.FILES, mode="displayed")
                images.append(Image.fromarray(pixels))
                records.append(made["record"])
        return Result(images, records)

    def encode_style(self, images: Sequence[Any]) -> Any:
        """Refuse: a server encodes no styles to be kept."""
        raise InputError("styles are saved on the server: run uso-style encode there")

    def _get(self, path: str, schema: Any) -> Any:
        return self._checked(functools.partial(self._server.get, path), schema)

    def _checked(self, exchange: Callable[[], HttpAnswer], schema: Any) -> Any:
        where = f"the answer of {self._server.address}"
        try:
            answer = exchange()
        except HttpError as error:
            raise InputError(f"{self._server.address}: {error}; {_REMEDY}") from error
        if answer.status != 200:
            try:
                said = untrusted.json(answer.text, _Error, where)["error"].get("message")
            except InputError:
                said = f"status {answer.status}"
            raise InputError(f"{self._server.address}: {str(said)[:500]}")
        return untrusted.json(answer.text, schema, where, remedy=_REMEDY, limit=_MAX_ANSWER)


class ServerStyles:
    """The styles that are saved on a server; a request names them."""

    def __init__(self, client: ServiceClient):
        self._client = client

    def names(self) -> list[str]:
        """Return the names of all styles."""
        return self._client.styles()

    def read(self, name: str) -> str:
        """Return the name; the server reads it."""
        return name

    def write(self, name: str, style: Any) -> None:
        """Refuse: see `ServiceClient.encode_style`."""
        self._client.encode_style([style])


def _encoded(reference: Reference) -> str:
    return base64.b64encode(decode.encode_png(reference.pixels)).decode()
