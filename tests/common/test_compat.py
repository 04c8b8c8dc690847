# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What this project takes from other packages although they do not promise it."""

import ctypes
import os
import subprocess
import sys
from multiprocessing import shared_memory

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from uso_jax.common import compat


def test_unused_arguments_are_found():
    arguments = {"a": jnp.ones(3), "b": jnp.ones(2), "c": (jnp.ones(1), 2.0)}
    lowered = jax.jit(lambda tree, scale: tree["a"] * tree["c"][1] + scale).lower(arguments, 3.0)
    assert compat.used_arguments(lowered) == [True, False, False, True, True]


WRITE = """
import pathlib, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        assert name.partition(".")[0] != "torch", "torch is imported"
sys.meta_path.insert(0, Refuse())
from uso_jax.common import compat
writer = compat.summary_writer()(sys.argv[1])
writer.add_scalar("loss", 0.5, 3)
writer.close()
assert "torch" not in sys.modules
"""


def test_event_files_are_written_without_torch(tmp_path):
    subprocess.run([sys.executable, "-c", WRITE, str(tmp_path)], check=True)
    (file,) = tmp_path.iterdir()
    assert b"loss" in file.read_bytes()


LEAK = """
import os, sys
from multiprocessing import shared_memory
from uso_jax.common import compat
compat.start_resource_tracker()
assert "PYTHONWARNINGS" not in os.environ
print(shared_memory.SharedMemory(create=True, size=100).name, flush=True)
os._exit(0)
"""


def test_shared_memory_of_a_killed_process_is_removed_without_a_word():
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    # The tracker holds stderr, so this waits for it.
    done = subprocess.run([sys.executable, "-c", LEAK], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() and not done.stderr
    with pytest.raises(FileNotFoundError):
        shared_memory.SharedMemory(done.stdout.strip())


def test_a_package_is_absent_for_a_while(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with compat._absent("colorsys"), pytest.raises(ImportError):
        import colorsys
    import colorsys

    with compat._absent("colorsys"):
        assert sys.modules["colorsys"] is colorsys


def test_a_save_that_fails_in_the_background_is_reported(tmp_path):
    errors = []
    manager = ocp.CheckpointManager(tmp_path / "checkpoints")
    compat.watch_saves(manager, errors.append)
    manager.save(1, args=ocp.args.StandardSave({"a": jnp.ones(3)}))
    manager.wait_until_finished()
    assert errors == []
    background = manager._checkpointer._async_manager
    background._exception = OSError("no space left")  # as its thread leaves it
    with pytest.raises(OSError, match="no space left"):
        manager.check_for_errors()
    assert [str(error) for error in errors] == ["no space left"]
    manager.close()


def test_closed_loops_of_a_failed_save_are_silent(monkeypatch, capsys):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    compat.silence_closed_loops()

    @ctypes.CFUNCTYPE(None, ctypes.py_object)
    def report(sentence: str) -> None:
        """Raise an error where there is no Python caller, as TensorStore's threads do."""
        raise RuntimeError(sentence)

    report("Event loop is closed")
    assert capsys.readouterr().err == ""
    report("something else")
    assert "something else" in capsys.readouterr().err
