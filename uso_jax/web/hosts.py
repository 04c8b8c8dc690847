# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The names by which browsers may call a server.

A web site can point its own name at this machine, and would then use a server that listens on localhost only.
"""

import ipaddress
import re
import socket
from collections.abc import Sequence

from uso_jax.web.requests import Refused

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::(\d{1,5}))?", re.ASCII)
_PORTS = {"http": 80, "https": 443}


class Hosts:
    """The names by which browsers may call this server."""

    def __init__(self, bound: str, allowed: Sequence[str] = ()):
        """List the names.

        Args:
          bound: the address that the server listens on.
          allowed: further names, such as those of a proxy in front of the server.
        """
        self._allowed = {name.lower().strip("[]") for name in allowed}
        self._own = {"localhost", bound.lower().strip("[]")}
        # No web site has an address as its name, so an address cannot be another site's.
        self._any_address = bound in ("0.0.0.0", "::", "[::]")
        if self._any_address:
            self._own |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    def allows(self, host: str) -> bool:
        """Return whether a Host header names this server."""
        name, _ = _split(host)
        if name in self._own | self._allowed:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or self._any_address

    def allows_origin(self, origin: str, host: str) -> bool:
        """Return whether a page from `origin` may use the server that it calls `host`."""
        scheme, _, rest = origin.partition("://")
        name, port = _split(rest)
        if scheme not in _PORTS or not name:
            return False
        default = _PORTS[scheme]
        own, own_port = _split(host)
        return (name, port or default) == (own, own_port or default) or name in self._allowed

    def check(self, scope: dict) -> None:
        """Raise Refused if a request calls another host, or comes from the page of one.

        Args:
          scope: of the request, as ASGI has it.
        """
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        called = headers.get("host", []) + headers.get("x-forwarded-host", [])
        if len(headers.get("host", [])) != 1 or not all(map(self.allows, called)):
            raise Refused(403, "this server is not known by that name; allow it with --allowed_hosts NAME")
        for origin in headers.get("origin", []):
            if not any(self.allows_origin(origin, host) for host in called):
                raise Refused(403, "another web site may not use this server; allow it with --allowed_hosts NAME")


def _split(host: str) -> tuple[str, int]:
    """Return the name and port of "name:port", with 0 for no port; ("", 0) for anything else."""
    found = _HOST.fullmatch(host)
    return (found[1].lower().strip("[]").rstrip("."), int(found[2] or 0)) if found else ("", 0)
