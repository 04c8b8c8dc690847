# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Memory, FLOPs, traffic and time of training and sampling on devices that are not attached."""
