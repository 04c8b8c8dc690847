# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Conversion tables as bijections, and what they say about tensors that do not fit."""

import golden_files as golden
import ml_dtypes
import numpy as np
import pytest
from golden_files import CONFIG, tensors

from convert.tables.autoencoder import AUTOENCODER
from convert.tables.siglip import VISION
from uso_jax import params
from uso_jax.common.errors import InputError
from uso_jax.models.autoencoder import AutoEncoder, AutoEncoderConfig
from uso_jax.models.flux import Flux
from uso_jax.models.siglip import SiglipConfig, SiglipVision
from uso_jax.weights.tables.flux import LORA, PROJECTOR, TRANSFORMER
from uso_jax.weights.tables.table import to_flax, to_torch


def uso_shapes(part: str):
    """Return the shapes of the adapters ("/processor/"), the projector ("feature_embedder/"), or of the rest ("")."""
    own = ("/processor/", "feature_embedder/")
    inside = lambda path: part in path if part else not any(name in path for name in own)
    shapes = params.shapes(lambda rngs: Flux(golden.flux_config(), rngs=rngs))
    return {path: struct for path, struct in shapes.items() if inside(path)}


def siglip_shapes():
    return params.shapes(lambda rngs: SiglipVision(SiglipConfig(**CONFIG["siglip"]), rngs=rngs))


def autoencoder_shapes():
    sizes = {k: tuple(v) if isinstance(v, list) else v for k, v in CONFIG["autoencoder"].items() if k != "resolution"}
    return params.shapes(lambda rngs: AutoEncoder(AutoEncoderConfig(**sizes), rngs=rngs))


FAMILIES = {
    "flux": (TRANSFORMER, lambda: uso_shapes("")),
    "dit_lora": (LORA, lambda: uso_shapes("/processor/")),
    "projector": (PROJECTOR, lambda: uso_shapes("feature_embedder/")),
    "siglip": (VISION, siglip_shapes),
    "ae": (AUTOENCODER, autoencoder_shapes),
}


@pytest.mark.parametrize("dtype", (np.float32, ml_dtypes.bfloat16))
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip(family, dtype):
    if family == "ae" and not golden.HAS_AUTOENCODER:
        pytest.skip("this golden directory has no autoencoder")
    rows, shapes = FAMILIES[family][0], FAMILIES[family][1]()
    weights = {key: tensor.astype(dtype) for key, tensor in tensors(family).items()}
    flax = to_flax(rows, shapes, weights.items())
    assert {path: x.shape for path, x in flax.items()} == {path: struct.shape for path, struct in shapes.items()}
    back = list(to_torch(rows, shapes, flax))
    assert sorted(key for key, _ in back) == sorted(weights)
    for key, tensor in back:
        assert tensor.dtype == dtype and tensor.shape == weights[key].shape
        assert tensor.tobytes() == weights[key].tobytes(), key


def test_every_problem_is_reported_at_once():
    rows, shapes = LORA, uso_shapes("/processor/")
    given = list(tensors("dit_lora").items())
    (missing, _), (wrong, tensor), (double, again) = given[0], given[1], given[2]
    given = [("stray.weight", tensor), (wrong, tensor[:-1]), *given[2:], (double, again)]
    with pytest.raises(InputError) as caught:
        to_flax(rows, shapes, given)
    message = str(caught.value)
    for problem in (
        f"1 missing ({missing})",
        "1 stray (stray.weight)",
        f"1 given twice ({double})",
        f"1 of wrong shape ({wrong} is {[len(tensor) - 1, *tensor.shape[1:]]}, not {list(tensor.shape)})",
    ):
        assert problem in message


def test_a_parameter_without_a_row_is_our_mistake():
    with pytest.raises(AssertionError, match="no row of the table fills"):
        to_flax(TRANSFORMER, uso_shapes("") | uso_shapes("/processor/"), ())
