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
def test_every_task_has_its_row(benchmark, tmp_path, capsys, monkeypatch):
    file = tmp_path / "speed.json"
    sizes = []
    written = benchmark["atomic_files"].write_file
    monkeypatch.setattr(
        benchmark["atomic_files"],
        "write_file",
        lambda path, text: (sizes.append(text.count('"ratio"')), written(path, text)),
    )
    benchmark["main"](["--size", "tiny", "--repeats", "2", "--steps", "2", "--no-compile", "--json", str(file)])
    report = json.loads(file.read_text())
    rows = [(row["task"], row["peer"]) for row in report["rows"]]
    own = [("step", "masked"), ("step", "adapters"), ("step", "int8"), ("step", "fp8"), ("lora", "masked")]
    assert [row for row in rows if row not in own] == [(task, "eager") for task in benchmark["TASKS"]]
    assert set(own) < set(rows) and sizes == [*range(1, len(rows) + 1), len(rows)]  # a file after every row
    printed = capsys.readouterr().out
    for row in report["rows"]:
        low, high = row["ratio_range"]
        assert 0 < low <= row["ratio"] <= high and row["tflops"] > 0 and row["turns"] == 2
        # Rounding of float32; another network would be off by one.
        assert row["difference"] < {"int8": 0.1, "fp8": 0.5}.get(row["peer"], 1e-4)
        assert f"| {row['task']} | {row['peer']} |" in printed


@pytest.mark.slow
def test_tasks_of_one_network_share_its_weights(benchmark):
    import tasks
    import torch_peer

    sizes = tasks.SIZES["tiny"]
    first = torch_peer.Peer("step", sizes, 2, 1)
    second = torch_peer.Peer("lora", sizes, 2, 1, first.weights)
    for key, x in first.weights.items():
        assert second.weights[key].data_ptr() == x.data_ptr()
    names = set(first.weights)
    second.eager()  # adds adapters
    assert {name for name, _ in first.arrays()} == names


def test_time_that_is_over(benchmark, tmp_path, monkeypatch):
    turns = pytest.importorskip("turns")
    clock = iter(range(1000))
    monkeypatch.setattr(turns, "_ceiling", lambda *_: 1.0)
    monkeypatch.setattr(turns.time, "monotonic", lambda: next(clock) * 100)
    args = benchmark["_arguments"](["--size", "tiny", "--seconds", "50"])
    report = turns.measure(["step", "siglip"], "tiny", {}, args)
    assert [(row["task"], row["failed"]) for row in report["rows"]] == [
        ("step", "--seconds 50 were over"), ("siglip", "--seconds 50 were over")
    ]  # fmt: skip


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
        (("--only", "step,vae"), ("--only vae", "step, lora, decode, siglip, sample")),
        (("--repeats", "0"), ("--repeats", "at least 1, not 0")),
        (("--seconds", "-1"), ("--seconds", "at least 0, not -1")),
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
