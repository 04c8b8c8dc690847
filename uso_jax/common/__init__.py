# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What every package may use: errors, whole files, JSON files, progress bars, the --config flag."""
