# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Imports of weights that can be killed after a given piece."""

import time

from convert.__main__ import main
from uso_jax.weights.writer import Writer


def slowly(argv: list[str], chunks) -> None:
    """Run the command; pause after each piece and send a message."""
    write = Writer.write

    def slow(self, path, row, array):
        write(self, path, row, array)
        chunks.send("chunk")
        time.sleep(0.002)

    Writer.write = slow
    main(argv)
