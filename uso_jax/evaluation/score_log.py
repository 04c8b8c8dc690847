# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""scores.jsonl, an append-only log of results, so that an interrupted run never scores an image twice.

A line is the result of one metric for one image:

    {"key": ..., "number": 0, "metric": "clip_i", "of": "<digest>", "values": {"clip_i": 0.71}}

Instead of `values` it may have "skipped" with a permanent reason (no face detected) or "failed" with a transient one
(the judge did not answer), which the next run retries. `of` is a digest of everything the result depends on: the image,
the item with its references, and the metric with its networks. Lines with an outdated digest are ignored. `compat` has
the same form and holds what the benchmark's own code makes of the image, where that differs. With several rounds of
judging, a value is a list, with null where a round has none. An incomplete last line is dropped, and so are lines that
are no JSON, as an interrupted write or a power cut leaves them.
"""

import json
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np

from uso_jax.common import schema, untrusted
from uso_jax.common.errors import InputError

_LOG = logging.getLogger("uso_jax.evaluation")

Values = Mapping[str, float | list[float]]  # a list has one value a round, NaN where a round has none


@dataclass(frozen=True)
class Skipped:
    """The metric has no value for this image, permanently."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """The metric should have a value for this image but failed; the next run retries."""

    reason: str


Plain = Values | Skipped | Failed


@dataclass(frozen=True)
class Readings:
    """A result under two rules: the strict one, and that of the benchmark's own code."""

    strict: Plain
    compat: Plain

    def of(self, compat: bool) -> Plain:
        return self.compat if compat else self.strict


Result = Plain | Readings


def readings(strict: Result, compat: Plain) -> Result:
    """Return a result under two rules, as one if they agree."""
    strict = reading(strict, False)
    return strict if strict == compat else Readings(strict, compat)


def reading(result: Result, compat: bool) -> Plain:
    """Return a result under one of the rules."""
    return result.of(compat) if isinstance(result, Readings) else result


class _Outcome(TypedDict):
    values: NotRequired[dict[str, float | list[float | None]]]
    skipped: NotRequired[str]
    failed: NotRequired[str]


class _Line(_Outcome):
    key: str
    number: int
    metric: str
    of: str
    compat: NotRequired[_Outcome]


class ScoreLog:
    """Results by (key, number, metric), backed by scores.jsonl.

    Raises:
      InputError: the file cannot be read or a line is no result.
    """

    def __init__(self, path: pathlib.Path | str):
        self.path = pathlib.Path(path)
        self._lines: dict[tuple[str, int, str], tuple[str, Result]] = {}
        try:
            data = self.path.read_bytes() if self.path.exists() else b""
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):
                os.truncate(self.path, len(whole))
        except OSError as error:
            raise InputError(f"cannot read {self.path} ({error.strerror}); check its permissions") from error
        dropped: list[InputError] = []
        rows = untrusted.json_lines(self.path, Any, damaged=dropped.append, nan=True) if whole else ()
        for number, row in rows:
            try:
                self._add(schema.converted(row, _Line, "it"))
            except (InputError, KeyError) as error:
                raise InputError(f"{self.path} line {number} is damaged ({error}); remove that line") from error
        if dropped:
            _LOG.warning("%d lines are dropped, their images are scored again: %s", len(dropped), dropped[0])

    def get(self, name: tuple[str, int], metric: str, of: str) -> Result | None:
        """Return a metric's result for an image (key, number), or None if there is none with the digest `of`."""
        found = self._lines.get((*name, metric))
        return found[1] if found is not None and found[0] == of else None

    def append(self, metric: str, entries: Sequence[tuple[tuple[str, int], str, Result]]) -> None:
        """Append results (name, of, result) of a metric; they are on disk when this returns.

        Raises:
          InputError: the file cannot be written.
        """
        lines = []
        for (key, number), of, result in entries:
            line = {"key": key, "number": number, "metric": metric, "of": of, **_outcome(reading(result, False))}
            lines.append(line | ({"compat": _outcome(result.compat)} if isinstance(result, Readings) else {}))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}; free disk space and run again") from error
        for line in lines:
            self._add(line)

    def _add(self, line: _Line) -> None:
        result: Result = _plain(line)
        if "compat" in line:
            result = Readings(result, _plain(line["compat"]))
        self._lines[line["key"], line["number"], line["metric"]] = (line["of"], result)


def _outcome(result: Plain) -> _Outcome:
    match result:
        case Skipped(reason):
            return {"skipped": reason}
        case Failed(reason):
            return {"failed": reason}
    null = lambda value: None if np.isnan(value) else float(value)
    return {
        "values": {n: [null(x) for x in v] if isinstance(v, list) else float(v) for n, v in result.items()},
    }


def _plain(line: _Outcome) -> Plain:
    if "values" not in line:
        return Skipped(line["skipped"]) if "skipped" in line else Failed(line["failed"])
    number = lambda value: np.nan if value is None else value
    return {n: [number(x) for x in v] if isinstance(v, list) else v for n, v in line["values"].items()}
