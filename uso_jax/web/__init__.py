# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the web app and the image service share: addresses, host names and limits of requests."""
