# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Report of a curation: an HTML page with histograms and sample images, and all decisions as JSON Lines.

DIR/report/index.html       self-contained page with embedded images
DIR/report/decisions.jsonl  one line per candidate: its scores and the filter that rejected it
"""

import html
import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from uso_jax.common import atomic_files, locks
from uso_jax.common.errors import BadExample
from uso_jax.curation import selection
from uso_jax.curation.config import KeepConfig
from uso_jax.curation.selection import FILTERS, Decision
from uso_jax.curation.store import Folder, Row
from uso_jax.data.card import figure

_BINS = 30
_LISTED = 200  # failures listed on the page; decisions.jsonl has all
WORDS = {
    "all": "before any filter",
    "made": "references made",
    "style": "style like the target's",
    "subject": "subject like the target's",
    "judge": "judge's score",
    "duplicates": "no near-duplicate",
}


@dataclass(frozen=True)
class Precision:
    """Shares of correct references among some candidates, by the ground truth of the source."""

    count: int
    style: float
    content: float
    both: float


def precision(folder: Folder, keep: KeepConfig, decisions: Sequence[Decision]) -> dict[str, Precision]:
    """Return the precision after each filter, and under "truth" that of true drawings: the accuracy of the checks."""
    truth = {number: row for number, row in folder.all_rows("truth").items() if "failed" not in row}
    found = {}
    for name, left in selection.survivors(decisions, keep).items():
        if name != "all":
            found[name] = _shares([truth[one.number] for one in left], "")
    return found | {"truth": _shares(list(truth.values()), "true_")}


def _shares(rows: Sequence[Row], prefix: str) -> Precision:
    style, content = (np.array([row[f"{prefix}{name}_right"] for row in rows], bool) for name in ("style", "content"))
    share = lambda values: float(values.mean()) if len(values) else float("nan")
    return Precision(len(rows), share(style), share(content), share(style & content))


def markdown(folder: Folder, keep: KeepConfig, decisions: Sequence[Decision]) -> str:
    """Return the table of filters as Markdown, with precision if the step "truth" was run."""
    known = precision(folder, keep, decisions) if folder.has("truth") else {}
    columns = ["filter", "left", *(["style correct", "content correct", "both correct"] if known else [])]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for name, left in selection.survivors(decisions, keep).items():
        lines.append("| " + " | ".join([WORDS[name], f"{len(left):,}", *_cells(known, name)]) + " |")
    if known:
        lines.append("| " + " | ".join(["true drawings, same checks", "", *_cells(known, "truth")]) + " |")
    return "\n".join(lines) + "\n"


def _cells(known: Mapping[str, Precision], name: str) -> list[str]:
    if name not in known:
        return [""] * 3 if known else []
    shares = (known[name].style, known[name].content, known[name].both)
    return ["" if share != share else f"{share:.0%}" for share in shares]


def write_report(folder: Folder, keep: KeepConfig, sample: int = 24) -> list[Decision]:
    """Write page and decisions atomically, and return the decisions.

    Args:
      folder: the curation.
      keep: thresholds.
      sample: number of kept triplets on the page; each filter shows half as many rejected ones.

    Raises:
      InputError: a required step is not finished, or the report cannot be written.
    """
    decisions = selection.decide(folder, keep)
    where = folder.path / "report"
    lines = "".join(json.dumps(one.record(), ensure_ascii=False) + "\n" for one in decisions)
    with locks.hold(where), atomic_files.explained(where, "free some space."):
        atomic_files.write_file(where / "decisions.jsonl", lines)
        atomic_files.write_file(where / "index.html", _page(folder, keep, decisions, sample))
    return decisions


# ---------------------------------------------------------------------------------------------------- the page


def _page(folder: Folder, keep: KeepConfig, decisions: Sequence[Decision], sample: int) -> str:
    plots = []
    for name in (*selection.NETWORKS, "judge"):
        values = [one.scores[name] for one in decisions if name in one.scores]
        if values:
            plots.append(_histogram(name, np.asarray(values), getattr(keep, name)))
    failed = [one for one in decisions if one.failed_at == "made"]
    notes = [f"<li>{html.escape(_name(one))}: {html.escape(one.reason)}</li>" for one in failed[:_LISTED]]
    if len(failed) > _LISTED:
        notes.append(f"<li>and {len(failed) - _LISTED} more, in decisions.jsonl</li>")
    return _PAGE.substitute(
        title=html.escape(f"curation {folder.path.name}"),
        source=html.escape(json.dumps(folder.manifest["source"], ensure_ascii=False)),
        filters=_table(markdown(folder, keep, decisions)),
        plots="".join(plots),
        sheets="".join(_sheets(folder, keep, decisions, sample)),
        failed=f"<h2>Failed: {len(failed)}</h2><ul>{''.join(notes)}</ul>" if failed else "",
    )


def _table(text: str) -> str:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    line = lambda row, tag: "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
    return f"<table>{line(rows[0], 'th')}{''.join(line(row, 'td') for row in rows[2:])}</table>"


def _histogram(name: str, values: np.ndarray, least: float | None) -> str:
    """Return a histogram of scores as HTML; bars below the threshold are pale."""
    low, high = (0.0, 4.0) if name == "judge" else (min(float(values.min()), 0.0), 1.0)
    counts, edges = np.histogram(values.clip(low, high), _BINS, (low, high))
    width, height = 360, 120
    step, most = width / _BINS, max(int(counts.max()), 1)
    at = lambda value: (value - low) / (high - low) * width
    bars = []
    for count, edge in zip(counts, edges[:-1], strict=True):
        tall = height * int(count) / most
        pale = ' class="o"' if least is not None and edge + (high - low) / _BINS / 2 < least else ""
        bars.append(
            f'<rect{pale} x="{at(edge):.1f}" y="{height - tall:.1f}" width="{step - 1:.1f}" height="{tall:.1f}"/>'
        )
    mark, said = "", f"{WORDS[name]}: {len(values):,} scores"
    if least is not None:
        mark = f'<line x1="{at(least):.1f}" x2="{at(least):.1f}" y1="0" y2="{height}"/>'
        said += f", {int((values >= least).sum()):,} of at least {least:g}"
    labels = f'<text y="{height + 14}">{low:.2g}</text><text x="{width}" y="{height + 14}" class="e">{high:g}</text>'
    return (
        f'<figure class="h"><svg viewBox="0 0 {width} {height + 16}" role="img" aria-label="{name}">{"".join(bars)}'
        f"{mark}{labels}</svg><figcaption>{html.escape(said)}</figcaption></figure>"
    )


def _sheets(folder: Folder, keep: KeepConfig, decisions: Sequence[Decision], sample: int) -> list[str]:
    """Return sections with random kept triplets, and with those each filter rejected nearest to its threshold."""
    rng, sheets = np.random.default_rng(0), []
    good = [one for one in decisions if not one.failed_at]
    chosen = [good[i] for i in sorted(rng.choice(len(good), min(sample, len(good)), replace=False))]
    sheets.append(_sheet(folder, f"Kept: {len(good)}, some of them", chosen))
    for name in FILTERS[1:]:
        lost = [one for one in decisions if one.failed_at == name]
        if not lost:
            continue
        nearest = sorted(lost, key=lambda one, name=name: -one.scores.get(name, 0.0))[: max(sample // 2, 1)]
        words = "some of them" if name == "duplicates" else "those nearest to the threshold"
        sheets.append(_sheet(folder, f"Rejected by {name}: {len(lost)}, {words}", nearest))
    return sheets


def _sheet(folder: Folder, title: str, chosen: Sequence[Decision]) -> str:
    entries = []
    for one in chosen:
        try:
            images = {
                "style": folder.place("stylize", one.number).decode(),
                "content": folder.place("destylize", one.number).decode(),
                "target": folder.target(one.row).decode(),
            }
        except BadExample as error:
            entries.append(f"<article>{html.escape(str(error))}</article>")
            continue
        scores = ", ".join(f"{name} {value:.2f}" for name, value in one.scores.items())
        reason = f"<br>{html.escape(one.reason)}" if one.reason else ""
        entries.append(
            f"<article><div class=p>{''.join(figure(name, image) for name, image in images.items())}</div>"
            f"<p>{html.escape(one.row['caption']) or '<em>no caption</em>'}</p>"
            f"<small>{html.escape(_name(one))}<br>{scores}{reason}</small>"
            "</article>"
        )
    return f"<h2>{html.escape(title)}</h2><main>{''.join(entries)}</main>"


def _name(one: Decision) -> str:
    return f"{one.number} · {one.row.get('key') or 'image ' + str(one.row['index'])} · {one.row['layout']}"


_PAGE = string.Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>$title</title><style>
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --bar: #4a86c8; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1500px; padding: 20px; }
h1 { margin: 0 0 4px; font-size: 24px; } h2 { font-size: 18px; margin: 28px 0 8px; }
table { border-collapse: collapse; margin: 16px 0; }
th, td { padding: 3px 14px 3px 0; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
#plots { display: flex; flex-wrap: wrap; gap: 16px 40px; } .h { width: 360px; margin: 0; }
rect { fill: var(--bar); } rect.o { opacity: .35; } line { stroke: #d33; stroke-width: 2; }
text { font-size: 11px; fill: currentColor; } text.e { text-anchor: end; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 12px; }
article { border: 1px solid var(--line); border-radius: 8px; padding: 8px; overflow: hidden; }
.p { display: flex; gap: 6px; } .p figure { margin: 0; flex: 1 1 0; min-width: 0; text-align: center; }
img { width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--soft); }
img.s { image-rendering: pixelated; } article p { margin: 6px 0 2px; }
figcaption, small { font-size: 12px; opacity: .75; } small { display: block; overflow-wrap: anywhere; }
</style></head><body>
<h1>$title</h1><small>$source</small>
$filters<section id="plots">$plots</section>$sheets$failed
</body></html>
""")
