# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Vision-language models: an HTTP client, and judges for evaluation."""
