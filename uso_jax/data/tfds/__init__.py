# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Triplets as a TensorFlow Datasets data set, written and read without TensorFlow."""
