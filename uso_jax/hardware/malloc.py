# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""glibc malloc settings that keep freed memory instead of returning it to the kernel.

On CPU, XLA frees and allocates large buffers in every step. With glibc's defaults this causes page faults that take a
quarter of a step (docs/performance.md). glibc reads the settings when a process starts, so a command restarts itself
once.
"""

import contextlib
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
    """Restart this program with `SETTING` in GLIBC_TUNABLES.

    Does nothing if the variable is already set, the C library is not glibc, or the machine has an accelerator. Call it
    before slow imports.
    """
    if VARIABLE in os.environ or platform.libc_ver()[0] != "glibc" or any(Path(path).exists() for path in _DEVICES):
        return
    os.environ[VARIABLE] = ":".join(f"{name}={value}" for name, value in SETTING.items())
    sys.stdout.flush()
    with contextlib.suppress(OSError):  # a program may not be allowed to start another; it goes on without
        os.execv(sys.executable, [sys.executable, *(argv or sys.orig_argv[1:])])
