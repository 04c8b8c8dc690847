# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Shared basics: errors, atomic file writes, JSON files, progress bars and the --config flag."""
