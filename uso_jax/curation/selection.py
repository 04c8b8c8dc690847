# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Select candidates by thresholds on stored scores and remove near-duplicates, without recomputing anything.

Filters run in the paper's order: both references exist, the style is similar to the target's, then the subject, first
by DINO and then by the judge. Of near-identical targets the first is kept.
"""

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uso_jax.common.errors import InputError
from uso_jax.curation.config import KeepConfig
from uso_jax.curation.store import Folder, Row
from uso_jax.data.readers.source import FileTriplets, Item
from uso_jax.data.storage.places import Place

NETWORKS = ("style", "subject")
FILTERS = ("made", *NETWORKS, "judge", "duplicates")
_SHAPES = 16  # hexadecimal digits of the perceptual hash in a fingerprint; colours follow
_COLOUR = 24.0  # largest mean difference of the thumbnails of near-duplicates, of 255


@dataclass(frozen=True)
class Decision:
    """The outcome for a candidate: the filter that rejected it and why, or "" if it is kept."""

    number: int
    row: Row  # from the step captions
    scores: Mapping[str, float]
    failed_at: str
    reason: str = ""

    def record(self) -> dict[str, Any]:
        """Return the decision as a JSON-serialisable dict."""
        facts = {name: self.row.get(name) for name in ("index", "layout", "key", "caption")}
        return {"number": self.number, **facts, **self.scores, "failed_at": self.failed_at, "reason": self.reason}


def fails(scores: Row, keep: KeepConfig, names: Iterable[str]) -> str | None:
    """Return which score is missing or too low, or None if all pass."""
    for name in names:
        least = getattr(keep, name)
        if least is None:
            continue
        if name not in scores:
            return f"{name}: {scores.get('failed', 'no score')}"
        if scores[name] < least:
            return f"{name} {scores[name]:.3f} is below {least:g}"
    return None


def decide(folder: Folder, keep: KeepConfig) -> list[Decision]:
    """Return the decision about every candidate, in order of number.

    Raises:
      InputError: a required step is not finished.
    """
    captions, scores = folder.all_rows("captions"), folder.all_rows("score")
    judged = folder.all_rows("judge") if keep.judge is not None else {}
    decisions, hashes = [], _Hashes(keep.duplicates)
    for number, row in sorted(captions.items()):
        own, judgement = scores[number], judged.get(number, {})
        found = {name: own[name] for name in NETWORKS if name in own}
        found |= {"judge": judgement["judge"]} if "judge" in judgement else {}
        failed_at, reason = "", ""
        if "failed" in own:
            failed_at, reason = "made", own["failed"]
        else:
            for name, values in (("style", own), ("subject", own), ("judge", judgement)):
                if why := fails(values, keep, (name,)):
                    if "waiting" in values:
                        raise InputError(
                            f"{folder.path}: candidate {number} passes the current thresholds but was not judged, since"
                            " it failed earlier ones: run curate.py judge again."
                        )
                    failed_at, reason = name, why
                    break
        if not failed_at and (twin := hashes.find(row["hash"], row["index"])) is not None:
            failed_at, reason = "duplicates", f"near-duplicate of image {twin} of the source"
        elif not failed_at:
            hashes.add(row["hash"], row["index"])
        decisions.append(Decision(number, row, found, failed_at, reason))
    return decisions


def survivors(decisions: Sequence[Decision], keep: KeepConfig) -> dict[str, list[Decision]]:
    """Return the candidates that remain after each active filter, by its name, and all of them under "all"."""
    left = {"all": list(decisions)}
    off = {name for name in (*NETWORKS, "judge") if getattr(keep, name) is None}
    off |= {"duplicates"} if keep.duplicates < 0 else set()
    for name in FILTERS:
        if name in off:
            continue
        gone = FILTERS[: FILTERS.index(name) + 1]
        left[name] = [one for one in decisions if one.failed_at not in gone]
    return left


def kept(folder: Folder, decisions: Iterable[Decision]) -> FileTriplets:
    """Return the kept triplets: style reference, de-stylised content, stylised target.

    The prompt is empty where the layout is preserved, and the caption where it is shifted.

    Raises:
      InputError: no candidate is kept.
    """
    chosen = [one for one in decisions if not one.failed_at]
    if not chosen:
        raise InputError(f"{folder.path}: no candidate is kept; lower the thresholds of --config.curation.keep.")
    return FileTriplets("curation", str(folder.path), _items(folder, chosen))


def _items(folder: Folder, chosen: Iterable[Decision]) -> Iterator[Item]:
    for one in chosen:
        place = lambda step, one=one: folder.place(step, one.number)
        target: Place = folder.target(one.row)
        preserved = one.row["layout"] == "preserved"
        yield Item(
            key=f"{one.row['key']}/{one.row['layout']}",
            target=target,
            prompt="" if preserved else one.row["caption"],
            content=place("destylize"),
            styles=(place("stylize"),),
            layout=one.row["layout"],
            meta={"scores": dict(one.scores), "caption": one.row["caption"]},
        )


class _Hashes:
    """An index of fingerprints that finds near-duplicates.

    Two hashes that differ in at most d bits agree in at least one of d + 1 pieces, so only hashes that share a piece
    are compared.
    """

    def __init__(self, distance: int):
        self.distance, self._pieces = distance, collections.defaultdict(list)

    def find(self, text: str, index: int) -> int | None:
        """Return the source index of another image that is a near-duplicate, or None."""
        shapes, colours = int(text[:_SHAPES], 16), bytes.fromhex(text[_SHAPES:])
        for piece in self._keys(shapes):
            for other_shapes, other_colours, other in self._pieces[piece]:
                if other == index or (shapes ^ other_shapes).bit_count() > self.distance:
                    continue
                difference = sum(abs(a - b) for a, b in zip(colours, other_colours, strict=True)) / len(colours)
                if difference <= _COLOUR:
                    return other
        return None

    def add(self, text: str, index: int) -> None:
        shapes, colours = int(text[:_SHAPES], 16), bytes.fromhex(text[_SHAPES:])
        for piece in self._keys(shapes):
            self._pieces[piece].append((shapes, colours, index))

    def _keys(self, shapes: int) -> list[tuple[int, int]]:
        bits, count = 4 * _SHAPES, self.distance + 1
        edges = [bits * i // count for i in range(count + 1)] if count > 0 else [0]
        return [(i, (shapes >> edges[i]) & ((1 << (edges[i + 1] - edges[i])) - 1)) for i in range(count)]
