# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""XLA_FLAGS of the tests and of the processes that they start."""

import importlib.metadata

# The MLIR emitters of fused loops take almost half of the compilation. Later releases of jaxlib have no others, and XLA
# ends a process whose flags it does not know.
_HAS_OTHERS = importlib.metadata.version("jaxlib").startswith("0.10.")


def flags(devices: int = 1) -> str:
    """Return the flags for a number of virtual CPU devices and for programs that are compiled quickly."""
    chosen = f"--xla_force_host_platform_device_count={devices}"
    return f"{chosen} --xla_cpu_use_fusion_emitters=false" if _HAS_OTHERS else chosen


def usual() -> dict[str, bool]:
    """Return the compiler's options of users' programs, with which parts that two programs share round alike."""
    return {"xla_cpu_use_fusion_emitters": True} if _HAS_OTHERS else {}
