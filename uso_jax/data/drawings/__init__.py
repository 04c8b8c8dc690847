# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Procedural drawings: subjects, styles and triplets with exact ground truth."""
