# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Accelerator data, FLOP counting, collective traffic, malloc settings, compilation cache and multi-host start-up."""
