# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark beside torch: every task has its row, and both sides compute the same. Speed is not asserted."""

import json
import re
import runpy
import sys

import pytest
import tiny


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(tiny.ROOT / "scripts" / "benchmark"))
    return runpy.run_path(str(tiny.ROOT / "scripts" / "benchmark" / "__main__.py"))


@pytest.fixture(scope="module", autouse=True)
def cheap(tmp_path_factory):
    yield from tiny.compile_cheaply(tmp_path_factory.mktemp("programs"))


@pytest.mark.slow  # compiles every task
def test_every_task_has_its_row(benchmark, tmp_path, capsys):
    file = tmp_path / "speed.json"
    benchmark["main"](["--size", "tiny", "--repeats", "2", "--steps", "2", "--no-compile", "--json", str(file)])
    report = json.loads(file.read_text())
    assert [(row["task"], row["peer"]) for row in report["rows"]] == [(task, "eager") for task in benchmark["TASKS"]]
    printed = capsys.readouterr().out
    for row in report["rows"]:
        low, high = row["ratio_range"]
        assert 0 < low <= row["ratio"] <= high and row["tflops"] > 0
        assert row["difference"] < 1e-4  # rounding of float32; another network would be off by one
        assert f"| {row['task']} | eager |" in printed


def test_dry_run_needs_no_torch(benchmark, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    benchmark["main"](["--size", "full", "--only", "step,siglip", "--dry_run"])
    printed = capsys.readouterr().out
    assert "5824 tokens" in printed and "11,901.4 M parameters" in printed
    assert "not installed: torch" in printed and "pip install 'uso_jax[benchmark]'" in printed


@pytest.mark.parametrize(
    "arguments, fragments",
    (
        ((), ("not installed: torch", "pip install 'uso_jax[benchmark]'")),
        (("--only", "step,vae"), ("--only vae", "step, sample, lora, decode, siglip")),
        (("--repeats", "0"), ("--repeats", "at least 1, not 0")),
        (("--json", "nowhere/a.json"), ("--json nowhere/a.json", "nowhere does not exist")),
    ),
)
def test_one_sentence(benchmark, monkeypatch, capsys, arguments, fragments):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit) as stop:
        benchmark["main"](list(arguments))
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == "" and re.fullmatch(r"error: .*\n", printed.err)
    assert not [fragment for fragment in fragments if fragment not in printed.err]
