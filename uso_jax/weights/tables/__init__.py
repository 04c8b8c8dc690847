# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Names of transformers and adapters in public files, and the parameters that hold the same numbers."""
