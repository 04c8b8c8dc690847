# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Progress: alive on a terminal, few lines in a log, named phases, no early estimate; every program uses it."""

import ast
import io
import logging
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest

from uso_jax.common import progress

ROOT = pathlib.Path(__file__).parents[2]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test advances."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress.time, "sleep", lambda seconds, sleep=time.sleep: sleep(0.01))
    monkeypatch.setattr(progress, "_LINE", progress.StatusLine())
    monkeypatch.delenv("TQDM_MININTERVAL", raising=False)
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    return now


@pytest.mark.parametrize(("stream", "few"), [(io.StringIO, True), (Terminal, False)])
def test_a_log_gets_few_lines(stream, few, monkeypatch):
    monkeypatch.delenv("TQDM_MININTERVAL", raising=False)
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    monkeypatch.setattr(sys, "stderr", stream())
    with progress.bar(total=1000, desc="work", file=sys.stderr) as bar:
        assert bar.mininterval == (10.0 if few else 0.1)
        for _ in range(1000):
            bar.update()
    assert "work: 100%" in sys.stderr.getvalue()
    assert sys.stderr.getvalue().count("\r") < 20


def test_the_user_may_set_the_interval():
    code = "from uso_jax.common import progress; print(progress.bar(range(2)).mininterval)"
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"TQDM_MININTERVAL": "3"}, capture_output=True, text=True
    )
    assert run.stdout == "3.0\n", run.stderr


def test_one_line_every_ten_seconds_in_a_log(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress.bar(total=600, desc="flow", unit="step") as bar:
        for _ in range(600):
            clock[0] += 1
            bar.update()
    lines = sys.stderr.getvalue().splitlines()
    assert 58 <= len(lines) <= 62 and lines[-1].startswith("flow: 100% 600/600 [10:00")
    assert "\r" not in sys.stderr.getvalue()


def test_a_phase_is_named_with_its_time_while_it_lasts(clock, monkeypatch):
    for stream in (io.StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress.bar(total=20, desc="flow", initial=9, leave=False), progress.phase("saving"):
            clock[0] += 65
            for _ in range(400):  # the thread that redraws wakes up
                if "saving" in stream.getvalue():
                    break
                time.sleep(0.01)
        assert "flow 9/20, saving [01:05]" in stream.getvalue()
    assert stream.getvalue().rpartition("\r")[2] == "", "a phase leaves an empty line"


def test_no_estimate_before_two_steps_and_none_of_compilation(clock):
    bar = progress.bar(total=100, desc="flow", unit="step", file=io.StringIO())
    assert "<?" in bar.text()
    clock[0] += 600
    bar.update()  # with the compilation
    assert "1/100 [10:00<?, ?step/s]" in bar.text()
    clock[0] += 2
    bar.update()
    assert "2/100 [10:02<03:16,  2.00s/step]" in bar.text()


def test_finished_work_of_earlier_runs_does_not_count_as_speed(clock):
    bar = progress.bar(total=100, desc="shards", unit="shard", file=io.StringIO())
    for _ in range(50):
        bar.skip()
    for _ in range(3):
        clock[0] += 10
        bar.update()
    assert "53/100 [00:30<07:50, 10.00s/shard]" in bar.text()


def test_the_estimate_follows_a_change_of_speed(clock):
    bar = progress.bar(total=2000, unit="step", file=io.StringIO())
    for seconds in [1] * 500 + [2] * 500:
        clock[0] += seconds
        bar.update()
    assert bar.rate() == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("columns", [0, 20, 80])
def test_terminals_of_any_width(columns, monkeypatch):
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((columns, columns and 24)))
    stream = Terminal()
    stream.fileno = lambda: 1
    with progress.bar(total=3, desc="work", file=stream) as bar:
        bar.update(3)
    lines = [line for line in re.split("[\r\n]", stream.getvalue()) if line]
    assert "work: 100%" in lines[-1] and max(map(len, lines)) < (columns or 80)


def test_lines_are_printed_above_the_bar(monkeypatch):
    both = Terminal()
    monkeypatch.setattr(sys, "stderr", both)
    monkeypatch.setattr(sys, "stdout", both)
    log = logging.getLogger("test_progress")
    log.addHandler(progress.LogHandler())
    with progress.bar(total=3, desc="work") as bar:
        bar.update()
        progress.say("a line")
        log.warning("a note")
    shown = re.sub("[^\n]*\r", "", both.getvalue())  # what a terminal keeps of each line
    assert shown.splitlines()[:2] == ["a line", "a note"]


def test_a_stream_that_takes_only_ascii():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    stream.isatty = lambda: True
    with progress.bar(total=3, desc="work", file=stream) as bar:
        bar.update(2)
    stream.flush()
    assert b"#" in stream.buffer.getvalue()


def test_a_full_disk_or_a_closed_terminal_ends_no_program():
    class Full(io.StringIO):
        def write(self, _):
            raise OSError(28, "No space left on device")

    with progress.bar(total=2, file=Full()) as bar:
        bar.update(2)
    closed = io.StringIO()
    bar = progress.bar(total=2, file=closed)
    closed.close()
    bar.update(2)
    bar.close()


def test_one_process_of_several_shows_it(clock, monkeypatch):
    stream = Terminal()
    progress.silence()
    with progress.bar(total=2, file=stream) as bar:
        bar.update(2)
    assert not stream.getvalue()


def test_a_notebook_has_its_line_rewritten_once_a_second(clock, monkeypatch):
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    with progress.bar(total=1000, desc="flow", file=stream) as bar:
        for _ in range(1000):
            clock[0] += 0.1
            bar.update()
    assert stream.getvalue().count("\n") == 1 and 90 < stream.getvalue().count("\r") < 120


def test_no_program_shows_progress_in_another_way():
    """tqdm lays out the line, in one file."""
    found = []
    for folder in ("uso_jax", "convert", "scripts", "configs"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [node.module] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if any((name or "").split(".")[0] in ("tqdm", "rich") for name in names):
                    found.append(path.relative_to(ROOT).as_posix())
    assert found == ["uso_jax/common/progress.py"]
