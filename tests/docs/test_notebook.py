# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The notebook runs from top to bottom, on a CPU with tiny weights, in a kernel that looks like Colab's."""

import importlib.util
import os
import re
import sys
import types

import jax
import nbformat
import numpy as np
import oracle_flux2
import oracle_pipeline as oracle
import pytest
import tiny
import xla_flags
from nbclient import NotebookClient

from convert.recipes import RECIPES
from uso_jax import load_config
from uso_jax.inference.pipeline import USOPipeline
from uso_jax.parallel import sharding

NOTEBOOK = tiny.ROOT / "notebooks" / "uso_colab_tpu.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # jupyter's
def test_it_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch):
    changes = {
        "USO_WEIGHTS": str(oracle.write(tmp_path / "weights")),
        "USO_STEPS": "3",  # of training, which is mini's
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "PYTHONPATH": os.pathsep.join([str(tiny.ROOT), str(tmp_path / "installed"), os.environ.get("PYTHONPATH", "")]),
        "XLA_FLAGS": xla_flags.flags(),
    }
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "ipywidgets.py").write_text("raise ImportError('as where it is not installed')")
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    # Colab's kernel has imported this, and JAX asks it for `output`.
    module = "module = types.ModuleType('google.colab'); module.output = None; sys.modules['google.colab'] = module"
    (startup / "colab.py").write_text(f"import sys, types; {module}")
    (tmp_path / "installed" / "uso_jax_convert").symlink_to(tiny.ROOT / "convert")  # as setup.py names it
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(images) == 10
    said = "".join(output.get("text", "") for output in outputs)
    assert "weights, optimizer and batch take" in said and "at least" in said  # what the training needs of this machine
    made = ("image.png", "glass.safetensors", "my_lora.safetensors", "runs/mine/summary.json")
    assert not [name for name in made if not (tmp_path / name).is_file()]


def run_cells(notebook, *ids, **choices):
    """Run cells with other choices, as Colab would; return their names."""
    names = {}
    for wanted in ("choices", *ids):
        (cell,) = (cell for cell in notebook.cells if cell.id == wanted)
        source = cell.source
        for name, value in choices.items() if wanted == "choices" else ():
            source, changed = re.subn(rf"^{name} = .*", f"{name} = {value!r}", source, flags=re.MULTILINE)
            assert changed == 1, name
        exec(source, names)
    return names


def fake_colab(monkeypatch, **members):
    module = types.ModuleType("google.colab")
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, "google.colab", module)


def test_without_a_repository_it_says_so(notebook, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "uso_jax" else find(name, *rest)
    )
    with pytest.raises(Exception, match="Set REPOSITORY") as caught:
        run_cells(notebook, "install")
    assert caught.value._render_traceback_() == [str(caught.value)]


def test_a_colab_secret_reaches_the_commands(notebook, monkeypatch):
    class SecretNotFoundError(Exception):
        pass

    def get(name):
        if name not in known:
            raise SecretNotFoundError
        return known[name]

    known = {"HF_TOKEN": "secret"}
    userdata = types.SimpleNamespace(
        get=get, SecretNotFoundError=SecretNotFoundError, NotebookAccessError=SecretNotFoundError
    )
    fake_colab(monkeypatch, userdata=userdata, drive=types.SimpleNamespace(mount=lambda path: None))
    monkeypatch.setenv("HF_TOKEN", "")
    names = run_cells(notebook, "install", "login", MODEL="flux_dev", DRIVE=True)
    assert os.environ["HF_TOKEN"] == "secret" and str(names["folder"]).startswith("/content/drive")
    monkeypatch.setenv("HF_TOKEN", "")
    known.clear()
    with pytest.raises(Exception, match="Add the secret HF_TOKEN"):
        run_cells(notebook, "install", "login", MODEL="flux_dev")


def test_images_and_training_have_folders_that_do_not_contradict(notebook, monkeypatch):
    found = {}
    for mode in ("generate", "train"):
        monkeypatch.setenv("USO_MODE", mode)
        for model in ("flux_dev", "klein"):
            found.setdefault(model, []).append(run_cells(notebook, MODEL=model)["WEIGHTS"])
    # FLUX.2 [klein] is one folder for both, where its recipe looks for weights and tokenizer.
    one = load_config("finetune:klein").model
    assert found == {
        "flux_dev": ["weights/flux_dev-int8", "weights/flux_dev-int4"],
        "klein": [one.weights] * 2,
    }
    assert one.text.qwen3_tokenizer.startswith(one.weights)


@pytest.mark.parametrize(("model", "downloaded"), [("klein", ["klein"]), ("flux_dev", ["flux_dev", "int8"])])
def test_weights_are_downloaded_into_that_folder(model, downloaded, notebook):
    commands = []
    names = run_cells(notebook, MODEL=model)
    names["run"] = lambda *arguments: commands.append(arguments)
    (cell,) = (cell for cell in notebook.cells if cell.id == "weights")
    exec(cell.source, names)
    recipe, *mode = downloaded
    options = ["--quantize", *mode] if mode else []
    assert commands == [("uso_jax_convert", "download", recipe, "--to", names["WEIGHTS"], *options)]
    assert recipe in RECIPES


@pytest.fixture
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


@pytest.mark.slow
def test_every_cell_that_draws_runs_with_klein(notebook, tmp_path, monkeypatch, cheap_compilation):
    """Run them on tiny weights without a projector, where style images are references as content images are."""
    monkeypatch.setenv("USO_WEIGHTS", str(oracle_flux2.write(tmp_path / "weights")))
    mesh, open_weights = sharding.make_mesh({"data": 1}, jax.devices()[:1]), USOPipeline.from_weights
    here = lambda name, **options: open_weights(name, mesh=mesh, compilation_cache=False, **options)
    monkeypatch.setattr(USOPipeline, "from_weights", here)
    monkeypatch.chdir(tmp_path)
    drawing = [cell.id for cell in notebook.cells if cell.cell_type == "code" and cell.id.startswith("code-")]
    assert len(drawing) == 10
    names = run_cells(notebook, "install", *drawing, MODEL="klein", REFERENCE_SIDE=None)
    record = names["result"].records[0]["request"]
    assert [reference["path"] for reference in record["contents"]] == [str(tmp_path / "glass.png")]
    assert not record["styles"] and (tmp_path / "image.png").is_file()
    assert (np.asarray(names["kept"]) != np.asarray(names["shifted"])).any()


def test_it_is_kept_without_outputs(notebook):
    nbformat.validate(notebook)
    assert not [
        cell.id for cell in notebook.cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)
    ]
