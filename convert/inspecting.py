# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Print what weight files and weights directories hold."""

import pathlib
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

from uso_jax import weights
from uso_jax.weights import manifest_configs
from uso_jax.weights.adapters.names import adapter_sizes

from .recognition import Checkpoint


def show_checkpoint(found: Checkpoint) -> None:
    """Print what the files of a component hold, and whether they fit its model."""
    tensors = [tensor for file in found.files for tensor in file.tensors.values()]
    dtypes = sorted({str(tensor.dtype) for tensor in tensors})
    print(f"{found.names}  ({format_bytes(sum(file.size for file in found.files))})")
    sections = manifest_configs.describe(found.family.component, found.config)
    lines = {
        "family": f"{found.family.name}: {found.family.title}",
        "component": found.family.component,
    }
    if found.family.component == "transformer":
        guided = found.config.guidance_embed
        lines["variant"] = "guidance-distilled (dev, Krea)" if guided else "without guidance (schnell)"
    lines |= {
        "tensors": f"{len(tensors):,} {' and '.join(dtypes)}",
        "parameters": f"{sum(struct.size for struct in found.shapes.values()):,}",
    }
    for section, values in sections.items():
        known = {k: v for k, v in values.items() if f"{section}.{k}" not in found.undetermined}
        own = section == found.family.component or found.family.component == "transformer"
        lines[section if own else f"needs {section}"] = ", ".join(f"{k} {_plain(v)}" for k, v in known.items())
    if found.quantised:
        lines["8 bits"] = f"{found.quantised:,} float8 tensors, which become bfloat16 on import"
    if found.notes:
        lines["note"] = "; ".join(found.notes)
    if found.undetermined:
        lines["unknown"] = f"{', '.join(found.undetermined)}; import needs --config"
    if found.ignored:
        lines["ignored"] = f"{found.ignored:,} tensors of other networks"
    lines |= {name: _some(keys) for name, keys in found.problems.items()}
    complete = "complete, nothing missing and nothing stray" + ("; sizes are needed" if found.undetermined else "")
    lines["verdict"] = "does not fit the model" if found.problems else complete
    _print_table(lines)


def show_component(directory: str | pathlib.Path, component: str) -> None:
    """Print one line about a component of a weights directory."""
    manifest = weights.manifest(directory, component)
    section = manifest["config"].get("lora", {})
    ranks = sorted({size.rank for size in adapter_sizes(section).values()}) if section else []
    more = f"  rank {', '.join(map(str, ranks))}" if ranks else ""
    found = manifest.get("quantization")
    more += f"  {len(found['parameters']):,} kernels {found['mode']}" if found else ""
    print(
        f"{pathlib.Path(directory) / f'{component:<11}'}  {manifest['parameters']:>14,} parameters"
        f"  {manifest['dtype']:<8}  {format_bytes(sum(manifest['files'].values())):>8}{more}"
    )


def format_bytes(number: int) -> str:
    """Format a number of bytes, such as "3.22 MiB"."""
    value, unit = float(number), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):  # noqa: B007
        if value < 1024:
            break
        value /= 1024
    return f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"


def _print_table(lines: dict[str, str]) -> None:
    width = max(map(len, lines))
    columns = min(shutil.get_terminal_size().columns, 120)
    for name, value in lines.items():
        indent = " " * (width + 4)
        text = textwrap.wrap(value, columns, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
        print(f"  {name:<{width}}  " + "\n".join(text).lstrip())


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(str, value))})"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _some(keys: Sequence[str]) -> str:
    return f"{len(keys):,}: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"
