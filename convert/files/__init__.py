# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files: safetensors and torch, read tensor by tensor."""
