# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Bars: alive on a terminal, few lines in a log."""

import io
import os
import subprocess
import sys

import pytest

from uso_jax.common import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "few"), [(io.StringIO, True), (Terminal, False)])
def test_a_log_gets_few_lines(stream, few, monkeypatch):
    monkeypatch.delenv("TQDM_MININTERVAL", raising=False)
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
