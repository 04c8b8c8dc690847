# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A strict place to run: 8 virtual CPU devices, no rank promotion by accident, float32 products in full."""

import collections
import contextlib
import ctypes
import gc
import os

import xla_flags

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags.flags(devices=8)}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from jax._src.interpreters import partial_eval

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

# Flax asks every tracer for its `sharding`; JAX refuses with a long account of its origin, which nobody reads and which
# takes half of the time in which a network's parameters are traced.
partial_eval.DynamicJaxprTracer._origin_msg = lambda self: ""


# Files of a few slow tests that last a minute or more each, most of them in processes that they start.
LONG = {
    "app/test_training_page",
    "convert/test_training_runs",
    "docs/test_notebook",
    "docs/test_tutorial",
    "scripts/test_benchmark",
    "training/test_contrastive",
    "training/test_klein",
    "training/test_long_runs",
    "training/test_processes",
    "training/test_rollouts",
}


@pytest.hookimpl(tryfirst=True)  # before `-m` takes any away
def pytest_collection_modifyitems(items):
    """Begin with the files that last longest, so that no worker is left alone with one of them."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    is_long = lambda path: f"{path.parent.name}/{path.stem}" in LONG
    items.sort(key=lambda item: (not is_long(item.path), -slow[item.path]))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """Let the garbage collector skip what is imported, which stays, and look seldom: it took a 16th of the time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


release_free_memory = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)


@pytest.fixture(scope="session")
def compiled(pytestconfig):
    """Return the directory of compiled programs that all test processes and later sessions share; see --cache-clear."""
    return pytestconfig.cache.mkdir("compiled")


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Return the memory of a module's compiled programs: they are not called again."""
    yield
    jax.clear_caches()
    gc.collect()
    release_free_memory(0)


@pytest.fixture(scope="module")
def cheap_compilation(compiled):
    """Compile a module's programs cheaply, as they run for milliseconds."""
    import tiny  # it imports what the process that only distributes tests does not need

    yield from tiny.compile_cheaply(compiled)


@pytest.fixture(autouse=True)
def patched_programs(request):
    """Keep the programs of tests that may patch what is traced to themselves."""
    import traced_once

    with traced_once.apart() if "monkeypatch" in request.fixturenames else contextlib.nullcontext():
        yield
