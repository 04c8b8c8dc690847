# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The weights of tokens and examples in the flow-matching loss."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from uso_jax.common.errors import InputError
from uso_jax.models.uso import USO, Inputs
from uso_jax.training import preflight
from uso_jax.training.objectives import flow_matching
from uso_jax.training.stage import StageConfig

ROWS, COLUMNS = 2, 3


class Still(USO):
    """A model that predicts no movement, so the error is the squared velocity of each token."""

    def __init__(self):
        pass

    def velocity(self, params, inputs, x_t, t, guidance, style=None):
        return jnp.zeros_like(x_t)


def test_weights_of_tokens_and_examples():
    stage = StageConfig("a", outside_mask=0.25)
    mask = np.zeros((2, ROWS, COLUMNS), np.float32)
    mask[0, :, 0], mask[1, 1, 2] = 1, 0.5
    expected = np.full((2, ROWS * COLUMNS), 0.25)
    expected[0, [0, 3]], expected[1, 5] = 1, 0.625
    batch = {"mask": jnp.asarray(mask)}
    assert np.allclose(flow_matching.weights(stage, batch), expected)
    batch["loss_weight"] = jnp.asarray([1.0, 3.0])
    assert np.allclose(flow_matching.weights(stage, batch), expected * [[1], [3]])
    assert np.allclose(flow_matching.weights(stage, {"loss_weight": jnp.asarray([1.0, 3.0])}), [[1], [3]])
    assert flow_matching.weights(stage, {}) is None


def test_the_loss_is_the_mean_of_weighted_errors():
    b, tokens, depth = 2, ROWS * COLUMNS, 4
    stage = StageConfig("a", outside_mask=0.0)
    x0 = jnp.asarray(np.random.default_rng(0).standard_normal((b, tokens, depth)), jnp.float32)
    draws = flow_matching.Draws(jnp.zeros_like(x0), jnp.full(b, 0.5), *(jnp.zeros(b, bool),) * 4)
    inputs = Inputs(jnp.zeros((b, 1, 1)), None, jnp.zeros((1, tokens, 3)))
    mask = np.zeros((b, ROWS, COLUMNS), np.float32)
    mask[0, 0, 0] = mask[1, 1, 1] = 1
    weights = flow_matching.weights(stage, {"mask": jnp.asarray(mask), "loss_weight": jnp.asarray([1.0, 2.0])})
    error = lambda *weights: float(flow_matching.error({}, Still(), stage, x0, inputs, draws, *weights))
    squares = np.square(np.asarray(x0))
    assert error() == pytest.approx(squares.mean(), rel=1e-6)
    counted = squares[0, 0].sum() + 2 * squares[1, 4].sum()
    assert error(weights) == pytest.approx(counted / squares.size, rel=1e-6)


def test_settings_that_do_not_fit(tmp_path):
    with pytest.raises(InputError, match="outside_mask is for the loss 'flow_matching'"):
        StageConfig("a", loss="guidance", outside_mask=0.5)
    with pytest.raises(InputError, match="outside_mask must lie between 0 and 1"):
        StageConfig("a", outside_mask=-1.0)
    with pytest.raises(InputError, match=r"correct --config\.data\.prior\.path"):
        preflight.check_data(tiny.config("joint", changes={"data.prior.path": str(tmp_path / "none")}))
    weighed = {"data.prior.path": str(tmp_path), "data.prior.loss_weight": 0.5}
    with pytest.raises(InputError, match=r"prior\.loss_weight is for the loss 'flow_matching'"):
        preflight.check_stages(tiny.config("joint", changes=weighed, loss="guidance"))
