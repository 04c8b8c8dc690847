# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The command-line programs, one module each; `entry_points` starts them."""

import os

# Messages of XLA's C++ code, such as "Very slow compile?", would come between lines of progress. Its errors arrive as
# exceptions. The variable is read once, when jaxlib is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
