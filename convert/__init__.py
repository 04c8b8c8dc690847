# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints between torch files and uso_jax: `python -m convert --help`."""
