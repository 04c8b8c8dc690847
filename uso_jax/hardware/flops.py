# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""FLOPs of a function, counted in its jaxpr: two per multiply-add of matrix products and convolutions.

Unlike XLA's `cost_analysis`, the body of a scan counts once per iteration. Elementwise operations are ignored, as is
usual. Fused attention kernels are opaque, so trace with attention "xla". Rematerialised operations count each time they
run; trace with remat "none" for the FLOPs that the model needs.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def count_flops(function: Callable, *args: Any, loops: float = 1.0) -> float:
    """Return the FLOPs of one call, summed over all devices.

    Args:
      function: jitted or not.
      args: arrays or `jax.ShapeDtypeStruct`s.
      loops: trip count assumed for loops whose length depends on data, such as a reward's roll-out.
    """
    return _jaxpr(jax.make_jaxpr(function)(*args).jaxpr, loops)


def _jaxpr(jaxpr: Jaxpr, loops: float) -> float:
    return sum((_equation(equation, loops) for equation in jaxpr.eqns), 0.0)


def _equation(equation: JaxprEqn, loops: float) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    inner = [_jaxpr(jaxpr, loops) for value in params.values() for jaxpr in _jaxprs(value)]
    if name == "cond":
        return max(inner)
    times = {"scan": params.get("length"), "while": loops}.get(name, 1)
    if name == "shard_map":
        times = params["mesh"].size
    return float(times * sum(inner))


def _jaxprs(value: Any) -> list[Jaxpr]:
    values = value if isinstance(value, list | tuple) else [value]
    values = [item.jaxpr if isinstance(item, ClosedJaxpr) else item for item in values]
    return [item for item in values if isinstance(item, Jaxpr)]


def _dot(equation: JaxprEqn) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: JaxprEqn) -> float:
    params, kernel = equation.params, equation.invars[1].aval.shape
    outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
    # A transposed convolution does not multiply the zeros between its inputs.
    real = math.prod(params["lhs_dilation"]) * params["batch_group_count"]
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / outputs / real
