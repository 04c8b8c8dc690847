# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The socket of a server."""

import socket

import pytest

from uso_jax.common.errors import InputError
from uso_jax.web.listening import PORTS, address_of, listening


def test_the_first_free_port_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as busy:
        number = busy.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {number}.*choose another"), listening("127.0.0.1", number, 0):
            pass
        with listening("127.0.0.1", None, number) as listener:
            assert number < listener.getsockname()[1] < number + PORTS


@pytest.mark.parametrize(
    "host, port", [("no.such.host.invalid", 0), ("127.0.0.1", 70_000), ("203.0.113.1", 0), ("\ud800", 0)]
)
def test_addresses_that_cannot_be_used(host, port):
    with pytest.raises(InputError, match="choose another --host or --port"), listening(host, port, 0):
        pass


def test_addresses():
    assert address_of("0.0.0.0", 80) == "http://localhost:80/" and address_of("::1", 80) == "http://[::1]:80/"
