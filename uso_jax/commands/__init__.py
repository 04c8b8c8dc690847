# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The command-line programs, one module each; `entry_points` starts them."""
