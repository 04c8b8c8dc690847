# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Table of FLUX's autoencoder (black-forest-labs names)."""

from convert.table import CONV, NORM, Row

# fmt: off
_RESNET = (
    ("norm1",        NORM),
    ("conv1",        CONV),
    ("norm2",        NORM),
    ("conv2",        CONV),
    ("nin_shortcut", CONV),
)
_ATTENTION = (
    ("norm",     NORM),
    ("q",        CONV),
    ("k",        CONV),
    ("v",        CONV),
    ("proj_out", CONV),
)


def _same(name: str, kind) -> Row:
    return name, name.replace(".", "/"), kind


AUTOENCODER: tuple[Row, ...] = tuple(
    row
    for half, levels, resample in (("encoder", "down", "downsample"), ("decoder", "up", "upsample"))
    for row in (
        _same(f"{half}.conv_in", CONV),
        *(_same(f"{half}.{levels}.{{i}}.block.{{j}}.{name}", kind) for name, kind in _RESNET),
        _same(f"{half}.{levels}.{{i}}.{resample}.conv", CONV),
        *(_same(f"{half}.mid.{block}.{name}", kind) for block in ("block_1", "block_2") for name, kind in _RESNET),
        *(_same(f"{half}.mid.attn_1.{name}", kind) for name, kind in _ATTENTION),
        _same(f"{half}.norm_out", NORM),
        _same(f"{half}.conv_out", CONV),
    )
)
