# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Adapters in everybody's layouts for a given base, each with the weights that it should make of that base.

The formulas here are written from the trainers' documentation, apart from the program's.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

Weights = dict[str, np.ndarray]
RANK, ALPHA = 3, 5.0


def halves(down: str, up: str) -> Callable:
    """Return LoRA in a layout's words, without an alpha."""

    def make(rng, weight):
        a, b = _draw(rng, (RANK, weight.shape[1])), _draw(rng, (weight.shape[0], RANK))
        return {down: a, up: b}, weight + b @ a

    return make


def with_alpha(down: str, up: str) -> Callable:
    def make(rng, weight):
        found, merged = halves(down, up)(rng, weight)
        return found | {"alpha": np.float32(ALPHA)}, weight + ALPHA / RANK * (merged - weight)

    return make


def mid(rng, weight):
    found, _ = halves("lora_down.weight", "lora_up.weight")(rng, weight)
    m = _draw(rng, (RANK, RANK))
    return found | {"lora_mid.weight": m}, weight + found["lora_up.weight"] @ m @ found["lora_down.weight"]


def loha(rng, weight):
    pairs = [(_draw(rng, (weight.shape[0], RANK)), _draw(rng, (RANK, weight.shape[1]))) for _ in range(2)]
    found = {f"hada_w{i}_{name}": x for i, pair in enumerate(pairs, 1) for name, x in zip("ab", pair, strict=True)}
    product = (pairs[0][0] @ pairs[0][1]) * (pairs[1][0] @ pairs[1][1])
    return found | {"alpha": np.float32(ALPHA)}, weight + ALPHA / RANK * product


def lokr(rng, weight):
    """Draw one whole factor and one of low rank; blocks of the product are the second times a number of the first."""
    outputs, inputs = weight.shape
    first = _draw(rng, (4, 4))
    a, b = _draw(rng, (outputs // 4, RANK)), _draw(rng, (RANK, inputs // 4))
    product = np.block([[number * (a @ b) for number in row] for row in first])
    found = {"lokr_w1": first, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": np.float32(ALPHA)}
    return found, weight + ALPHA / RANK * product


def lokr_whole(rng, weight):
    """Draw two whole factors, as ai-toolkit does with an alpha that means nothing."""
    first, second = _draw(rng, (2, 4)), _draw(rng, (weight.shape[0] // 2, weight.shape[1] // 4))
    product = np.block([[number * second for number in row] for row in first])
    return {"lokr_w1": first, "lokr_w2": second, "alpha": np.float32(1e10)}, weight + product


def dora(axis: int) -> Callable:
    """Return LyCORIS' DoRA: the norms are of outputs (axis 1), or of inputs (axis 0)."""

    def make(rng, weight):
        found, merged = with_alpha("lora_down.weight", "lora_up.weight")(rng, weight)
        norm = np.linalg.norm(merged, axis=axis, keepdims=True)
        scale = (np.linalg.norm(weight, axis=axis, keepdims=True) * rng.uniform(0.7, 1.3, norm.shape)).astype("f4")
        return found | {"dora_scale": scale}, merged * scale / norm

    return make


def difference(rng, weight):
    delta = _draw(rng, weight.shape)
    return {"diff": delta}, weight + delta


def _draw(rng, shape) -> np.ndarray:
    return (rng.normal(size=shape) * 0.6 * shape[-1] ** -0.5).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A layout: how a module's key starts, the method, and which modules have it.

    Attributes:
      bfl: modules have black-forest-labs' names.
      key: module -> the start of its keys.
      method: (rng, weight [outputs, inputs]) -> tensors by the end of their keys, merged weight.
      only: part of the names of the modules that are adapted; "" is the whole model.
      biases: end of keys of differences of biases, "" for none.
      norms: end of the keys of norms: differences, or whole values if it is "".
    """

    bfl: bool
    key: Callable[[str], str]
    method: Callable
    only: str = ""
    biases: str = ""
    norms: str | None = None

    def make(self, weights: Weights, seed: int = 0) -> tuple[Weights, Weights]:
        """Return an adapter's tensors for a base's weights in the layout's names, and the merged weights."""
        rng, found, merged = np.random.default_rng(seed), {}, dict(weights)
        for name, value in weights.items():
            module, _, leaf = name.rpartition(".")
            if self.only not in name:
                continue
            if value.ndim == 2:
                tensors, merged[name] = self.method(rng, value)
            elif leaf == "bias" and self.biases:
                delta = (0.3 * rng.normal(size=value.shape)).astype(np.float32)
                tensors, merged[name] = {self.biases: delta}, value + delta
            elif leaf != "bias" and self.norms is not None:
                new = (value + 0.3 * rng.normal(size=value.shape)).astype(np.float32)
                whole = not self.norms or self.norms.endswith("set_weight")
                tensors, merged[name] = {self.norms or leaf: new if whole else new - value}, new
            else:
                continue
            found |= {f"{self.key(module)}.{end}": np.asarray(x, np.float32) for end, x in tensors.items()}
        return found, merged


def dots(prefix: str) -> Callable[[str], str]:
    return lambda module: prefix + module


def underscores(prefix: str) -> Callable[[str], str]:
    return lambda module: prefix + module.replace(".", "_")


PEFT, KOHYA = ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")
LAYOUTS = {
    "black-forest-labs": Layout(True, dots(""), halves(*PEFT), biases="lora_B.bias", norms=""),
    "ai-toolkit": Layout(True, dots("diffusion_model."), halves(*PEFT)),
    "comfyui_diff": Layout(True, dots("diffusion_model."), difference, biases="diff_b", norms="diff"),
    "comfyui_set": Layout(True, dots("diffusion_model."), halves(*PEFT), norms="scale.set_weight"),
    "fal": Layout(True, dots("base_model.model."), halves(*PEFT)),
    "kohya": Layout(True, underscores("lora_unet_"), with_alpha(*KOHYA), only="_blocks."),
    "kohya_mid": Layout(True, underscores("lora_unet_"), mid, only="linear"),
    "kohya_loha": Layout(True, underscores("lora_unet_"), loha),
    "kohya_dora": Layout(True, underscores("lora_unet_"), dora(axis=0), biases="diff_b", norms="w_norm"),
    "diffusers": Layout(False, dots("transformer."), halves(*PEFT)),
    "diffusers_old": Layout(False, dots("transformer."), halves("lora.down.weight", "lora.up.weight"), only="attn"),
    "simpletuner": Layout(False, dots("unet.base_model.model."), halves(*PEFT), only="ff"),
    "onetrainer": Layout(False, underscores("lora_transformer_"), with_alpha(*KOHYA)),
    "onetrainer_dora": Layout(False, underscores("lora_transformer_"), dora(axis=1)),
    "lycoris_lokr": Layout(False, underscores("lycoris_"), lokr),
    "ai-toolkit_lokr": Layout(False, dots("diffusion_model."), lokr_whole),
}
