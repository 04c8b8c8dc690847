# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The log of the service: one JSON object a line. Prompts are left out unless asked for."""

import io
import json
import logging
import sys
import threading
import time
from typing import Any


class Journal:
    """Writes events.

    Args:
      prompts: whether events hold prompts.
      stream: where lines are written.
    """

    def __init__(self, prompts: bool = False, stream: io.TextIOBase | None = None):
        self._prompts, self._stream, self._one = prompts, stream or sys.stderr, threading.Lock()

    def write(self, event: str, *, prompt: str | None = None, **values: Any) -> None:
        """Write an event with its time in seconds since 1970."""
        if self._prompts and prompt is not None:
            values["prompt"] = prompt
        line = json.dumps({"time": round(time.time(), 3), "event": event, **values}, ensure_ascii=True)
        with self._one:  # threads write too
            self._stream.write(f"{line}\n")
            self._stream.flush()


class JournalHandler(logging.Handler):
    """Passes messages of `logging` on as events."""

    def __init__(self, journal: Journal):
        super().__init__()
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message, with the kind of its exception."""
        more = {"error": type(record.exc_info[1]).__name__} if record.exc_info and record.exc_info[1] else {}
        self._journal.write("log", level=record.levelname.lower(), message=record.getMessage(), **more)
