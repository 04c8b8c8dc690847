# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Time of Pallas kernels, which the TPU compiler does not write into a compiled program.

The table has the instruction bundles, one a cycle, that libtpu 0.0.42 schedules for a register of 1,024 numbers: of
weights for attention (queries times keys), of projected tokens for the others. They are counted in the dump of
`LIBTPU_INIT_ARGS="--xla_jf_dump_to=DIR --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final"`, for one
image of 5,824 tokens with 24 heads of 128 channels. Waiting for memory is not included.
"""

import math

from uso_jax.hardware.operations import Operation

_REGISTER, _LANES = 1024, 128
_PER_REGISTER = {  # beginning of the kernel's name -> bundles by chip
    "splash_mha_fwd": {"v5e": 4.56, "v6e": 3.22, "v5p": 2.43},
    "splash_mha_dkv": {"v5e": 9.83, "v6e": 6.09, "v5p": 9.89},
    "attention_backward": {"v5e": 10.55, "v6e": 5.16},
    "attention": {"v5e": 4.03, "v6e": 1.73},
    "heads_first_backward": {"v5e": 10.11, "v6e": 8.37},
    "heads_first": {"v5e": 7.94, "v6e": 7.83},
}


def bundles(kernel: Operation, chip: str) -> float | None:
    """Return the bundles of one execution of a kernel; None: unknown."""
    name = next((name for name in _PER_REGISTER if kernel.label.startswith(name)), None)
    if name is None or (each := _PER_REGISTER[name].get(chip)) is None:
        return None
    return each * _numbers(name, kernel.operands) / _REGISTER


def _numbers(name: str, operands: tuple[tuple[int, ...], ...]) -> int:
    """Return the numbers of which a register holds 1,024, from the shapes of a kernel's operands."""
    arrays = [sizes for sizes in operands if len(sizes) >= 3 and sizes[-1] >= _LANES]  # not the grid of a mask
    if name.startswith("heads_first"):  # streams of tokens, which are wider than tables and heads
        width = max(sizes[-1] for sizes in arrays)
        return sum(math.prod(sizes) for sizes in arrays if sizes[-1] == width)
    queries, keys = arrays[:2]
    return math.prod(queries[:-1]) * keys[-2]
