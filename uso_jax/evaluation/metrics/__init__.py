# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation metrics, one file per kind; `base` has the registry."""
