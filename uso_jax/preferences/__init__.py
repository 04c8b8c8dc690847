# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Which of two images people prefer: verdicts on disk, which pairs to ask about, and what a scorer learns from them."""
