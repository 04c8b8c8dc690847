# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The line that all bars of a process share (uso_jax.common.progress), on a terminal, in a notebook or in a log."""

import contextlib
import os
import threading
import time
from typing import Any

_LOG_SECONDS = 10.0  # interval between lines in a log; TQDM_MININTERVAL overrides it and the two below
_NOTEBOOK_SECONDS = 1.0
_TERMINAL_SECONDS = 0.1
_TICK_SECONDS = 1.0
_WIDTH = 80  # columns, where a terminal does not say how many it has


class StatusLine:
    """The line that all bars of the process share; the innermost bar has it."""

    def __init__(self) -> None:
        self.silent = False
        self._lock = threading.RLock()
        self._bars: list[Any] = []
        self._length, self._drawn = 0, time.monotonic()
        self._ticker: threading.Thread | None = None

    def is_free(self) -> bool:
        """Return whether no bar is shown."""
        return not self._bars

    def begin(self, one: Any) -> None:
        """Take the line for a bar, from those around it."""
        with self._lock:
            self._bars.append(one)
            if self._ticker is None:
                self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)
                self._ticker.start()
            if one.live:
                self.draw(one, _TERMINAL_SECONDS)

    def draw(self, one: Any, interval: float) -> None:
        """Draw the innermost bar if it is this one, and if the last drawing is longer ago than the interval."""
        if not self._is_due(one, interval):
            return
        with self._lock:
            if self._is_due(one, interval):  # another thread may have drawn
                context = "".join(f"{outer.short()}, " for outer in self._bars[:-1])
                self._put(one, context)

    def _is_due(self, one: Any, interval: float) -> bool:
        now = time.monotonic()
        too_short = not one.live and now - one.started < 1  # a log has no lines about what takes no time
        return self._bars[-1:] == [one] and now - self._drawn >= interval and not too_short

    def end(self, one: Any) -> None:
        """Return the line to the bar around, after the last state of one that is left there."""
        with self._lock:
            innermost = self._bars[-1:] == [one]
            self._bars = [other for other in self._bars if other is not one]
            if one.leave:
                self._put(one, "")
                if one.live:
                    _write(one.file, "\n")
                    self._length = 0
            elif innermost and one.live and one.drawn:
                self._clear(one.file)
            if innermost and one.drawn and self._bars and self._bars[-1].live:
                self.draw(self._bars[-1], 0.0)

    def say(self, text: str, file: Any) -> None:
        """Print a line above the line of progress."""
        with self._lock:
            shown = self._bars[-1] if self._bars and self._bars[-1].live else None
            if shown:
                self._clear(shown.file)
            print(text, file=file, flush=True)
            if shown:
                self.draw(shown, 0.0)

    def _put(self, one: Any, context: str) -> None:
        self._drawn, one.drawn = time.monotonic(), True
        if one.live:
            text = one.text(context, _columns(one.file))
            _write(one.file, f"\r{text}{' ' * (self._length - len(text))}")
            self._length = len(text)
        else:
            _write(one.file, f"{one.text(context)}\n")

    def _clear(self, file: Any) -> None:
        if self._length:
            _write(file, f"\r{' ' * self._length}\r")
            self._length = 0

    def _tick(self) -> None:
        """Redraw, as long as there is a bar, also while the program waits."""
        while True:
            time.sleep(_TICK_SECONDS)
            with self._lock:
                if not self._bars:
                    self._ticker = None
                    return
                one = self._bars[-1]
                self.draw(one, min(one.mininterval, _TICK_SECONDS) if one.live else one.mininterval)


def manner(file: Any) -> tuple[bool, float]:
    """Return whether a line can be rewritten, and how often something is shown, in seconds."""
    # The kernel's streams are no terminals, but rewrite a line too. Programs that a notebook starts have a terminal.
    kernel = type(file).__module__.startswith("ipykernel")
    live = kernel or (hasattr(file, "isatty") and file.isatty())
    notebook = kernel or "JPY_PARENT_PID" in os.environ
    seconds = (_NOTEBOOK_SECONDS if notebook else _TERMINAL_SECONDS) if live else _LOG_SECONDS
    with contextlib.suppress(ValueError):
        seconds = float(os.environ.get("TQDM_MININTERVAL", seconds))
    return live, seconds


def _columns(file: Any) -> int:
    """Return the width of a line; the last column stays free, where some terminals would wrap it."""
    try:
        found = os.get_terminal_size(file.fileno()).columns
    except (OSError, ValueError, AttributeError):
        found = 0
    return (found or _WIDTH) - 1


def _write(file: Any, text: str) -> None:
    # Progress must not end a program whose terminal has gone, or whose log is on a full disk.
    with contextlib.suppress(OSError, ValueError):
        file.write(text)
        file.flush()
