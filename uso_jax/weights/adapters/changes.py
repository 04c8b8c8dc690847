# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the tensors of an adapted module add to its weight and bias, in PyTorch's order [outputs, inputs].

    LoRA    s up down, with a `mid` between them: s up mid down                 s = alpha / rank
    LoHa    s (w1_a w1_b) * (w2_a w2_b), elementwise                            LyCORIS, modules/loha.py
    LoKr    s kron(w1, w2); each factor whole or w_a w_b; s = 1 if both whole   LyCORIS, modules/lokr.py
    diff    a difference as it is; value - base for a tensor that is replaced
    DoRA    W' = m (W + D) / |W + D|, where D is one of the above. The norm is over the inputs of each output (PEFT;
            LyCORIS with wd_on_output), or over the outputs of each input (LyCORIS before).

A strength multiplies the change: W + strength (W' - W).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from uso_jax.common.errors import InputError
from uso_jax.weights.adapters.keys import Module
from uso_jax.weights.files.tensors import LazyTensor

Rows = Callable[[int, int], np.ndarray]  # rows [start, stop) of a product in float32


@dataclass(frozen=True)
class LowRank:
    """Factors of a change: `up` [outputs, rank] times `down` [rank, inputs] times `scale`."""

    down: LazyTensor
    up: LazyTensor
    scale: float


@dataclass(frozen=True)
class Change:
    """What one tensor of the base becomes.

    Attributes:
      key: of the tensor, among those of `Names.entries`.
      rows: of the difference, or of the new value.
      replaces: `rows` are the new value.
      magnitude: DoRA's norms of the new rows [outputs] or [outputs, 1], or columns [1, inputs].
      low_rank: the factors, if the change is nothing but their product.
    """

    key: str
    rows: Rows
    replaces: bool = False
    magnitude: LazyTensor | None = None
    low_rank: LowRank | None = None

    def difference(self, base: Callable[[], np.ndarray], start: int, stop: int) -> np.ndarray:
        """Return rows of what is added to the tensor at strength 1; `base` reads the whole tensor.

        Raises:
          InputError: numbers are NaN or infinite.
        """
        if self.replaces:
            found = self.rows(start, stop) - np.asarray(base()[start:stop], np.float32)
        elif self.magnitude is None:
            found = self.rows(start, stop)
        else:
            found = self._decomposed(np.asarray(base(), np.float32))[start:stop]
        if not np.isfinite(found).all():
            raise InputError(f"what it adds to {self.key} is NaN or infinite; take another file of it")
        return found

    def _decomposed(self, base: np.ndarray) -> np.ndarray:
        whole = base + self.rows(0, len(base))
        magnitude = _matrix(self.magnitude)
        magnitude = magnitude if magnitude.shape == (1, base.shape[1]) else magnitude.reshape(-1, 1)
        axis = 0 if len(magnitude) == 1 != len(base) else 1
        norm = np.linalg.norm(whole, axis=axis, keepdims=True)
        return whole * (magnitude / np.maximum(norm, np.finfo(np.float32).tiny)) - base


def changes_of(
    module: Module, shapes: Mapping[str, tuple[int, ...]], weight: str | None, bias: str | None
) -> list[Change]:
    """Return the changes of a module.

    Args:
      module: its tensors.
      shapes: of the base's tensors by key.
      weight, bias: keys of the module's weight and bias; None: the base has none.

    Raises:
      InputError: tensors are missing, or are not of the base's shape.
    """
    has, found = module.tensors, []
    pairs = [("diff_b", "up_bias"), ("diff", "value")]
    for names, key in zip(pairs, (bias, weight), strict=True):
        for name in names:
            if name in has:
                found.append(_whole(module, has[name], name, key, shapes))
    product = next((make for kind, make in _PRODUCTS.items() if any(name.startswith(kind) for name in has)), None)
    if product is None:
        if not found or "magnitude" in has:
            raise InputError(f"{module.name} has only {', '.join(has) or 'alpha'}; the file is not complete")
        return found
    if weight is None:
        raise InputError(f"{module.name} is no module of the base")
    try:
        shape, rows, low_rank = product(module)
    except KeyError as error:
        raise InputError(f"{module.name} lacks {error.args[0]}; the file is not complete") from error
    want = shapes[weight]
    if int(np.prod(shape)) != int(np.prod(want)) or (shape != want and low_rank is not None):
        raise InputError(f"{module.name} changes a weight of {list(shape)}, the base has {list(want)}")
    magnitude = has.get("magnitude")
    if magnitude is not None:
        outputs, inputs = want
        if magnitude.shape not in ((outputs,), (outputs, 1), (1, inputs)):
            raise InputError(f"{module.name}: magnitudes of {list(magnitude.shape)} do not fit {list(want)}")
        low_rank = None
    reshaped = rows if shape == want else lambda start, stop: rows(0, shape[0]).reshape(want)[start:stop]
    return [*found, Change(weight, reshaped, magnitude=magnitude, low_rank=low_rank)]


def value_of(key: str, tensor: LazyTensor, shape: tuple[int, ...]) -> Change:
    """Return the change that replaces a tensor of the base.

    Raises:
      InputError: it has another shape.
    """
    return _whole(Module(key, [key], {}), tensor, "value", key, {key: shape})


def _whole(
    module: Module, tensor: LazyTensor, role: str, key: str | None, shapes: Mapping[str, tuple[int, ...]]
) -> Change:
    if key is None:
        raise InputError(f"{module.name} has no {'bias' if role in ('diff_b', 'up_bias') else 'weight'} in the base")
    if int(np.prod(tensor.shape)) != int(np.prod(shapes[key])) or 0 in tensor.shape:
        raise InputError(f"{module.name}.{role} is {list(tensor.shape)}, the base has {list(shapes[key])}")
    # PEFT scales the bias of `lora_B` like the product before it.
    down = module.tensors.get("down")
    scale = np.float32(module.scale(down.shape[0] if down else None)) if role == "up_bias" else np.float32(1)

    def rows(start: int, stop: int) -> np.ndarray:
        return (tensor.read().astype(np.float32) * scale).reshape(shapes[key])[start:stop]

    return Change(key, rows, replaces=role == "value")


# ---------------------------------------------------------------------------------------------------- products

Product = tuple[tuple[int, ...], Rows, LowRank | None]  # shape, rows, and factors if there are two


def _matrix(tensor: LazyTensor) -> np.ndarray:
    """Read a factor in float32; layers that were written as convolutions of one pixel have further axes."""
    return tensor.read().astype(np.float32).reshape(tensor.shape[0], -1)


def _plain(module: Module, name: str) -> LazyTensor:
    tensor = module.tensors[name]
    if len(tensor.shape) < 2 or 0 in tensor.shape or any(size != 1 for size in tensor.shape[2:]):
        raise InputError(f"{module.name}.{name} has shape {list(tensor.shape)}, not that of a matrix")
    return tensor


def _chain(module: Module, *names: str) -> list[LazyTensor]:
    """Return factors whose product exists."""
    found = [_plain(module, name) for name in names]
    for left, right, a, b in zip(found, found[1:], names, names[1:], strict=False):
        if left.shape[1] != right.shape[0]:
            raise InputError(f"{module.name}: {a} {list(left.shape)} and {b} {list(right.shape)} are not of one rank")
    return found


def _lora(module: Module) -> Product:
    names = ("up", "mid", "down") if "mid" in module.tensors else ("up", "down")
    up, *mid, down = _chain(module, *names)
    scale = np.float32(module.scale(down.shape[0]))

    def rows(start: int, stop: int) -> np.ndarray:
        left = up.read(start, stop).astype(np.float32).reshape(-1, up.shape[1]) * scale
        for factor in mid:
            left = left @ _matrix(factor)
        return (_matrix(down).T @ left.T).T  # in the memory order of kernels [inputs, outputs], to which it is added

    return (up.shape[0], down.shape[1]), rows, None if mid else LowRank(down, up, float(scale))


def _loha(module: Module) -> Product:
    if any(name.startswith("hada_t") for name in module.tensors):
        raise InputError(f"{module.name} is a LoHa of a convolution, which transformers do not have")
    pairs = [_chain(module, f"hada_w{i}_a", f"hada_w{i}_b") for i in (1, 2)]
    shape, other = ((a.shape[0], b.shape[1]) for a, b in pairs)
    if shape != other:
        raise InputError(f"{module.name}: the factors of LoHa are {list(shape)} and {list(other)}")
    scale = np.float32(module.scale(pairs[0][1].shape[0]))

    def rows(start: int, stop: int) -> np.ndarray:
        first, second = (a.read(start, stop).astype(np.float32) @ _matrix(b) for a, b in pairs)
        return first * second * scale

    return shape, rows, None


def _lokr(module: Module) -> Product:
    if "lokr_t2" in module.tensors:
        raise InputError(f"{module.name} is a LoKr of a convolution, which transformers do not have")
    factors, rank = [], None
    for name in ("lokr_w1", "lokr_w2"):
        if name in module.tensors:
            factors.append([_plain(module, name)])
        else:
            factors.append(_chain(module, f"{name}_a", f"{name}_b"))
            rank = factors[-1][1].shape[0]  # LyCORIS takes that of w2 where both have one
    scale = np.float32(module.scale(rank))
    shape = tuple(int(np.prod([factor[0 if axis == 0 else -1].shape[axis] for factor in factors])) for axis in (0, 1))

    def rows(start: int, stop: int) -> np.ndarray:
        first, second = (
            _matrix(parts[0]) if len(parts) == 1 else _matrix(parts[0]) @ _matrix(parts[1]) for parts in factors
        )
        return np.kron(first * scale, second)[start:stop]

    return shape, rows, None


_PRODUCTS: Mapping[str, Callable[[Module], Product]] = {
    "hada_": _loha, "lokr_": _lokr, "down": _lora, "up": _lora, "mid": _lora,
}  # fmt: skip
