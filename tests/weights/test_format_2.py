# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Components written before manifest format 3 load, and keep their fingerprints.

format_2/ was written by that program: column-major chunks, several chunks of a parameter, a scalar, and kernels in
each quantised format with groups of 16 inputs.
"""

import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from uso_jax import weights
from uso_jax.common.errors import InputError
from uso_jax.weights import quantization
from uso_jax.weights.pretrained import fingerprint

DIR = pathlib.Path(__file__).parent / "format_2"
CASES = {  # component: its quantised format, the dtype of its stack, its fingerprint
    "t5": ("int4", np.float32, "6db131004f5cfa65"),
    "clip": ("fp8", ml_dtypes.bfloat16, "44f25b3ada3b3c67"),
    "siglip": ("int8", np.float16, "596d5018bb3c36e3"),
}


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    monkeypatch.setattr(quantization, "GROUP", 16)


@pytest.mark.parametrize("component", CASES)
def test_every_value(component):
    mode, dtype, _ = CASES[component]
    kernel = np.sin(np.arange(2 * 32 * 6, dtype=np.float32)).reshape(2, 32, 6)
    numbers, scales = quantization.quantise(kernel, mode)
    if mode == "int4":
        numbers = np.stack([numbers << 4 >> 4, numbers >> 4], -1).reshape(kernel.shape)
    want = {
        "stack/kernel": (np.arange(3 * 4 * 6, dtype=np.float32).reshape(3, 4, 6) / 7).astype(dtype),
        "rows": np.arange(10 * 8, dtype=np.float32).reshape(10, 8),
        "scalar": np.float16(3).reshape(()),
        "bias": (np.arange(5) / 3).astype(ml_dtypes.bfloat16),
        "block/kernel": numbers.astype(np.float32) * np.repeat(scales, 32 // scales.shape[1], 1),
    }
    found = weights.read(DIR, component)
    assert found.keys() == want.keys()
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
    shapes = weights.shapes(DIR, component)
    shapes["stack/kernel"] = jax.ShapeDtypeStruct((3, 4, 6), dtype, sharding=NamedSharding(mesh, P(None, "x", "y")))
    loaded = weights.load(DIR, component, shapes)
    assert loaded["stack/kernel"].addressable_shards[0].data.shape == (3, 2, 3)
    for path, value in want.items():
        assert found[path].dtype == loaded[path].dtype == value.dtype
        np.testing.assert_array_equal(found[path], value)
        np.testing.assert_array_equal(loaded[path], value)


@pytest.mark.parametrize("component", CASES)
def test_fingerprints(component):
    """Runs and precomputed features have recorded them."""
    assert fingerprint(DIR / component) == CASES[component][2]


def test_a_header_that_contradicts_the_manifest(tmp_path):
    shutil.copytree(DIR, tmp_path / "w")
    header = tmp_path / "w" / "t5" / "params" / "rows" / ".zarray"
    for old, new in (('"chunks":[5', '"chunks":[0'), ('"shape":[10', '"shape":[11'), ('"order":"C"', '"order":"A"')):
        text = header.read_text()
        assert old in text
        header.write_text(text.replace(old, new))
        with pytest.raises(InputError, match="contradicts the manifest"):
            weights.read(tmp_path / "w", "t5")
        header.write_text(text)
    assert weights.read(tmp_path / "w", "t5").keys()
