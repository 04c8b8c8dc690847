# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The notebook runs from top to bottom, on a CPU with tiny weights."""

import os

import nbformat
import oracle_pipeline as oracle
import pytest
import tiny
from nbclient import NotebookClient

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
        "XLA_FLAGS": "",
    }
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "uso_jax_convert").symlink_to(tiny.ROOT / "convert")  # as setup.py names it
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(images) == 10
    made = (
        "image.png",
        "glass.safetensors",
        "my_lora.safetensors",
        "runs/mine/summary.json",
        "mine/lora/manifest.json",
    )
    assert not [name for name in made if not (tmp_path / name).is_file()]


def test_it_is_kept_without_outputs(notebook):
    nbformat.validate(notebook)
    assert not [
        cell.id for cell in notebook.cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)
    ]
