# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From options and references to images: options, request, batch, sampler, pipeline; files of styles and of jobs."""
