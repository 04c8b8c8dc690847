# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The tasks of the benchmark in torch, by unmodified diffusers, transformers and PEFT."""

import itertools
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from peft import LoraConfig
from tasks import NETWORKS, RATE, Run, Sizes, normal, times, tokens
from transformers import SiglipVisionConfig, SiglipVisionModel

from convert.tables.lora_out import TARGETS

_SIGLIP = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")


Weights = dict[str, torch.Tensor]  # of a network, by torch's names, on the device


class Peer:
    """A task in torch. `eager` and `compiled` return functions that run it.

    Args:
      task: a name of tasks.NETWORKS.
      sizes: of networks and inputs.
      steps: of the whole sampling.
      threads: that torch uses.
      weights: of the task's network, used in place; None: random ones are drawn.
    """

    def __init__(self, task: str, sizes: Sizes, steps: int, threads: int, weights: Weights | None = None):
        torch.set_num_threads(threads)
        self._task, self._sizes, self._steps = task, sizes, steps
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        network = NETWORKS[task]
        self._dtype = getattr(torch, getattr(sizes, network).dtype)
        torch.manual_seed(0)
        torch.set_default_dtype(self._dtype)
        try:
            with torch.device(self._device if weights is None else "meta"):
                self._module = _MAKE[network](sizes).eval()
        finally:
            torch.set_default_dtype(torch.float32)
        if weights is not None:
            self._module.load_state_dict(weights, assign=True)
        self._module.requires_grad_(False)
        self.weights = dict(self._module.state_dict())  # before adapters change the names

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the weights that both sides start from, one after the other."""
        for key, x in self.weights.items():
            yield key.removeprefix("vision_model."), _numpy(x)

    def eager(self) -> Run:
        """Return a function that runs the task eagerly."""
        return self._run(self._module)

    def compiled(self) -> Run:
        """Return a function that runs the task under torch.compile. Its first call compiles."""
        return self._run(torch.compile(self._module))

    def peak_bytes(self, run: Run) -> int | None:
        """Return the peak device memory during a call, in bytes; None on CPU."""
        if self._device == "cpu":
            return None
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated()

    def _run(self, module: torch.nn.Module) -> Run:
        if self._task == "decode":
            z = self._put(normal(0, 1, *self._sizes.latent, self._sizes.autoencoder.z_channels).transpose(0, 3, 1, 2))
            decode = self._module.decode if module is self._module else torch.compile(self._module.decode)
            return self._forward(lambda: decode(z, return_dict=False)[0].permute(0, 2, 3, 1))
        if self._task == "siglip":
            side = self._sizes.siglip.image_size
            pixels = self._put(normal(0, 1, side, side, 3).transpose(0, 3, 1, 2))
            return self._forward(lambda: module(pixels).last_hidden_state)
        inputs, num = self._inputs(), np.prod(self._sizes.target)
        if self._task == "lora":
            return self._train(module, inputs, num)
        velocity = lambda **changes: module(**(inputs | changes), return_dict=False)[0][:, :num]
        if self._task == "step":
            return self._forward(velocity)
        moments = [torch.full((1,), float(t), device=self._device, dtype=self._dtype) for t in times(self._steps)]

        def sample():
            x, reference = inputs["hidden_states"].split([num, inputs["hidden_states"].shape[1] - num], dim=1)
            for t, s in itertools.pairwise(moments):
                x = x + (s - t) * velocity(hidden_states=torch.cat([x, reference], dim=1), timestep=t)
            return x

        return self._forward(sample)

    def _inputs(self) -> dict[str, torch.Tensor]:
        drawn = tokens(self._sizes)
        return {
            "hidden_states": self._put(np.concatenate([drawn["img"], drawn["ref_img"]], axis=1)),
            "encoder_hidden_states": self._put(drawn["txt"]),
            "pooled_projections": self._put(drawn["y"]),
            "timestep": self._put(drawn["timesteps"]),
            "guidance": self._put(drawn["guidance"]),
            "img_ids": self._put(np.concatenate([drawn["img_ids"], drawn["ref_ids"]], axis=1)[0]).float(),
            "txt_ids": torch.zeros(self._sizes.text, 3, device=self._device),
        }

    def _train(self, module: torch.nn.Module, inputs: dict[str, torch.Tensor], num: int) -> Run:
        """Return a training step of adapters. AdamW is fused, torch's fastest."""
        if not hasattr(self._module, "peft_config"):
            rank = self._sizes.rank
            self._module.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS))
            for x in self._module.parameters():
                x.data = x.data.to(self._dtype)  # PEFT creates adapters in float32
        if self._sizes.transformer.remat != "none":
            self._module.enable_gradient_checkpointing()
        self._module.train()
        adapters = [x for x in self._module.parameters() if x.requires_grad]
        optimizer = torch.optim.AdamW(adapters, lr=RATE, fused=True)
        target = self._put(normal(9, 1, num, self._sizes.transformer.in_channels)).float()

        def step():
            velocity = module(**inputs, return_dict=False)[0][:, :num].float()
            loss = (velocity - target).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return _numpy(loss.detach()[None])

        return step

    def _forward(self, function) -> Run:
        def run():
            with torch.no_grad():
                return _numpy(function().float())

        return run

    def _put(self, x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(self._device, self._dtype)


def matmul(side: int, dtype: str, threads: int) -> Run:
    """Return a function that multiplies two square matrices. The product stays on the device."""
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(side, side, device=device, dtype=getattr(torch, dtype)) for _ in range(2))

    def run():
        return _numpy((a @ b)[:1].float())

    return run


def _numpy(x: torch.Tensor) -> np.ndarray:
    x = x.detach().cpu()
    return x.view(torch.uint16).numpy().view(ml_dtypes.bfloat16) if x.dtype == torch.bfloat16 else x.numpy()


def _transformer(sizes: Sizes) -> FluxTransformer2DModel:
    c = sizes.transformer
    return FluxTransformer2DModel(
        in_channels=c.in_channels,
        num_layers=c.depth,
        num_single_layers=c.depth_single_blocks,
        attention_head_dim=c.head_dim,
        num_attention_heads=c.num_heads,
        joint_attention_dim=c.context_in_dim,
        pooled_projection_dim=c.vec_in_dim,
        guidance_embeds=True,
        axes_dims_rope=c.axes_dim,
    )


def _autoencoder(sizes: Sizes) -> AutoencoderKL:
    c, levels = sizes.autoencoder, len(sizes.autoencoder.ch_mult)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(c.ch * mult for mult in c.ch_mult),
        layers_per_block=c.num_res_blocks,
        latent_channels=c.z_channels,
        norm_num_groups=c.norm_groups,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _siglip(sizes: Sizes) -> SiglipVisionModel:
    return SiglipVisionModel(SiglipVisionConfig(**{name: getattr(sizes.siglip, name) for name in _SIGLIP}))


_MAKE = {"transformer": _transformer, "autoencoder": _autoencoder, "siglip": _siglip}
