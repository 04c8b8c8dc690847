# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Imports of weights that can be killed at a given chunk."""

import time

from convert.__main__ import main
from uso_jax.weights import zarr_store


def slowly(argv: list[str], chunks) -> None:
    """Run the command; pause after each chunk and send a message."""
    write = zarr_store.Writer.write

    def slow(self, path, row, array):
        write(self, path, row, array)
        chunks.send("chunk")
        time.sleep(0.002)

    zarr_store.Writer.write = slow
    main(argv)
