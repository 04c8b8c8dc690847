# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints between torch files and uso_jax: `python -m convert --help`.

The package is installed under the name uso_jax_convert, which is why its modules import each other relatively.
"""
