# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a machine and a configuration lack, found before a run: `uso-doctor`."""
