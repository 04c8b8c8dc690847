# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The image service: a queue in front of one pipeline, and OpenAI's image routes in front of the queue."""
