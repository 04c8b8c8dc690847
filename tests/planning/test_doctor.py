# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What uso-doctor finds on machines and in configurations that lack something."""

import dataclasses
import os
import pathlib
from importlib import metadata

import jax
import pytest
import tiny

from uso_jax import mini
from uso_jax.commands import doctor
from uso_jax.common import config_flag, untrusted
from uso_jax.planning import checkup, machine
from uso_jax.planning.finding import Finding


def by_subject(findings) -> dict[str, Finding]:
    return {one.subject: one for one in findings}


def test_this_machine_can_run_mini(tmp_path):
    found = by_subject(machine.examine(tmp_path / "new" / "run"))
    assert {"versions", "extras", "devices", "memory", "disk", "hub token"} <= set(found)
    assert found["versions"].state == "ok" and jax.__version__ in found["versions"].text
    assert str(tmp_path) in found["disk"].text and not (tmp_path / "new").exists()
    assert set(by_subject(machine.examine(tmp_path, downloads=False))) == set(found) - {"hub token"}


def test_versions_that_do_not_fit_are_all_named(monkeypatch):
    real = metadata.version

    def version(name):
        if name == "grain":
            raise metadata.PackageNotFoundError(name)
        return "0.4.30" if name == "jax" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    (found,) = machine.versions()
    assert found.state == "problem" and "jax is 0.4.30 (needs" in found.text and "grain is missing" in found.text


def test_extras_that_are_missing(monkeypatch):
    monkeypatch.setattr(machine.extras, "EXTRAS", {"eval": ("no_such_module",), "data": ("json",)})
    (found,) = machine.missing_extras()
    assert found.state == "note" and "uso_jax[eval]" in found.remedy


def test_an_accelerator_that_jax_does_not_use(monkeypatch, tmp_path):
    (tmp_path / "accel0").touch()
    monkeypatch.setattr(machine, "_ACCELERATORS", {f"{tmp_path}/accel[0-9]*": ("a TPU", "tpu")})
    found = machine.devices()
    assert found.state == "problem" and "although this machine has a TPU" in found.text and "[tpu]" in found.remedy


def test_no_device_at_all(monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'tpu': nobody is at home\nmore")

    monkeypatch.setattr(jax, "local_devices", fail)
    found = machine.devices()
    assert found.state == "problem" and "nobody is at home" in found.text and "more" not in found.text


def test_little_memory_and_disk(monkeypatch, tmp_path):
    usage = lambda path: type("Usage", (), {"total": 64 * 2**20, "free": 2**20})
    monkeypatch.setattr(machine.shutil, "disk_usage", usage)
    (found,) = machine.shared_memory(str(tmp_path))
    assert found.state == "note" and "64 MiB" in found.text
    assert machine.disk(tmp_path).state == "note"
    monkeypatch.setattr(machine, "host_bytes", lambda: (2**30, 2**29))
    assert machine.memory().state == "note"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert machine.disk(tmp_path).state == "problem"


def test_the_token_is_not_shown(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    doctor.report([machine.token()])
    assert "present" in (shown := capsys.readouterr().out) and "secret" not in shown


def test_every_problem_of_a_run_is_found_at_once(tmp_path):
    config = tiny.config(
        "joint", changes={"heldout.batch_size": 3, "data.source": "folder", "data.folder.train.path": "nowhere"}
    )
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, weights=str(tmp_path)))
    found = by_subject(checkup.examine(config))
    assert {name for name, one in found.items() if one.state == "problem"} == {"data", "weights", "mesh"}
    assert all(name in found["weights"].text for name in ("autoencoder", "t5", "transformer"))


def test_a_run_without_a_device(monkeypatch):
    def fail(shape):
        raise RuntimeError("no device\nmore")

    monkeypatch.setattr(checkup.sharding, "make_mesh", fail)
    found = by_subject(checkup.examine(tiny.config("joint")))
    assert found["mesh"] == Finding("mesh", "problem", "no device") and "fit" not in found


def test_heads_and_quantisation_are_examined_too():
    config = tiny.config("joint", changes={"mesh.data": 1, "mesh.fsdp": 1, "mesh.sequence": 8, "mesh.tensor": 1})
    assert "heads" in by_subject(checkup.examine(config))["mesh"].text
    found = {}
    for one in checkup.examine(tiny.config("joint")):
        found[one.subject] = one
        if one.subject == "weights":  # the rest is in `test_a_run_that_fits`
            break
    assert {"quantization", "placement"} <= set(found)


def test_a_run_that_fits():
    found = by_subject(checkup.examine(tiny.config("joint")))
    assert {one.state for one in found.values()} == {"ok"}
    assert found["fit"].text.startswith("weights, optimizer and batch take 0.0")
    assert found["time"].text.startswith("at least ") and "at a measured rate of" in found["time"].text


def test_the_least_time_is_that_of_the_devices_peak(monkeypatch):
    monkeypatch.setattr(checkup.chips, "peak_flops", lambda kind: 1e12)
    found = checkup.time_bound(400 * 5e12 * jax.device_count(), 400).text
    assert found.startswith("at least 33 min: 400 steps of 40 TFLOP at a peak of 8 TFLOP/s")


def test_all_missing_components_of_mini_are_named_with_the_fix(tmp_path):
    gone = {"autoencoder", "t5", "transformer"}
    for path in mini.directory("mini").iterdir():
        if path.name not in gone:
            (tmp_path / path.name).symlink_to(path)
    config = config_flag.load_config("finetune")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, weights=str(tmp_path)))
    config = dataclasses.replace(config, mesh={"data": 8, "fsdp": 1, "sequence": 1, "tensor": 1})
    found = next(one for one in checkup.examine(config) if one.subject == "weights")
    assert found.state == "problem" and all(name in found.text for name in (*gone, "uso-convert download", "--to"))
    assert str(tmp_path) in found.text and "siglip" not in found.text


def test_findings_as_json_lines(capsys):
    assert doctor.report_json([Finding("a", "ok", "x"), Finding("b", "problem", "y", "z")]) == 1
    lines = [untrusted.json(line, dict[str, str]) for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == {"subject": "b", "state": "problem", "text": "y", "remedy": "z"}


def test_a_run_that_does_not_fit(monkeypatch):
    monkeypatch.setattr(machine, "device_bytes", lambda device: 2**10)
    found = next(checkup.estimate(tiny.config("joint")))
    assert found.state == "problem" and "quantization" in found.remedy


@pytest.mark.parametrize("columns", ["20", "80", "300"])
def test_a_report_fits_the_terminal(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", columns)
    long = "words " * 40
    assert doctor.report([Finding("a", "ok", long), Finding("b", "problem", long, long)]) == 1
    lines = capsys.readouterr().out.rstrip("\n").split("\n")
    assert max(map(len, lines)) <= min(max(int(columns), 40), 120)
    assert lines[-1] == "1 problem, 0 notes" and any(line.startswith("PROBLEM b") for line in lines)


def test_the_installed_package_says_what_it_requires():
    assert "jax" in " ".join(metadata.requires("uso_jax"))
    assert pathlib.Path(doctor.__file__).name == "doctor.py"
