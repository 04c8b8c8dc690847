# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Convert adapters for FLUX from common layouts into USO's.

Every layout stores `down` and `up` of some rank for each module, and optionally an `alpha`: the adapter is multiplied
by alpha / rank. Layouts differ in the names of modules, and in whether they adapt queries, keys and values together, as
USO does, or separately. Separate ones are combined exactly: three adapters with an identical `down` are one adapter of
the same rank, which is also how this project writes them; otherwise they become the three blocks of one adapter of
three times the rank. Adapters of lower rank are padded with zeros, which changes nothing; a file with mixed ranks is
rejected unless the caller allows padding. Modules that a file does not adapt get zeros. Modules that USO does not adapt
are an error, because USO has no parameters for them.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.weights.files.tensors import File, LazyTensor, Sources, computed
from uso_jax.weights.tables.table import DENSE, Row

_QKV = ("to_q", "to_k", "to_v")  # of the image stream, and of single blocks
_ADDED_QKV = ("add_q_proj", "add_k_proj", "add_v_proj")

# fmt: off
_MODULES: tuple[tuple[str, str, int | None], ...] = (  # module, USO's adapter of it, which third of that adapter
    *((f"{blocks}.{{i}}.processor.{name}", f"{blocks}.{{i}}.processor.{name}", None)
      for blocks, names in (("double_blocks", ("qkv_lora1", "qkv_lora2", "proj_lora1", "proj_lora2")),
                            ("single_blocks", ("qkv_lora", "proj_lora"))) for name in names),
    # black-forest-labs names: ComfyUI, kohya
    ("double_blocks.{i}.img_attn.qkv",            "double_blocks.{i}.processor.qkv_lora1",  None),
    ("double_blocks.{i}.txt_attn.qkv",            "double_blocks.{i}.processor.qkv_lora2",  None),
    ("double_blocks.{i}.img_attn.proj",           "double_blocks.{i}.processor.proj_lora1", None),
    ("double_blocks.{i}.txt_attn.proj",           "double_blocks.{i}.processor.proj_lora2", None),
    ("single_blocks.{i}.linear1_qkv",             "single_blocks.{i}.processor.qkv_lora",   None),
    ("single_blocks.{i}.linear1",                 "single_blocks.{i}.processor.qkv_lora",   None),
    ("single_blocks.{i}.linear2",                 "single_blocks.{i}.processor.proj_lora",  None),
    # diffusers names: PEFT, ai-toolkit
    *((f"transformer_blocks.{{i}}.attn.{name}",   "double_blocks.{i}.processor.qkv_lora1",  j)
      for j, name in enumerate(_QKV)),
    *((f"transformer_blocks.{{i}}.attn.{name}",   "double_blocks.{i}.processor.qkv_lora2",  j)
      for j, name in enumerate(_ADDED_QKV)),
    ("transformer_blocks.{i}.attn.to_out.0",      "double_blocks.{i}.processor.proj_lora1", None),
    ("transformer_blocks.{i}.attn.to_add_out",    "double_blocks.{i}.processor.proj_lora2", None),
    *((f"single_transformer_blocks.{{i}}.attn.{name}", "single_blocks.{i}.processor.qkv_lora", j)
      for j, name in enumerate(_QKV)),
    ("single_transformer_blocks.{i}.proj_out",    "single_blocks.{i}.processor.proj_lora",  None),
    # of FLUX.2
    ("single_transformer_blocks.{i}.attn.to_qkv_mlp_proj", "single_blocks.{i}.processor.qkv_lora", None),
    ("single_transformer_blocks.{i}.attn.to_out", "single_blocks.{i}.processor.proj_lora",  None),
)
# fmt: on

# kohya writes every dot of a module as "_".
_PATTERNS = tuple(
    (re.compile(re.escape(module).replace(r"\.", "[._]").replace(r"\{i\}", r"(\d+)")), adapter, third)
    for module, adapter, third in _MODULES
)
_PREFIXES = re.compile(
    r"(base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|transformer\.|lora_unet_|lora_transformer_)*"
)
_HALVES = re.compile(
    r"\.(?:(?P<down>lora_A|lora_down|lora\.down|lora_linear_layer\.down|down)"
    r"|(?P<up>lora_B|lora_up|lora\.up|lora_linear_layer\.up|up))(?:\.default)?\.weight|\.(?P<alpha>alpha)"
)
HALF = (
    r"\.((lora_[AB]|lora_(down|up)|lora\.(down|up)|lora_linear_layer\.(down|up))(\.default)?\.weight|alpha|dora_scale)"
)
"""Pattern of the ends of adapter keys in all layouts."""


