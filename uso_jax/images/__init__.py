# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Images in and out: decoding, files with their record, preprocessing, contact sheets."""
