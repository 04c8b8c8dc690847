# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The key-value store of JAX's coordinator, through which processes exchange small texts outside of the devices."""

import socket
from typing import Any

import jax

_FOLDER = "uso_jax/"


class Unreachable(Exception):
    """The coordinator does not answer."""


class Client:
    """Writes and reads texts by key. Every method raises Unreachable without a coordinator."""

    def __init__(self, client: Any, address: str):
        self._client, self._address = client, address

    def is_there(self) -> bool:
        """Return whether something listens at the coordinator's address."""
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, ValueError):
            return False
        return True

    def set(self, key: str, text: str, overwrite: bool = False) -> None:
        """Write a text; without `overwrite`, the first one of a key stays."""
        try:
            self._client.key_value_set(_FOLDER + key, text, allow_overwrite=overwrite)
        except jax.errors.JaxRuntimeError as error:
            if not str(error).startswith("ALREADY_EXISTS"):
                raise Unreachable(_first_line(error)) from error

    def all(self, folder: str) -> dict[str, str]:
        """Return all texts whose key begins with `folder`, by the rest of their keys."""
        try:
            found = self._client.key_value_dir_get(_FOLDER + folder)
        except jax.errors.JaxRuntimeError as error:
            raise Unreachable(_first_line(error)) from error
        return {key.removeprefix(_FOLDER + folder): text for key, text in found}

    def wait_for(self, key: str, seconds: float) -> str:
        """Return a text as soon as some process has written it; raise TimeoutError if none has in time."""
        try:
            return self._client.blocking_key_value_get(_FOLDER + key, round(seconds * 1000))
        except jax.errors.JaxRuntimeError as error:
            if str(error).startswith("DEADLINE_EXCEEDED"):
                raise TimeoutError(_first_line(error)) from error
            raise Unreachable(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
