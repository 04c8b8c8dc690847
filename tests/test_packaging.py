# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What an installed package offers: public names, commands, extras, files; and what importing it costs."""

import importlib
import inspect
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import uso_jax
from uso_jax.common import extras
from uso_jax.common.errors import InputError

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# A package that is imported although it is refused ends the process, whatever catches ImportError.
REFUSE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        assert name.partition(".")[0] not in {refused!r}, name + " is imported"
sys.meta_path.insert(0, Refuse())
"""


def run(code: str, refused: tuple[str, ...] = ()) -> str:
    command = [sys.executable, "-c", REFUSE.format(refused=refused) + code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_public_names_exist_and_are_listed():
    assert set(uso_jax._MODULES) == set(uso_jax.__all__) <= set(dir(uso_jax))
    for name in uso_jax.__all__:
        assert inspect.unwrap(getattr(uso_jax, name)).__name__ == name
        assert not (ROOT / "uso_jax" / name).exists() and not (ROOT / "uso_jax" / f"{name}.py").exists()
    with pytest.raises(AttributeError, match="no attribute 'Uso'"):
        uso_jax.Uso  # noqa: B018


def test_importing_is_fast():
    measured = run(
        "import time; start = time.process_time(); import uso_jax, uso_jax.commands.entry_points;"
        " print(time.process_time() - start)",
        refused=("jax", "jaxlib", "flax", "numpy", "absl", "torch", "transformers"),
    )
    assert float(measured) < 0.3


@pytest.mark.parametrize("command", ["train", "generate"])
def test_commands_import_neither_torch_nor_packages_of_extras(command):
    own = ("pyarrow", "defusedxml")  # which dependencies import where they are installed
    refused = ("torch", *(name for names in extras.EXTRAS.values() for name in names if name not in own))
    run(f"import uso_jax.commands.{command}; from uso_jax.common import compat; compat.summary_writer()", refused)


def test_only_encoded_data_needs_array_record(monkeypatch):
    """Windows has no wheel of it; what needs it says so in a sentence. Grain imports it, except on Windows."""
    run("import uso_jax.commands.generate, uso_jax.data.features", ("array_record",))
    from uso_jax.data import features

    monkeypatch.setitem(sys.modules, "array_record.python.array_record_module", None)
    with pytest.raises(InputError, match="array_record, which Windows has no wheel of: use WSL"):
        features.array_record()


def test_every_command_has_a_function():
    for name, target in PROJECT["project"]["scripts"].items():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module.replace("uso_jax_convert", "convert")), function))
        command = name.removeprefix("uso-")
        if command != "convert":
            text = (ROOT / "scripts" / f"{command}.py").read_text(encoding="utf-8")
            assert f"entry_points.{command}()" in text and len(text.splitlines()) < 12


def test_every_file_is_packaged():
    globs = PROJECT["tool"]["setuptools"]["package-data"]
    for path in (ROOT / "uso_jax").rglob("*"):
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts:
            packages = {name: ROOT.joinpath(*name.split(".")) for name in globs}
            found = [path in folder.glob(glob) for name, folder in packages.items() for glob in globs[name]]
            assert any(found), path


def test_extras_are_those_of_the_project():
    declared = PROJECT["project"]["optional-dependencies"]
    for extra, names in extras.EXTRAS.items():
        packages = [re.match(r"[\w-]+", line)[0].lower().replace("-", "_") for line in declared[extra]]
        assert sorted(packages) == sorted(names)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(extras.EXTRAS, "eval", ("json", "absent_package"))
    with pytest.raises(InputError, match=r"needs absent_package; .*pip install \"uso_jax\[eval\]\""):
        extras.require("eval")


def test_a_missing_extra_ends_a_command_before_it_starts():
    code = (
        "from uso_jax.common import extras; extras.EXTRAS['eval'] += ('absent_package',)\n"
        "from uso_jax.commands import entry_points\n"
        "try:\n    entry_points.evaluate()\nexcept SystemExit as end:\n    print(end.code)"
    )
    assert run(code, refused=("jax", "numpy")) == "2\n"
