# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One writer a directory: who is refused, which locks are taken over, and what is left behind."""

import os
import signal
import subprocess
import sys
import time

import pytest
import tiny

from uso_jax.common import compat, locks
from uso_jax.common.errors import InputError

HOLD = """
import sys, time
from uso_jax.common import locks
with locks.hold(sys.argv[1]):
    print(flush=True)
    time.sleep(60)
"""


@pytest.fixture
def elsewhere(tmp_path):
    """Start a process that holds the lock of a directory."""
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, cwd=tiny.ROOT)
    child.stdout.readline()
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


def check_refused(message, *arguments, **options):
    with pytest.raises(InputError, match=message), locks.hold(*arguments, **options):
        pass


def test_a_second_process_is_refused(elsewhere, tmp_path):
    before, start = sorted(tmp_path.iterdir()), time.monotonic()
    check_refused(rf"{tmp_path} is being written by process {elsewhere.pid} on .*delete .*lock", tmp_path)
    assert time.monotonic() - start < 2
    assert sorted(tmp_path.iterdir()) == before == [tmp_path / ".lock"]


def test_the_lock_of_a_killed_process_is_taken_over(elsewhere, tmp_path, capsys):
    elsewhere.send_signal(signal.SIGKILL)
    elsewhere.wait()
    assert (tmp_path / ".lock").exists()
    with locks.hold(tmp_path) as lock:
        lock.check()
        check_refused(f"process {os.getpid()}", tmp_path)
    assert not list(tmp_path.iterdir()) and capsys.readouterr().err == ""


def test_a_directory_is_made_and_an_unused_one_removed(tmp_path):
    with pytest.raises(KeyboardInterrupt), locks.hold(tmp_path / "a" / "b"):
        raise KeyboardInterrupt
    assert not (tmp_path / "a").exists()
    with locks.hold(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "kept").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["kept"]


def test_shares_are_written_at_once(tmp_path):
    with locks.hold(tmp_path, share=(0, 3)), locks.hold(tmp_path, share=(2, 3)):
        for share in ((2, 3), (1, 2), (0, 1)):
            check_refused("is being written by", tmp_path, share=share)
    with locks.hold(tmp_path):
        check_refused("is being written by", tmp_path, share=(0, 2))
    assert not list(tmp_path.iterdir())


def test_names_are_independent(tmp_path):
    with locks.hold(tmp_path, "transformer"), locks.hold(tmp_path, "lora"):
        check_refused(f"{tmp_path / 'lora'} is being written", tmp_path, "lora")


def record(pid: int, host: str) -> str:
    """Return a lock file's text."""
    return f"filelock/2\npid={pid}\nhost={host}\nmode=lease\ntoken=abc\nduration={locks.LEASE!r}\n"


def test_another_host_that_lives_is_refused(tmp_path, monkeypatch, capsys):
    file = tmp_path / ".lock"
    file.write_text(record(7, "node12"))
    real = time.sleep

    def beat(seconds):
        os.utime(file)
        real(min(seconds, 0.05))

    monkeypatch.setattr(time, "sleep", beat)
    check_refused(f"process 7 on node12; wait until .* delete {file}", tmp_path)
    assert "waiting up to" in capsys.readouterr().err and file.read_text() == record(7, "node12")


def test_another_host_without_a_sign_of_life_loses_its_lock(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(locks, "LEASE", 1.0)
    (tmp_path / ".lock").write_text(record(7, "node12?pidns-f0"))
    with locks.hold(tmp_path):
        assert f"pid={os.getpid()}\n" in (tmp_path / ".lock").read_text()
    assert "locked by process 7 on node12; waiting" in capsys.readouterr().err


def test_an_owner_notices_that_it_lost_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LEASE", 0.3)
    with locks.hold(tmp_path) as lock:
        lock.check()
        (tmp_path / "new").write_text(record(7, "node12"))
        (tmp_path / "new").replace(tmp_path / ".lock")
        end = time.monotonic() + 10
        with pytest.raises(InputError, match="process 7 on node12 has taken over"):
            while time.monotonic() < end:
                time.sleep(0.05)
                lock.check()
    assert (tmp_path / ".lock").read_text() == record(7, "node12")


def test_a_directory_that_vanishes_hides_no_error(tmp_path):
    with pytest.raises(KeyError), locks.hold(tmp_path / "a") as lock:
        (tmp_path / "a").rename(tmp_path / "b")
        lock.check()
        raise KeyError


@pytest.mark.parametrize("content", [b"\0" * 40, b"filelock/2\npid=x\n"])
def test_a_damaged_lock_is_taken_over(content, tmp_path):
    (tmp_path / ".lock").write_bytes(content)
    with locks.hold(tmp_path) as lock:
        lock.check()


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    check_refused(r"cannot write to .*file.*; choose another", tmp_path / "file")


def test_the_host_is_the_one_in_lock_files(tmp_path):
    with locks.hold(tmp_path):
        assert f"host={compat.lock_host()}\n" in (tmp_path / ".lock").read_text()


def test_the_writer_is_told_and_nothing_is_changed(tmp_path, monkeypatch):
    assert locks.writer(tmp_path) is None
    with locks.hold(tmp_path):
        assert locks.writer(tmp_path) == locks.Writer(os.getpid(), "")
    file = tmp_path / ".lock"
    file.write_text(record(7, "node12"))
    assert locks.writer(tmp_path) == locks.Writer(7, "node12")
    os.utime(file, (time.time() - 2 * locks.LEASE,) * 2)
    assert locks.writer(tmp_path) is None and file.read_text() == record(7, "node12")
    file.write_text(record(2**22 - 1, compat.lock_host()))  # a process that has ended
    assert locks.writer(tmp_path) is None and file.exists()
