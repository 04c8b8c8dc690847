# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Text of planner reports: lines for one report, Markdown tables for several and for two runs of the planner."""

from typing import Any

from uso_jax.hardware.chips import GIB

Report = dict[str, Any]


def table(reports: list[Report]) -> str:
    """Return reports as a Markdown table, one row each."""
    head = ("program", "topology", "mesh", "batch", "tokens", "weights", "arguments GiB", "temporaries GiB",
            "resident GiB", "fits", "TFLOP", "sent GiB", "bound ms", "compiler CPU s")  # fmt: skip
    rows = [head, tuple("---" for _ in head)]
    for one in reports:
        gib = lambda name, one=one: f"{one[name] / GIB:.2f}"
        mesh = " ".join(f"{axis} {size}" for axis, size in one["mesh"].items() if size > 1) or "1"
        sent = sum(kind["sent_bytes"] for kind in one["collectives"].values()) / GIB
        bound = one["roofline"].get("seconds")
        batch = f"{one['batch']}" + (f" in {one['accumulate']}" if one["accumulate"] > 1 else "")
        title = one["program"] + " (quick)" * one["quick"]
        stored = (one["quantization"] or "bf16") + ", activations too" * one.get("quantize_activations", False)
        rows.append((
            title, one["topology"], mesh, batch, str(one["tokens"]), stored,
            gib("argument_bytes"), gib("temporary_bytes"), gib("idle_bytes"), "yes" if one["fits"] else "no",
            f"{one['model_flops'] / 1e12:.1f}", f"{sent:.2f}", "" if bound is None else f"{1000 * bound:.0f}",
            f"{one['compile_cpu_seconds']:.0f}",
        ))  # fmt: skip
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def describe(report: Report) -> str:
    """Return a report as lines of text."""
    gib = lambda name: f"{report[name] / GIB:.2f} GiB"
    lines = [
        f"{report['program']} of {report['config']} on {report['topology']}, {report['devices']} devices, mesh"
        f" {report['mesh']}, batch {report['batch']}, {report['tokens']} tokens",
        f"  per device       arguments {gib('argument_bytes')}, temporaries {gib('temporary_bytes')}, outputs"
        f" {gib('output_bytes')} ({gib('reused_bytes')} in place), resident {gib('idle_bytes')}",
        *([f"  host memory      {gib('host_bytes')} of temporaries"] if report["host_bytes"] else []),
        f"  {'fits' if report['fits'] else 'does not fit'}             {gib('total_bytes')} of {gib('usable_bytes')}",
        f"  compilation      {report['compile_seconds']:.1f} s, {report['compile_cpu_seconds']:.1f} s of CPU",
        "  FLOPs            {:.2f} TFLOP needed, {:.2f} executed".format(
            report["model_flops"] / 1e12, report["executed_flops"] / 1e12
        ),
    ]
    for kind, one in report["collectives"].items():
        lines.append(f"  {kind:<16} {one['count']} times, {one['sent_bytes'] / GIB:.3f} GiB sent per device")
    if report["roofline"]:
        one = report["roofline"]
        parts = ", ".join(f"{name} {1000 * one[f'{name}_seconds']:.1f}" for name in ("arithmetic", "memory", "network"))
        lines.append(f"  lower bound      {1000 * one['seconds']:.1f} ms, limited by {one['bound']} (ms: {parts})")
    lines += _times(report)
    for one in report["suggestions"]:
        verdict = "may fit" if one["estimated_fits"] else "does not fit either"
        lines.append(f"  {verdict}, about {one['estimated_bytes'] / GIB:.2f} GiB: {one['change']}")
    return "\n".join(lines)


def _times(report: Report) -> list[str]:
    if not report.get("kinds"):
        return []
    low, high = report["estimated_ms_low"], report["estimated_ms_high"]
    share = ""
    if report["roofline_ms"]:
        share = f", {report['roofline_ms'] / high:.0%} - {report['roofline_ms'] / low:.0%} of the lower bound's speed"
    lines = [f"  estimated time   {_span(report)} ms{share}"]
    for kind, one in report["kinds"].items():
        part = one["ms_high"] / high
        lines.append(f"    {kind:<14} {_span(one)} ms ({part:.1%} of the high end), {one['hbm_bytes'] / GIB:.2f} GiB")
    for one in report["dearest"]:
        where = f"{one['kind']}, {one['operation']}, {one['source'] or 'unknown source'}"
        lines.append(f"    {one['ms']:8.2f} ms   {where}, {one['hbm_bytes'] / GIB:.2f} GiB")
    return lines


def _span(one: Report) -> str:
    """Return both ends of the time of a report, or of one of its kinds."""
    name = "estimated_ms" if "estimated_ms_low" in one else "ms"
    return f"{one[f'{name}_low']:.1f} - {one[f'{name}_high']:.1f}"


def compare(old: list[Report], new: list[Report]) -> str:
    """Return Markdown tables of the estimated times of programs that both lists have, in milliseconds and GiB."""
    before = {_identity(one): one for one in old if one.get("kinds")}
    tables = []
    for one in new:
        if not one.get("kinds") or (other := before.get(_identity(one))) is None:
            continue
        head = (f"{one['program']}, {one['topology']}", "before, ms", "after, ms", "before, GiB", "after, GiB")
        rows = [head, tuple("---" for _ in head), ("all", _span(other), _span(one), _gib(other), _gib(one))]
        for kind, part in one["kinds"].items():
            was = other["kinds"][kind]
            gib = [f"{each['hbm_bytes'] / GIB:.2f}" for each in (was, part)]
            rows.append((kind, _span(was), _span(part), *gib))
        tables.append("\n".join("| " + " | ".join(row) + " |" for row in rows))
    return "\n\n".join(tables)


def _gib(report: Report) -> str:
    return f"{sum(one['hbm_bytes'] for one in report['kinds'].values()) / GIB:.2f}"


def _identity(report: Report) -> tuple[str, ...]:
    return tuple(str(report[name]) for name in ("program", "config", "topology", "mesh", "batch", "tokens"))
