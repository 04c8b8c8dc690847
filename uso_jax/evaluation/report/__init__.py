# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation reports: an HTML page with charts and contact sheets."""
