# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What is made as `lasting` is left out of garbage collection, and nothing else."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("how", ["pass", "raise ImportError"])
def test_lasting_objects_are_left_out_of_later_collections(how):
    code = f"""
import contextlib, gc
from uso_jax.common.garbage import lasting

with contextlib.suppress(ImportError), lasting():
    assert not gc.isenabled()
    made = [[number] for number in range(1000)]
    {how}
assert gc.isenabled()
seen = {{id(one) for one in gc.get_objects()}}
assert not any(id(one) in seen for one in made)
later = [[0]]
assert any(one is later for one in gc.get_objects())
"""
    run(code)


def test_a_collector_that_was_off_stays_off():
    use = "from uso_jax.common.garbage import lasting\nwith lasting(): pass\n"
    run(f"import gc; gc.disable()\n{use}assert not gc.isenabled()")


@pytest.mark.parametrize("command", ["train", "generate"])
def test_commands_leave_their_modules_out_of_collections(command):
    run(f"""
import contextlib, gc, os, sys
from uso_jax.commands import entry_points

os.environ["GLIBC_TUNABLES"] = ""  # no restart
sys.argv = ["uso-{command}", "--help"]
with contextlib.suppress(SystemExit):
    entry_points.{command}()
assert gc.get_freeze_count() > 100_000 and gc.isenabled()
""")


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
