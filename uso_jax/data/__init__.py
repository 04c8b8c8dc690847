# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Sources of training triplets (drawings, emoji, files) and the input pipeline that batches them."""
