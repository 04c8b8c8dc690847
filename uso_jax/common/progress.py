# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Progress of all programs: named phases with elapsed time, bars with an estimate, on one line of stderr.

    with progress.phase("loading mini"):            loading mini [00:03]
    with progress.bar(total=20, desc="flow") as bar:    flow:  45%|####5     | 9/20 [00:31<00:38,  3.46s/step]

A phase inside a bar takes the line while it lasts ("flow 9/20, saving [00:02]"). The line is redrawn every second,
also while the program waits for a compiler or for one long step. Where stderr is no terminal, a line is printed every
ten seconds instead; in a notebook, the one line is rewritten.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from uso_jax.common.status_line import StatusLine, manner


def bar(iterable: Iterable | None = None, desc: str = "", **settings: Any) -> "Bar":
    """Return a bar, a context manager and iterable; the arguments are those of `Bar`."""
    return Bar(iterable, desc, **settings)


@contextlib.contextmanager
def phase(desc: str) -> Iterator["Bar"]:
    """Show what the program does while the block lasts, with the elapsed time."""
    with Bar(None, desc, leave=False) as shown:
        yield shown


def say(text: str, file: Any = None) -> None:
    """Print a line, by default to stdout, above the line of progress."""
    _LINE.say(text, file or sys.stdout)


def silence() -> None:
    """Show no progress from now on: of several processes of a run, one shows it."""
    _LINE.silent = True


def duration(seconds: float) -> str:
    """Return a time such as "40 s", "12 min" or "3 h 20 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class Bar:
    """A count of work that is done.

    Args:
      iterable: what `for` iterates over.
      desc: name of the work.
      total: how many units there are; None: unknown, or taken from `iterable`.
      unit: one unit's name; "B" is shown with binary prefixes.
      initial: units that were done before.
      leave: keep the line when the work ends; by default only if no other bar is shown.
      disable: show nothing.
      file: where to show it; default stderr.
    """

    def __init__(
        self,
        iterable: Iterable | None = None,
        desc: str = "",
        *,
        total: int | None = None,
        unit: str = "item",
        initial: int | float = 0,
        leave: bool | None = None,
        disable: bool = False,
        file: Any = None,
    ):
        self.iterable, self.desc, self.unit, self.n = iterable, desc, unit, initial
        self.total = len(iterable) if total is None and hasattr(iterable, "__len__") else total
        self.file = file or sys.stderr
        self.live, self.mininterval = manner(self.file)
        self.leave = leave if leave is not None else _LINE.is_free()
        self.postfix = ""
        self._initial, self.started = initial, time.monotonic()
        self._samples: list[tuple[float, float]] = []  # (seconds, units), from the first update on
        self.drawn = False
        self._shown = not (disable or _LINE.silent)
        if self._shown:
            _LINE.begin(self)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator:
        with self:
            for item in self.iterable:
                yield item
                self.update()

    def update(self, n: int | float = 1) -> None:
        """Count more units as done."""
        self.n += n
        now = time.monotonic()
        # About a hundred samples, however long it takes.
        if len(self._samples) < 2 or self._samples[-1][0] - self._samples[-2][0] >= max(
            0.1, (now - self.started) / 100
        ):
            self._samples.append((now, self.n))
        else:
            self._samples[-1] = now, self.n
        if self._shown:
            _LINE.draw(self, self.mininterval)

    def skip(self, n: int | float = 1) -> None:
        """Count units as done that took no time, such as those of an earlier run."""
        self.n, self._initial = self.n + n, self._initial + n
        self._samples.clear()

    def describe(self, desc: str) -> None:
        """Change the name of the work."""
        self.desc = desc
        if self._shown:
            _LINE.draw(self, self.mininterval)

    def note(self, text: str) -> None:
        """Show a short text after the figures from the next update on."""
        self.postfix = text

    def write(self, text: str) -> None:
        """Print a line to stdout above the line of progress."""
        say(text)

    def close(self) -> None:
        """End the display."""
        if self._shown:
            self._shown = False
            _LINE.end(self)

    def short(self) -> str:
        """Return name and count, as shown before a phase inside this bar."""
        return f"{self.desc} {self.n}/{self.total}" if self.total else self.desc

    def text(self, context: str = "", columns: int | None = None) -> str:
        """Return the line.

        Args:
          context: shown before the name.
          columns: width of the line; None: any, and no bar is drawn.
        """
        counted = bool(self.total) or self.n > self._initial
        figures = "{n_fmt}/{total_fmt} " if self.total else "{n_fmt} " + self.unit + " " if counted else ""
        rates = "<{remaining}, {rate_fmt}" if self.total else ", {rate_fmt}" if counted else ""
        middle = ("{percentage:3.0f}%|{bar}| " if columns else "{percentage:3.0f}% ") if self.total else ""
        return tqdm.format_meter(
            self.n,
            self.total,
            time.monotonic() - self.started,
            columns,
            f"{context}{self.desc}",
            ascii=not (getattr(self.file, "encoding", None) or "utf-8").lower().startswith("utf"),
            unit=self.unit,
            unit_scale=self.unit == "B",
            unit_divisor=1024,
            rate=self.rate(),
            postfix=self.postfix,
            bar_format=("{desc}: " if counted else "{desc} ") + f"{middle}{figures}[{{elapsed}}{rates}{{postfix}}]",
        )

    def rate(self) -> float:
        """Return units a second over the later half of the time, or 0 before two updates.

        The first update is no part of it: it contains the compilation.
        """
        if len(self._samples) < 2:
            return 0.0
        last, done = self._samples[-1]
        half = (self._samples[0][0] + last) / 2
        first, before = max((s for s in self._samples[:-1] if s[0] <= half), default=self._samples[0])
        return (done - before) / (last - first) if last > first else 0.0


class LogHandler(logging.Handler):
    """Write the messages of a logger to stderr, above the line of progress."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message."""
        say(self.format(record), sys.stderr)


_LINE = StatusLine()
