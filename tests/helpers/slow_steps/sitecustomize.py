# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Let every train step of a process take a while longer; Python imports this where the folder is on the path."""

import importlib.abc
import os
import sys
import time


class _Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "uso_jax.training.loop" and "uso_jax.training.fault_tolerance" in sys.modules:
            sys.meta_path.remove(self)
            watchdog = sys.modules["uso_jax.training.fault_tolerance"].Watchdog
            beat = watchdog.beat

            def slow(self, where):
                beat(self, where)
                time.sleep(float(os.environ.get("TINY_PAUSE", 0)) * where.startswith("after step"))

            watchdog.beat = slow


sys.meta_path.insert(0, _Slow())
