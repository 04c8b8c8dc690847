# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The commands of docs/finetune.md, as they stand there, from a folder of images to files for other programs."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tiny
import xla_flags
from PIL import Image
from safetensors import safe_open

pytestmark = pytest.mark.slow  # runs whole programs
ENDINGS = ("png", "jpg", "webp", "bmp", "gif", "tiff")
FEWER = "--steps 3 --config.stages.adapters.warmup_steps=1 --config.heldout.num_steps=2"  # than the tutorial has
LEFT_OUT = ("--data more", "uso-app", "push")  # a second training, a server, the hub


def commands() -> list[str]:
    text = (tiny.ROOT / "docs" / "finetune.md").read_text()
    lines = "\n".join(re.findall(r"^```bash\n(.*?)^```$", text, re.M | re.S)).splitlines()
    return [line for line in lines if line and not any(part in line for part in LEFT_OUT)]


def write_images(folder: pathlib.Path) -> None:
    """Write twelve triplets in mixed formats, as the tutorial describes them."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    image = lambda: Image.fromarray(np.kron(draw.integers(0, 256, (4, 4, 3)), np.ones((12, 12, 1))).astype(np.uint8))
    for number in range(1, 13):
        image().save(folder / f"{number:02d}.{ENDINGS[number % len(ENDINGS)]}")
        image().save(folder / f"{number:02d}.content.jpg")
        image().save(folder / f"{number:02d}.style.png")
        if number % 2:
            (folder / f"{number:02d}.txt").write_text(f"drawing {number}\n")


def test_from_a_folder_to_files(tmp_path):
    write_images(tmp_path / "mine")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling is most of it
        "XLA_FLAGS": xla_flags.flags(),
    }
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), environment["PATH"]])
    first, *others = commands()
    assert first.startswith("uso-train") and len(others) == 7
    for command in others:  # the first training is the second one without samples, and its end would be this one's
        full = command.replace("--config finetune", f"--config finetune {FEWER}")
        done = subprocess.run(
            full, shell=True, cwd=tmp_path, env=environment | {"PATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    (image,) = (tmp_path / "images").glob("*.png")
    with Image.open(image) as made:
        assert made.size == (64, 64)
    assert list((tmp_path / "runs" / "mine" / "samples" / "own").glob("*.png"))
    files = {"dit_lora.safetensors", "lora.safetensors", "pytorch_lora_weights.safetensors"}
    assert files <= {file.name for file in (tmp_path / "adapter").iterdir()}
    for name in files:
        with safe_open(tmp_path / "adapter" / name, "numpy") as file:
            assert len(list(file.keys())) >= 28
