# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The address that a server listens on."""

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Iterator

import uvicorn

from uso_jax.common.errors import InputError

PORTS = 100  # that are tried from the first one


class Server(uvicorn.Server):
    """A server that prints its address when it is ready."""

    address: str

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(f"USO at {self.address}", flush=True)


@contextlib.contextmanager
def listening(host: str, port: int | None, first: int) -> Iterator[socket.socket]:
    """Open the socket of a server.

    Args:
      host: the address.
      port: by default the first free one from `first`.
      first: see `port`.

    Raises:
      InputError: the address cannot be used, or no port is free.
    """
    numbers = range(first, first + PORTS) if port is None else [port]
    if not 0 <= numbers[0] < 1 << 16:
        raise InputError(f"there is no port {port}; choose another --host or --port")
    for number in numbers:
        try:
            family, _, _, _, address = socket.getaddrinfo(host.strip("[]"), number, type=socket.SOCK_STREAM)[0]
            listener = socket.create_server(address[:2], family=family)
            break
        except (OSError, UnicodeError) as error:
            if getattr(error, "errno", None) != errno.EADDRINUSE or number == numbers[-1]:
                raise InputError(
                    f"cannot listen on {host} port {number}: {error}; choose another --host or --port"
                ) from error
    with listener:
        yield listener


def is_local(host: str) -> bool:
    """Return whether an address to listen on is reached from this machine only."""
    name = host.strip("[]")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def address_of(host: str, port: int) -> str:
    """Return the URL of a server."""
    name = "localhost" if host in ("0.0.0.0", "::", "[::]") else host
    return f"http://[{name}]:{port}/" if ":" in name and not name.startswith("[") else f"http://{name}:{port}/"
