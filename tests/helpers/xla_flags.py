# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""XLA_FLAGS of the tests and of the processes that they start."""

import importlib.metadata


def flags(devices: int = 1) -> str:
    """Return the flags for a number of virtual CPU devices and for programs that are compiled quickly."""
    chosen = f"--xla_force_host_platform_device_count={devices}"
    # The MLIR emitters of fused loops take almost half of the compilation. Later releases of jaxlib have no others, and
    # XLA ends a process whose flags it does not know.
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        chosen += " --xla_cpu_use_fusion_emitters=false"
    return chosen
