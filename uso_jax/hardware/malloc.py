# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A C allocator that keeps memory instead of giving every freed buffer back to the kernel.

On CPU, XLA frees and takes large buffers at every step; with glibc's defaults each time costs page faults (a quarter of
a step, docs/performance.md). The setting must be there when a process starts, so a command that wants it starts itself
again, once.
"""

import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

SETTING = {
    "glibc.malloc.hugetlb": 1,
    "glibc.malloc.arena_max": 1,
    "glibc.malloc.mmap_max": 0,
    "glibc.malloc.trim_threshold": 2**36,
    "glibc.malloc.top_pad": 2**28,
}
VARIABLE = "GLIBC_TUNABLES"
_DEVICES = ("/dev/nvidia0", "/dev/kfd", "/dev/accel0", "/dev/vfio/0")


def keep_memory(argv: Sequence[str] | None = None) -> None:
    """Start this program again with the setting, unless it is set, useless here, or the user has set the variable.

    Call it before anything slow is imported.
    """
    if VARIABLE in os.environ or platform.libc_ver()[0] != "glibc" or any(Path(path).exists() for path in _DEVICES):
        return
    os.environ[VARIABLE] = ":".join(f"{name}={value}" for name, value in SETTING.items())
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *(argv or sys.orig_argv[1:])])
