# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What makes the tests cheap leaves them strict: types are checked, and only equal programs are shared."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import traced_once
from jaxtyping import TypeCheckError

from uso_jax import flow


def test_arguments_and_results_of_another_type_are_refused():
    flow.pack(jnp.zeros((1, 2, 2, 3)))
    for wrong in (jnp.zeros((1, 2, 2)), jnp.zeros((1, 2, 2, 3), int), "latent"):
        with pytest.raises(TypeCheckError, match=r"the parameters of uso_jax\.flow\.pack"):
            flow.pack(wrong)
    with pytest.raises(TypeCheckError, match="patch"):
        flow.pack(jnp.zeros((1, 2, 2, 3)), patch="2")


def test_programs_are_shared_where_all_that_they_hold_is_equal():
    pack = lambda patch, **options: jax.jit(functools.partial(flow.pack, patch=patch), **options)
    assert pack(1) is not pack(1)
    with traced_once.traced_once():
        assert pack(1) is pack(1)
        assert len({id(one) for one in (pack(1), pack(2), pack(True), pack(1, donate_argnums=0))}) == 4
        held = lambda *numbers: jax.jit(functools.partial(flow.pack, np.array(numbers)))
        assert held(1, 2) is held(1, 2) is not held(1, 3)
        mine = lambda: jax.jit(lambda x: x)  # a test's own function
        assert mine() is not mine()
        shared = pack(1)
        with traced_once.apart():
            assert pack(1) is pack(1) is not shared
        assert pack(1) is shared
