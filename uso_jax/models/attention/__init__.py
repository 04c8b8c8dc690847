# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Attention: one function that selects a kernel, and the kernels."""
