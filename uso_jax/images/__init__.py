# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Image decoding, references, files with records, preprocessing for encoders, contact sheets."""
