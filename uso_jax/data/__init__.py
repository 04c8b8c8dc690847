# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Where triplets come from (procedural, emoji, JSON) and how they become batches."""
