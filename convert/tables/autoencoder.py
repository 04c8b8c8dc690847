# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Tables of the autoencoders of FLUX.1 and FLUX.2 (black-forest-labs' and diffusers' names)."""

from uso_jax.weights.tables.table import CONV, CONV_1X1, NORM, PARAM, Row

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

_RESNET_DIFFUSERS = (
    ("norm1",         "norm1",        NORM),
    ("conv1",         "conv1",        CONV),
    ("norm2",         "norm2",        NORM),
    ("conv2",         "conv2",        CONV),
    ("conv_shortcut", "nin_shortcut", CONV),
)
_ATTENTION_DIFFUSERS = (
    ("group_norm", "norm",     NORM),
    ("to_q",       "q",        CONV_1X1),
    ("to_k",       "k",        CONV_1X1),
    ("to_v",       "v",        CONV_1X1),
    ("to_out.0",   "proj_out", CONV_1X1),
)

# diffusers counts the decoder's levels from the lowest resolution.
AUTOENCODER_DIFFUSERS: tuple[Row, ...] = tuple(
    row
    for half, blocks, levels, resamplers, resample in (
        ("encoder", "down_blocks.{i}", "down/{i}", "downsamplers", "downsample"),
        ("decoder", "up_blocks.{r}",   "up/{i}",   "upsamplers",   "upsample"),
    )
    for row in (
        (f"{half}.conv_in",                       f"{half}/conv_in",                   CONV),
        *((f"{half}.{blocks}.resnets.{{j}}.{a}",  f"{half}/{levels}/block/{{j}}/{b}",  kind) for a, b, kind in _RESNET_DIFFUSERS),
        (f"{half}.{blocks}.{resamplers}.0.conv",  f"{half}/{levels}/{resample}/conv",  CONV),
        *((f"{half}.mid_block.resnets.{i}.{a}",   f"{half}/mid/block_{i + 1}/{b}",     kind)
          for i in range(2) for a, b, kind in _RESNET_DIFFUSERS),
        *((f"{half}.mid_block.attentions.0.{a}",  f"{half}/mid/attn_1/{b}",            kind) for a, b, kind in _ATTENTION_DIFFUSERS),
        (f"{half}.conv_norm_out",                 f"{half}/norm_out",                  NORM),
        (f"{half}.conv_out",                      f"{half}/conv_out",                  CONV),
    )
)

_BATCH_NORM: tuple[Row, ...] = (("bn.running_mean", "bn/mean", PARAM), ("bn.running_var", "bn/var", PARAM))

AUTOENCODER2: tuple[Row, ...] = (
    ("encoder.quant_conv",      "quant_conv",      CONV),
    ("decoder.post_quant_conv", "post_quant_conv", CONV),
    *AUTOENCODER,
    *_BATCH_NORM,
)

AUTOENCODER2_DIFFUSERS: tuple[Row, ...] = (
    ("quant_conv",      "quant_conv",      CONV),
    ("post_quant_conv", "post_quant_conv", CONV),
    *AUTOENCODER_DIFFUSERS,
    *_BATCH_NORM,
)