@dataclasses.dataclass
class _Pair:
    """One adapted module of a file."""

    module: str
    keys: list[str]
    down: LazyTensor | None = None
    up: LazyTensor | None = None
    alpha: float | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def factor(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclasses.dataclass
class Adapters:
    """A file's adapters under USO's names, and their problems by kind."""

    sources: Sources
    missing: list[str]
    wrong: list[str]
    notes: list[str]


def normalise(found: Sources, files: Sequence[File], pad_ranks: bool = False) -> Adapters:
    """Convert adapters of any layout into USO's.

    Raises:
      InputError: the file adapts modules that USO does not, is not a plain LoRA, or has mixed ranks.
    """
    adapters, stray = _parse(found)
    _refuse_stray(stray)
    _add_alphas(adapters, files)
    result = Adapters({}, [], [], [])
    pairs = [pair for parts in adapters.values() for pair in parts.values()]
    for pair in pairs:
        _check(pair, result)
    if result.missing or result.wrong:
        return result
    ranks = sorted({pair.rank for pair in pairs})
    if len(ranks) > 1 and not pad_ranks:
        raise InputError(
            f"the adapters have different ranks ({', '.join(map(str, ranks[:8]))}), the model has one; pass --pad-ranks"
            f" to pad all of them to {ranks[-1]} with zeros, which costs memory and time but changes no result"
        )
    joined = {name: _join(name, parts, result) for name, parts in adapters.items()}
    if result.wrong:
        return result
    rank = max(down.shape[0] for down, _ in joined.values())
    for name, (down, up) in joined.items():
        result.sources[f"{name}.down.weight"] = _padded(down, rank, axis=0)
        result.sources[f"{name}.up.weight"] = _padded(up, rank, axis=1)
    if rank > ranks[-1]:
        result.notes.append(f"q, k and v are adapted apart: rank {ranks[-1]} each is rank {rank} together")
    elif len(ranks) > 1:
        result.notes.append(f"ranks {', '.join(map(str, ranks))}, all filled up to {rank}")
    if any(pair.factor != 1 for pair in pairs):
        result.notes.append("alpha / rank is multiplied into up")
    return result


def _parse(found: Sources) -> tuple[dict[str, dict[int | None, _Pair]], list[str]]:
    """Group keys by USO's adapter and, if a file adapts q, k and v separately, by which of them it is."""
    adapters: dict[str, dict[int | None, _Pair]] = {}
    stray = []
    for key, source in found.items():
        half = next((m for m in _HALVES.finditer(key) if m.end() == len(key)), None)
        module = _PREFIXES.sub("", key[: half.start()], count=1) if half else ""
        matches = ((p.fullmatch(module), adapter, third) for p, adapter, third in _PATTERNS)
        match, adapter, third = next((m for m in matches if m[0]), (None, "", None))
        if match is None:
            stray.append(key)
            continue
        pair = adapters.setdefault(adapter.format(i=int(match[1])), {}).setdefault(third, _Pair(module, []))
        pair.keys.append(key)
        if half["alpha"]:
            pair.alpha = _number(key, source)
        elif getattr(pair, name := "down" if half["down"] else "up") is None:
            setattr(pair, name, source)
        else:
            raise InputError(f"{pair.module} is adapted twice ({key})")
    return adapters, stray


def _number(key: str, source: LazyTensor) -> float:
    if math.prod(source.shape) != 1:
        raise InputError(f"{key} has shape {list(source.shape)}, not one number")
    value = float(source.read().reshape(()))
    if not math.isfinite(value):
        raise InputError(f"{key} is {value}, not a finite number")
    return value


def _refuse_stray(stray: list[str]) -> None:
    if not stray:
        return
    modules = sorted({re.sub(r"\d+", "N", re.sub(HALF + r"$", "", key)) for key in stray})
    some = f"{', '.join(modules[:6])}{', ...' if len(modules) > 6 else ''}"
    if any(key.endswith("dora_scale") or "magnitude" in key for key in stray):
        raise InputError(
            f"these adapters are DoRA ({some}), which scales columns and is not a LoRA; train a plain LoRA"
        )
    raise InputError(
        f"{len(stray)} stray: the adapters also change {some}, which USO has no adapters for; only the attention's qkv"
        " and output projections can be imported, so train for those, or merge the file into a transformer elsewhere"
    )


def _add_alphas(adapters: dict[str, dict[int | None, _Pair]], files: Sequence[File]) -> None:
    """Add alphas that are not tensors: from the file's metadata, or from PEFT's adapter_config.json."""
    for file in files:
        config = _peft_config(file)
        if not isinstance(alpha := config.get("lora_alpha"), int | float) or isinstance(alpha, bool):
            continue
        if config.get("alpha_pattern") or config.get("use_dora"):
            raise InputError(f"{file.path}: PEFT's alpha_pattern and DoRA are not supported; save a plain LoRA")
        for parts in adapters.values():
            for pair in parts.values():
                if pair.alpha is None and pair.down is not None and pair.down.shape and pair.keys[0] in file.tensors:
                    # rsLoRA multiplies an adapter by alpha / sqrt(rank).
                    pair.alpha = alpha * math.sqrt(pair.rank) if config.get("use_rslora") else float(alpha)


def _peft_config(file: File) -> dict:
    if notes := file.metadata.get("lora_adapter_metadata"):
        config = untrusted.json(notes, dict, f"{file.path}: its adapter configuration")
        return {key.removeprefix("transformer."): value for key, value in config.items()}
    beside = file.path.parent / "adapter_config.json"
    if any(key.startswith("base_model.model.") for key in file.tensors) and beside.exists():
        return untrusted.json(beside, dict)
    return {}


def _check(pair: _Pair, result: Adapters) -> None:
    if pair.down is None or pair.up is None:
        result.missing.append(f"{pair.module}.{'down' if pair.down is None else 'up'}")
        return
    down, up = pair.down.shape, pair.up.shape
    # An empty tensor may claim any size on its other axes without holding a byte.
    if len(down) != 2 or len(up) != 2 or 0 in (*down, *up) or down[0] != up[1]:
        result.wrong.append(f"{pair.module}: down {list(down)} and up {list(up)} are not of one rank")


def _join(name: str, parts: dict[int | None, _Pair], result: Adapters) -> tuple[LazyTensor, LazyTensor]:
    """Combine the adapters of a module, or of its queries, keys and values, into one (down, up)."""
    if None in parts:
        if len(parts) > 1:
            raise InputError(f"{name} is adapted both as a whole and as q, k and v apart")
        (pair,) = parts.values()
        return pair.down, _scaled_up(pair, _rows(pair))
    width = next(iter(parts.values())).down.shape[1]
    for pair in parts.values():
        if pair.up.shape[0] != width or pair.down.shape[1] != width:
            result.wrong.append(
                f"{pair.module}: {list(pair.down.shape)} and {list(pair.up.shape)} are not of width {width}"
            )
    first = next(iter(parts.values()))
    if result.wrong:
        return first.down, first.up
    thirds = [parts.get(third) for third in range(3)]
    bits = {pair.down.read().tobytes() for pair in parts.values()}
    shared = len(bits) == 1 and len({pair.down.dtype for pair in parts.values()}) == 1
    ups = [pair and _scaled_up(pair, width) for pair in thirds]
    dtypes = {up.dtype for up in ups if up}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
    if shared:

        def up() -> np.ndarray:
            blocks = [np.zeros((width, first.rank), dtype) if u is None else u.read().astype(dtype) for u in ups]
            return np.concatenate(blocks)

        return first.down, computed(first.up, (3 * width, first.rank), up, dtype)
    rank = sum(pair.rank for pair in parts.values())

    def down() -> np.ndarray:
        return np.concatenate([pair.down.read() for pair in thirds if pair])

    def blocks() -> np.ndarray:
        out, column = np.zeros((3 * width, rank), dtype), 0
        for third, (pair, up) in enumerate(zip(thirds, ups, strict=True)):
            if pair:
                out[third * width : (third + 1) * width, column : column + pair.rank] = up.read()
                column += pair.rank
        return out

    return computed(first.down, (rank, width), down), computed(first.up, (3 * width, rank), blocks, dtype)


def _rows(pair: _Pair) -> int:
    """Return the number of rows of `up` that USO adapts: of a whole `linear1` or its like, those for q, k and v.

    Raises:
      InputError: the other rows are not zero.
    """
    rows, width = pair.up.shape[0], pair.down.shape[1]
    if not re.fullmatch(r"single_.*(linear1|to_qkv_mlp_proj)", pair.module) or rows <= 3 * width:
        return rows
    if np.any(pair.up.read(3 * width, rows) != 0):
        raise InputError(
            f"the adapters also change {pair.module}'s mlp part, which USO has no adapters for; train for the attention"
            " alone, or merge the file into a transformer elsewhere"
        )
    return 3 * width


def _scaled_up(pair: _Pair, rows: int) -> LazyTensor:
    up, factor = pair.up, pair.factor
    if factor == 1 and rows == up.shape[0]:
        return up
    # Multiplying by a power of two is exact unless the exponent overflows; other products are kept in float32.
    exact = factor != 0 and abs(math.frexp(factor)[0]) == 0.5 and up.dtype != np.float16
    dtype = up.dtype if exact else np.dtype(np.float32)

    read = lambda: (up.read(0, rows).astype(np.float32) * np.float32(factor)).astype(dtype)
    return computed(up, (rows, up.shape[1]), read, dtype)


def _padded(source: LazyTensor, rank: int, axis: int) -> LazyTensor:
    if source.shape[axis] == rank:
        return source
    shape = tuple(rank if i == axis else size for i, size in enumerate(source.shape))
    widths = [(0, size - old) for size, old in zip(shape, source.shape, strict=True)]
    return computed(source, shape, lambda: np.pad(source.read(), widths))


# ---------------------------------------------------------------------------------------------------- out


UNADAPTED = "single_blocks/processor/mlp_lora"  # zeros: the rows of FLUX.2's fused layer that no adapter changes
_FUSED = (
    ("transformer_blocks.{i}.attn", _QKV, "double_blocks/processor/qkv_lora1"),
    ("transformer_blocks.{i}.attn", _ADDED_QKV, "double_blocks/processor/qkv_lora2"),
)
_WHOLE = (
    ("transformer_blocks.{i}.attn.to_out.0", "double_blocks/processor/proj_lora1"),
    ("transformer_blocks.{i}.attn.to_add_out", "double_blocks/processor/proj_lora2"),
)


def peft_rows(prefix: str) -> tuple[Row, ...]:
    """Return the table for writing adapters in PEFT's layout: q, k and v each with the whole `down`."""
    fused = (*_FUSED, ("single_transformer_blocks.{i}.attn", _QKV, "single_blocks/processor/qkv_lora"))
    whole = (*_WHOLE, ("single_transformer_blocks.{i}.proj_out", "single_blocks/processor/proj_lora"))
    return _peft_rows(prefix, fused, whole)


def peft_rows_flux2(prefix: str) -> tuple[Row, ...]:
    """Return the table for FLUX.2, whose single blocks have one layer for q, k, v and the MLP (`UNADAPTED`)."""
    single, adapter = f"{prefix}single_transformer_blocks.{{i}}.attn", "single_blocks/processor/qkv_lora"
    return (
        *_peft_rows(
            prefix,
            _FUSED,
            (*_WHOLE, ("single_transformer_blocks.{i}.attn.to_out", "single_blocks/processor/proj_lora")),
        ),
        (f"{single}.to_qkv_mlp_proj.lora_A", f"{adapter}/down", DENSE),
        (f"{single}.to_qkv_mlp_proj.lora_B", (f"{adapter}/up", f"{UNADAPTED}/up"), DENSE),
    )


def _peft_rows(prefix: str, fused, whole) -> tuple[Row, ...]:
    rows: list[Row] = []
    for block, names, adapter in fused:
        rows += [(f"{prefix}{block}.{name}.lora_A", f"{adapter}/down", DENSE) for name in names]
        rows.append((tuple(f"{prefix}{block}.{name}.lora_B" for name in names), f"{adapter}/up", DENSE))
    for module, adapter in whole:
        rows += [
            (f"{prefix}{module}.lora_A", f"{adapter}/down", DENSE),
            (f"{prefix}{module}.lora_B", f"{adapter}/up", DENSE),
        ]
    return tuple(rows)


TARGETS = (
    r"(single_)?transformer_blocks\.\d+\.attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)"
    r"|single_transformer_blocks\.\d+\.(proj_out|attn\.(to_qkv_mlp_proj|to_out))"
)
"""The adapted modules as a regular expression in diffusers' names, for PEFT's adapter_config.json."""
