# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""USO, unified style- and subject-driven image generation, in JAX."""

__version__ = "0.1.0.dev0"
