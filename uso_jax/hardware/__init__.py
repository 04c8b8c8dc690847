# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Chips, operations, collectives, memory allocation and processes."""
