# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Networks, one per file: a frozen config and Flax NNX modules."""
