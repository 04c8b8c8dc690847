# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A strict place to run: 8 virtual CPU devices, no rank promotion by accident, float32 products in full."""

import gc
import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from jax._src.interpreters import partial_eval

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

# Flax asks every tracer for its `sharding`; JAX refuses with a long account of its origin, which nobody reads and which
# takes half of the time in which a network's parameters are traced.
partial_eval.DynamicJaxprTracer._origin_msg = lambda self: ""

# The files that take minutes, longest first: whoever began one of them last would keep all others waiting.
LONG = (
    *(
        "training/test_reward",
        "training/test_fit",
        "training/test_long_runs",
        "training/test_reward_fit",
        "scripts/test_evaluate",
        "training/test_fault_tolerance",
    ),
    *(
        "training/test_reward_gradient",
        "inference/test_pipeline",
        "scripts/test_generate",
        "training/test_rewards",
        "training/test_precompute",
        "training/test_train",
    ),
    *(
        "training/test_mini",
        "scripts/test_train",
        "models/test_mutations",
        "training/test_guidance",
        "planning/test_plan",
        "app/test_app",
    ),
)


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.parent.name + "/" + item.path.stem, len(LONG)))


gc.freeze()  # what is imported stays, so collections need not look at it


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """Return the directory of compiled programs that all test processes share."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers
    (folder / "compiled").mkdir(exist_ok=True)
    return folder / "compiled"
