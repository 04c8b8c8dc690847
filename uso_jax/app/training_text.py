# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the training page says, as HTML: findings of a plan, and the state of a run."""

import html
import pathlib
from collections.abc import Mapping, Sequence

from uso_jax.app.run_view import RunView
from uso_jax.common import progress

_MARKS = {"ok": "✓", "note": "!", "problem": "✗"}
_FIRST = ("fit", "time")  # what is asked for; all else explains it
_STATES = {
    "starting": "Starting",
    "running": "Training",
    "stopping": "Stopping after this step and a save",
    "finished": "Finished",
    "stopped": "Stopped; Resume continues from the last checkpoint",
    "failed": "Failed",
}


def findings(found: Sequence[dict[str, str]]) -> str:
    """Return what decides, then notes, and all else folded away."""
    problems = [one for one in found if one["state"] == "problem"]
    first = [*problems, *(one for one in found if one["subject"] in _FIRST and one not in problems)]
    first += [one for one in found if one["state"] == "note" and one not in first]
    rest = [one for one in found if one not in first]
    verdict = "This run cannot start:" if problems else "This run fits:"
    more = f"<details><summary>{len(rest)} further checks are fine</summary>{_table(rest)}</details>" if rest else ""
    return f"<p><b>{verdict}</b></p>{_table(first)}{more}"


def _table(found: Sequence[dict[str, str]]) -> str:
    return f"<table>{''.join(map(_row, found))}</table>"


def _row(one: dict[str, str]) -> str:
    remedy = f"<br><i>{html.escape(one['remedy'])}</i>" if one["remedy"] else ""
    cells = (_MARKS.get(one["state"], ""), html.escape(one["subject"]), html.escape(one["text"]) + remedy)
    return f'<tr class="{html.escape(one["state"])}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def status(view: RunView | None) -> str:
    """Return the state of a run, its progress and what remains."""
    if view is None:
        return "<p>No run yet: choose images, then Start.</p>"
    if view.state == "failed":
        return sentence(view.phase) + _bar(view)
    remaining = f", about {progress.duration(view.remaining)} to go" if view.remaining is not None else ""
    phase = f"<p>{html.escape(view.phase)}</p>" if view.phase else ""
    return f"<p><b>{_STATES[view.state]}</b>{remaining}</p>{_bar(view)}{phase}"


def legend(colours: Mapping[str, str]) -> str:
    """Return the names of curves beside their colours."""
    return " ".join(f'<span style="color: {colour}">■</span> {name}' for name, colour in colours.items())


def sentence(text: str) -> str:
    """Return an error."""
    return f'<p class="failed"><b>{_STATES["failed"]}:</b> {html.escape(text)}</p>'


def _bar(view: RunView) -> str:
    if not view.steps:
        return ""
    return f'<progress value="{view.step}" max="{view.steps}"></progress><p>step {view.step:,} of {view.steps:,}</p>'


def caption(path: pathlib.Path) -> str:
    """Return what is below a sample grid: "000100_adapters.png" is that of step 100."""
    number, _, rest = path.stem.partition("_")
    step = f"step {int(number):,}" if number.isdecimal() else path.stem
    own = "own samples, " if path.parent.name == "own" else ""
    return own + step + (f" of {rest}" if rest and number.isdecimal() and rest != "adapters" else "")
