# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Files that users have: those that cannot be imported are named, and GGUF is read."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from convert.__main__ import main

FLUX1 = {"double_blocks.0.img_mod.lin.weight": (4, 4)}
DIFFUSERS = {"transformer_blocks.0.norm1.linear.weight": (4, 4)}
CASES = {  # what the sentence names -> tensors
    "FLUX.1 Fill": {"img_in.weight": (8, 384)} | FLUX1,
    "FLUX.1 Canny or Depth": {"x_embedder.weight": (8, 128)} | DIFFUSERS,
    "FLUX.1 Redux": {"redux_up.weight": (4, 4)},
    "Chroma": {"distilled_guidance_layer.in_proj.weight": (4, 4)} | FLUX1,
    "bitsandbytes": {"double_blocks.0.img_attn.qkv.weight.absmax": (4,)},
    "nunchaku": {"transformer_blocks.0.qkv_proj.qweight": (4, 4)},
    "ControlNet": {"controlnet_blocks.0.weight": (4, 4)},
    "SDXL": {"model.diffusion_model.input_blocks.4.1.proj_in.weight": (4, 4)},
    "Stable Diffusion 3": {"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (4, 4)},
    "Qwen-Image": {"transformer_blocks.0.img_mod.1.weight": (4, 4)},
    "Z-Image": {"noise_refiner.0.attention.to_q.weight": (4, 4)},
    "Wan": {"blocks.0.self_attn.q.weight": (4, 4)},
    "HiDream": {"double_stream_blocks.0.block.attn1.to_q.weight": (4, 4)},
    "PixArt": {"adaln_single.linear.weight": (4, 4)},
}


@pytest.mark.parametrize("name", CASES)
def test_strangers_are_named(name, tmp_path, capsys):
    path = tmp_path / "x.safetensors"
    save_file({key: np.zeros(shape, np.float32) for key, shape in CASES[name].items()}, path)
    with pytest.raises(SystemExit) as caught:
        main(["import", str(path), "--to", str(tmp_path / "w")])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and name in said and said.count("\n") == 1 and not (tmp_path / "w").exists()
