# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Compiled programs on disk, so that the next process does not compile them again."""

import jax
from jax.experimental.compilation_cache import compilation_cache

from uso_jax.common import user_folders


def keep_compiled_programs() -> None:
    """Turn on JAX's persistent compilation cache in the user's cache folder, unless JAX has a folder already.

    JAX's keys depend on the devices, on CPUs also on their instructions, so machines may share a home.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(user_folders.cache() / "compiled"))
        # The encoders have many programs, each quick to compile; by default JAX would not keep them.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        compilation_cache.reset_cache()
