# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Quantised kernels and their products: scaled inside the product, and products in 8 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from uso_jax.models.layers import quantized_kernel
from uso_jax.models.layers.linear import Linear
from uso_jax.models.layers.quantized_kernel import QuantizedKernel, quantize_tokens
from uso_jax.weights import quantization

INPUTS, OUTPUTS = 64, 24
EIGHT_BITS = ("int8", "fp8")


def kernel(mode="int8", **options) -> QuantizedKernel:
    """Return a quantised kernel; int4 has four groups."""
    x = np.random.default_rng(0).normal(size=(INPUTS, OUTPUTS)).astype(np.float32)
    x[:, 3] *= 100
    numbers, scales = quantization.quantise(x, mode)
    if mode == "int4":
        numbers = np.stack([numbers << 4 >> 4, numbers >> 4], -1).reshape(INPUTS, OUTPUTS)
    return QuantizedKernel(jnp.asarray(numbers), jnp.asarray(scales), **options)


def layer(of: QuantizedKernel, bias=True) -> Linear:
    made = Linear(INPUTS, OUTPUTS, use_bias=bias, dtype=of.dtype, rngs=nnx.Rngs(0))
    made.kernel.set_value(of)
    if bias:
        made.bias.set_value(jnp.linspace(-3, 3, OUTPUTS))
    return made


def tokens(dtype=jnp.float32):
    x = np.random.default_rng(1).normal(size=(2, 5, INPUTS)) * np.array([1, 30])[:, None, None]
    return jnp.asarray(x, dtype)


@pytest.fixture(autouse=True)
def groups(monkeypatch):
    monkeypatch.setattr(quantization, "GROUP", 16)


def equations(function, *arguments):
    return jax.make_jaxpr(function)(*arguments).jaxpr.eqns


def test_a_kernel_is_the_product_of_its_groups():
    rng = np.random.default_rng(0)
    numbers, scales = rng.integers(-7, 8, (2, 6, 4)).astype(np.int8), rng.random((2, 3, 4)).astype(np.float32)
    got = QuantizedKernel(jnp.asarray(numbers), jnp.asarray(scales))[...]
    np.testing.assert_array_equal(got, numbers * np.repeat(scales, 2, axis=1))


# ---------------------------------------------------------------------------------------------------- scaled inside


@pytest.mark.parametrize("mode", quantization.FORMATS)
def test_a_layer_equals_that_of_the_kernel_scaled_before(mode):
    one, x = kernel(mode), tokens()
    assert len(one.scales) == (4 if mode == "int4" else 1)
    plain = nnx.Linear(INPUTS, OUTPUTS, rngs=nnx.Rngs(0))
    plain.kernel.set_value(one[...])
    plain.bias.set_value(layer(one).bias[...])
    np.testing.assert_allclose(layer(one)(x), plain(x), rtol=1e-5, atol=1e-4)
    gradient = lambda made: jax.vjp(made, x)[1](jnp.sin(plain(x)))[0]
    want = gradient(plain)
    np.testing.assert_allclose(gradient(layer(one)), want, rtol=1e-5, atol=1e-5 * jnp.abs(want).max())


@pytest.mark.parametrize("mode", EIGHT_BITS)
def test_bfloat16_rounds_no_more_than_a_kernel_scaled_before(mode):
    one, x = kernel(mode, dtype=jnp.bfloat16), tokens(jnp.bfloat16)
    want = np.asarray(x, np.float64) @ (np.asarray(one.numbers, np.float64) * np.asarray(one.scales, np.float64))
    error = lambda got: np.sqrt(np.mean(((np.asarray(got, np.float64) - want) / want.std((0, 1))) ** 2))
    after, before = layer(one, bias=False)(x), x @ one[...]
    assert after.dtype == jnp.bfloat16
    assert error(after) < 1.1 * error(before) < 0.01


@pytest.mark.parametrize("mode", quantization.FORMATS)
def test_only_groups_write_a_kernel(mode):
    """A barrier would keep XLA from scaling the numbers inside the product."""
    found = {eqn.primitive.name for eqn in equations(kernel(mode).multiply, tokens())}
    assert ("optimization_barrier" in found) == (mode == "int4")


# ---------------------------------------------------------------------------------------------------- in 8 bits


@pytest.mark.parametrize("mode", EIGHT_BITS)
def test_tokens_are_quantised_one_by_one(mode):
    x = tokens().at[0, 2].set(0)
    numbers, scales = quantize_tokens(x, quantization.FORMATS[mode][0])
    assert numbers.dtype == quantization.FORMATS[mode][0] and scales.shape == (2, 5, 1)
    largest = quantization.FORMATS[mode][1]
    np.testing.assert_array_equal(
        np.abs(np.asarray(numbers, np.float32)).max(-1), largest * (np.arange(10) != 2).reshape(2, 5)
    )
    error = np.abs(np.asarray(numbers, np.float32) * scales - x)
    bound = np.maximum(np.abs(x) * 2**-4, scales * 2**-10) if mode == "fp8" else scales / 2
    assert np.all(error <= bound * (1 + 1e-5))


@pytest.mark.parametrize(("mode", "bound"), (("int8", 0.015), ("fp8", 0.06)))
def test_the_product_in_8_bits(mode, bound):
    one, x = kernel(mode, in_8_bits=True), tokens()
    numbers, scales = quantize_tokens(x, one.numbers.dtype)
    exact = np.asarray(numbers, np.float64) @ np.asarray(one.numbers, np.float64)
    want = exact * np.asarray(scales, np.float64) * np.asarray(one.scales, np.float64)
    got = one.multiply(x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    whole = kernel(mode).multiply(x)
    error = jnp.sqrt((jnp.square(got - whole).mean((0, 1)) / jnp.square(whole).mean((0, 1))).mean())
    assert 1e-3 < error < bound


@pytest.mark.parametrize(("mode", "total"), (("int8", jnp.int32), ("fp8", jnp.float32)))
def test_accelerators_multiply_the_numbers(mode, total, monkeypatch):
    monkeypatch.setattr(quantized_kernel, "platform", lambda: "tpu")
    (dot,) = (eqn for eqn in equations(kernel(mode, in_8_bits=True).multiply, tokens()) if "dot" in eqn.primitive.name)
    assert {x.aval.dtype for x in dot.invars} == {quantization.FORMATS[mode][0]}
    assert dot.outvars[0].aval.dtype == total


@pytest.mark.parametrize("mode", EIGHT_BITS)
def test_vectors_keep_their_precision(mode):
    x = tokens()[:, 0]
    np.testing.assert_array_equal(kernel(mode, in_8_bits=True).multiply(x), kernel(mode).multiply(x))
