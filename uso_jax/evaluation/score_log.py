# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What is known of every image already: a file that only grows, so that nothing is judged twice after a kill.

A line is what one metric says of one image:

    {"key": ..., "number": 0, "metric": "clip_i", "of": "<digest>", "values": {"clip_i": 0.71}}

or, in place of `values`, "skipped" with a reason that no repetition would change (no face is seen), or "failed" with
one that it may (the judge did not answer), which the next run tries again. `of` is a digest of everything that the
value depends on: the image, the item with its references, the metric with its networks. A line whose digest no
longer fits does not count. The last line of a file that a kill cut short is dropped.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from uso_jax.common.errors import InputError

Values = Mapping[str, float]


@dataclass(frozen=True)
class Skipped:
    """An image that a metric has no value for, whenever it is asked."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """An image that a metric should have a value for, and has not this time."""

    reason: str


Result = Values | Skipped | Failed


class ScoreLog:
    """The lines of scores.jsonl, by (key, number, metric)."""

    def __init__(self, path: pathlib.Path | str):
        self.path = pathlib.Path(path)
        self._lines: dict[tuple[str, int, str], tuple[str, Result]] = {}
        try:
            data = self.path.read_bytes() if self.path.exists() else b""
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):
                os.truncate(self.path, len(whole))
        except OSError as error:
            raise InputError(f"{self.path} cannot be read ({error.strerror}); check its permissions") from error
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                self._add(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{self.path} line {number} is damaged ({error!r}); remove that line") from error

    def get(self, name: tuple[str, int], metric: str, of: str) -> Result | None:
        """Give what a metric said of an image, if it was asked with the same `of`."""
        found = self._lines.get((*name, metric))
        return found[1] if found is not None and found[0] == of else None

    def append(self, metric: str, entries: Sequence[tuple[tuple[str, int], str, Result]]) -> None:
        """Add what a metric says of images, (name, of, result); it is on disk when this returns."""
        lines = []
        for (key, number), of, result in entries:
            line = {"key": key, "number": number, "metric": metric, "of": of}
            match result:
                case Skipped(reason):
                    line["skipped"] = reason
                case Failed(reason):
                    line["failed"] = reason
                case _:
                    line["values"] = {name: float(value) for name, value in result.items()}
            lines.append(line)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}; free some space and run it again") from error
        for line in lines:
            self._add(line)

    def _add(self, line: Mapping) -> None:
        if "values" in line:
            result: Result = {name: float(value) for name, value in line["values"].items()}
        else:
            result = Skipped(line["skipped"]) if "skipped" in line else Failed(line["failed"])
        self._lines[line["key"], line["number"], line["metric"]] = (line["of"], result)
