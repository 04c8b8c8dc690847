# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Data cards: statistics of a source and an HTML page with a random sample of its triplets.

The page is one self-contained HTML file with embedded images. Statistics describe the sample, except the number of
triplets and of skipped rows.
"""

import base64
import collections
import html
import io
import json
import pathlib
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from uso_jax.common import atomic_files, progress
from uso_jax.common.errors import BadExample, InputError
from uso_jax.data.sources import Mixture
from uso_jax.data.triplet import Triplet, TripletSource

_SHOWN = 320  # longer side of an image on the page, in pixels
_SMALL = 96  # images up to this size are enlarged without smoothing
_WORDS = (0, 1, 5, 10, 20, 40, 80)  # lower edges of the prompt length bins
_SEED = 20_25


@dataclass(frozen=True)
class Card:
    """Statistics of a data set: its size, skipped rows by reason, and counts in a sample by topic and value."""

    title: str
    total: int
    sampled: int
    left_out: Mapping[str, int]
    unreadable: Sequence[str]
    counts: Mapping[str, Mapping[str, int]]

    def markdown(self) -> str:
        """Return the card as Markdown."""
        lines = [
            f"# {self.title}",
            "",
            f"{self.total:,} triplets; shares are computed on {self.sampled} random ones.",
        ]
        for reason, count in self.left_out.items():
            lines.append(f"{count:,} rows were skipped: {reason}.")
        lines += [f"Unreadable in the sample: {reason}" for reason in self.unreadable]
        for topic, counts in self.counts.items():
            lines += ["", f"| {topic} | share |", "|---|---|"]
            lines += [f"| {name} | {count / max(self.sampled, 1):.0%} |" for name, count in counts.items()]
        return "\n".join(lines) + "\n"


def sample_triplets(source: TripletSource | Mixture, count: int) -> tuple[list[tuple[int, Triplet]], list[str]]:
    """Sample triplets at random with a fixed seed.

    Returns:
      (index, triplet) pairs in order of index, and the error messages of unreadable triplets.

    Raises:
      InputError: the source is a mixture or holds features, or `count` is below 1.
    """
    if isinstance(source, Mixture) or hasattr(source, "example"):
        raise InputError("a page shows one source of images; select it with --config.data.source.")
    if count < 1:
        raise InputError(f"the sample must contain at least one triplet, not {count}.")
    chosen = np.random.default_rng(_SEED).choice(len(source), min(count, len(source)), replace=False, shuffle=False)
    found, unreadable = [], []
    for index in progress.bar(np.sort(chosen).tolist(), "reading", unit="triplet"):
        try:
            found.append((index, source[index]))
        except BadExample as error:
            unreadable.append(str(error))
    return found, unreadable


def describe(source: TripletSource, title: str, triplets: Sequence[Triplet], unreadable: Sequence[str] = ()) -> Card:
    """Compute the card of a source from a sample of its triplets."""
    counts: dict[str, collections.Counter] = {
        name: collections.Counter()
        for name in (
            "task",
            "layout",
            "style images",
            "words in the prompt",
            "target size",
            "target shape",
            "content shape",
        )
    }
    for triplet in triplets:
        counts["task"][triplet.task] += 1
        counts["layout"][triplet.layout] += 1
        counts["style images"][str(len(triplet.styles))] += 1
        counts["words in the prompt"][_range(len(triplet.prompt.split()))] += 1
        for name, shown in (("target", triplet.target), ("content", triplet.content)):
            if shown is not None:
                height, width = shown.shape[:2]
                counts[f"{name} shape"][_shape(height, width)] += 1
                if name == "target":
                    counts["target size"][f"{2 ** int(np.log2(max(height * width, 1)) / 2 + 0.25)} px or more"] += 1
    number = lambda pair: (int(re.match(r"\d*", pair[0])[0] or 0), pair[0])
    ordered = {name: dict(sorted(found.items(), key=number)) for name, found in counts.items() if found}
    return Card(
        title=title,
        total=len(source),
        sampled=len(triplets),
        left_out=dict(getattr(source, "left_out", {})),
        unreadable=tuple(unreadable),
        counts=ordered,
    )


def write_card(path: pathlib.Path | str, source: TripletSource | Mixture, *, title: str, sample: int = 48) -> Card:
    """Write the HTML page atomically and return its card.

    Raises:
      InputError: `path` does not end in .html, or the source cannot be sampled.
    """
    path = pathlib.Path(path)
    if path.suffix != ".html":
        raise InputError(f"{path} must end in .html.")
    found, unreadable = sample_triplets(source, sample)
    card = describe(source, title, [triplet for _, triplet in found], unreadable)
    page = _page(card, found)
    with atomic_files.explained(path, "choose another --to."):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_files.write_file(path, page)
    return card


def _range(words: int) -> str:
    low = max(edge for edge in _WORDS if edge <= words)
    high = next((edge for edge in _WORDS if edge > words), None)
    return str(low) if high == low + 1 else f"{low} to {high - 1}" if high else f"{low} or more"


def _shape(height: int, width: int) -> str:
    """Return the nearest common width:height ratio."""
    ratios = {
        "1:3": 1 / 3,
        "1:2": 1 / 2,
        "2:3": 2 / 3,
        "3:4": 3 / 4,
        "1:1": 1.0,
        "4:3": 4 / 3,
        "3:2": 1.5,
        "2:1": 2.0,
        "3:1": 3.0,
    }
    return min(ratios, key=lambda name: abs(np.log(width / height / ratios[name])))


# ---------------------------------------------------------------------------------------------------- the page


def _page(card: Card, found: Sequence[tuple[int, Triplet]]) -> str:
    facts = "".join(_table(topic, counts, card.sampled) for topic, counts in card.counts.items())
    notes = [f"{count:,} rows skipped: {reason}" for reason, count in card.left_out.items()]
    notes += [f"unreadable in the sample: {reason}" for reason in card.unreadable]
    return _PAGE.substitute(
        title=html.escape(card.title),
        total=f"{card.total:,}",
        sampled=card.sampled,
        notes="".join(f"<li>{html.escape(note)}</li>" for note in notes),
        facts=facts,
        triplets="".join(_entry(index, triplet) for index, triplet in found),
    )


def _table(topic: str, counts: Mapping[str, int], total: int) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td class=n>{count}</td>"
        f'<td class=b><i style="width:{count / max(total, 1):.1%}"></i></td></tr>'
        for name, count in counts.items()
    )
    return f"<table><caption>{html.escape(topic)}</caption>{rows}</table>"


def _entry(index: int, triplet: Triplet) -> str:
    images = [
        ("content", triplet.content),
        *(("style", style) for style in triplet.styles),
        ("target", triplet.target),
    ]
    figures = "".join(figure(name, shown) for name, shown in images if shown is not None)
    words = html.escape(triplet.prompt) or "<em>no prompt: keep the layout, only restyle</em>"
    meta = {name: value for name, value in triplet.meta.items() if isinstance(value, str | int | float | list | dict)}
    more = html.escape(json.dumps(meta, ensure_ascii=False, default=str)) if meta else ""
    return (
        f'<article data-task="{triplet.task}" data-layout="{triplet.layout}"><div class=p>{figures}</div><p>{words}</p>'
        f"<small>{index} · {html.escape(triplet.key)} · {triplet.task} · {triplet.layout}</small>"
        f"<small class=m>{more}</small></article>"
    )


def figure(name: str, shown: np.ndarray) -> str:
    """Return an HTML figure of an image. Small images are embedded losslessly and shown enlarged."""
    height, width = shown.shape[:2]
    image, small = Image.fromarray(shown), max(height, width) <= _SMALL
    image.thumbnail((_SHOWN, _SHOWN))
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if small else "JPEG", **({} if small else {"quality": 88}))
    data = base64.b64encode(buffer.getvalue()).decode()
    kind = "png" if small else "jpeg"
    return (
        f'<figure><img class={"s" if small else "l"} alt="{name}" src="data:image/{kind};base64,{data}">'
        f"<figcaption>{name} {width} x {height}</figcaption></figure>"
    )


_PAGE = string.Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>$title</title><style>
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --bar: #4a86c8; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1500px; padding: 20px; }
h1 { margin: 0 0 4px; font-size: 24px; }
#facts { display: flex; flex-wrap: wrap; gap: 18px 32px; margin: 18px 0; }
table { border-collapse: collapse; font-size: 13px; align-self: flex-start; }
caption { text-align: left; font-weight: 600; padding-bottom: 2px; }
td { padding: 1px 10px 1px 0; white-space: nowrap; } td.n { text-align: right; } td.b { width: 90px; }
td.b i { display: block; height: 9px; background: var(--bar); }
#bar { position: sticky; top: 0; padding: 8px 0; background: Canvas; border-bottom: 1px solid var(--line); }
#bar input { font: inherit; width: 22em; max-width: 60%; padding: 4px 8px; }
#bar select { font: inherit; padding: 4px; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(460px, 1fr)); gap: 16px; margin-top: 16px; }
article { border: 1px solid var(--line); border-radius: 8px; padding: 10px; overflow: hidden; }
.p { display: flex; gap: 8px; }
figure { margin: 0; flex: 1 1 0; min-width: 0; max-width: calc((100% - 16px) / 3); text-align: center; }
img { width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--soft); }
img.s { image-rendering: pixelated; }
figcaption, small { font-size: 12px; opacity: .72; } small { display: block; overflow-wrap: anywhere; }
article p { margin: 8px 0 4px; } .m { font-family: ui-monospace, monospace; max-height: 3.2em; overflow: auto; }
@media (max-width: 540px) { main { grid-template-columns: 1fr; } }
</style></head><body>
<h1>$title</h1>
<div>$total triplets; statistics and images are of $sampled random ones.</div><ul>$notes</ul>
<section id="facts">$facts</section>
<div id="bar"><input id="text" type="search" placeholder="search prompts and keys" aria-label="search">
<select id="task" aria-label="task">
<option value="">all tasks<option>style_subject<option>subject<option>style<option>text</select>
<select id="layout" aria-label="layout"><option value="">all layouts<option>preserved<option>shifted</select>
<span id="count"></span></div>
<main>$triplets</main>
<script>
const entries = [...document.querySelectorAll("article")], by = id => document.getElementById(id);
function show() {
  const text = by("text").value.toLowerCase(), task = by("task").value, layout = by("layout").value;
  let shown = 0;
  for (const e of entries) {
    const fits = (!task || e.dataset.task === task) && (!layout || e.dataset.layout === layout)
      && e.textContent.toLowerCase().includes(text);
    e.hidden = !fits; e.style.display = fits ? "" : "none"; shown += fits;
  }
  by("count").textContent = shown + " shown";
}
for (const id of ["text", "task", "layout"]) by(id).addEventListener("input", show);
show();
</script></body></html>
""")
