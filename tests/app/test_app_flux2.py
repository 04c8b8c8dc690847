# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The web app with weights of FLUX.2, which are guided by a negative prompt and take any number of references."""

import gradio as gr
import numpy as np
import oracle_flux2 as oracle
import pytest
import tiny
from oracle_pipeline import open_pipeline, photo, pixels
from PIL import Image

from uso_jax.app.actions import Actions
from uso_jax.app.form import Form
from uso_jax.app.uploads import Upload
from uso_jax.inference.style_library import StyleLibrary

pytestmark = pytest.mark.slow  # compiles the whole pipeline


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


def test_controls_and_an_image(tmp_path):
    pipe = open_pipeline(oracle.write(tmp_path / "w"))
    actions = Actions(pipe, StyleLibrary(tmp_path / "styles"), tmp_path)
    with gr.Blocks():
        form = Form(pipe.about, actions.styles.names())
    assert form.controls["negative_prompt"].visible and form.controls["guidance"].visible

    sizes = {"content": (oracle.REFERENCE, 64), "style": (64, oracle.REFERENCE)}
    images = [photo(seed, *size) for seed, size in enumerate(sizes.values())]
    uploads = {name: Upload(str(tmp_path / f"{name}.png"), f"{name}.png") for name in sizes}
    for image, upload in zip(images, uploads.values(), strict=True):
        image.save(upload.path)
    asked = dict(prompt="a fox", negative_prompt="the snow", seed=5)
    values = {name: control.value for name, control in form.controls.items()}
    values |= {name: float(value) for name, value in values.items() if name.endswith("strength")} | uploads | asked
    _, record, _, ((file, _),) = actions.generate(values, [], gr.Progress())
    assert [reference["path"] for reference in record["request"]["contents"]] == ["content.png", "style.png"]
    with Image.open(file) as made:
        np.testing.assert_array_equal(np.asarray(made), pixels(pipe(**asked, contents=images))[0])
