# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Rendering of SVG in another process, with limits of time and memory.

A renderer may crash, or take any time and memory, on a drawing of a few hundred bytes. The process gets the length of
the SVG and the size as two 32-bit numbers, then the SVG. It answers with a status, a length, the PNG or why not.
"""

import contextlib
import io
import struct
import subprocess
import sys
import threading

from uso_jax.common.errors import InputError

SECONDS = 20.0  # for one drawing; published icons take less than 1
MEMORY = 1 << 30  # bytes of address space
_REQUEST, _ANSWER = struct.Struct("<II"), struct.Struct("<?I")


class Renderer:
    """A process that renders SVG. It is started when it is first needed, and again after a drawing has ended it."""

    def __init__(self, seconds: float = SECONDS):
        self._seconds, self._process = seconds, None

    def __enter__(self) -> "Renderer":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def render(self, svg: str, size: int) -> bytes:
        """Return a drawing as a PNG of `size` x `size` pixels.

        Raises:
          InputError: it cannot be rendered, or not within the limits; the message begins with a verb.
        """
        if self._process is None:
            command = [sys.executable, "-m", __name__]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        late = threading.Event()
        process = self._process

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self._seconds, end)
        timer.start()
        try:
            data = svg.encode()
            process.stdin.write(_REQUEST.pack(len(data), size) + data)
            process.stdin.flush()
            good, length = _ANSWER.unpack(_exactly(process.stdout, _ANSWER.size))
            answer = _exactly(process.stdout, length)
        except (OSError, EOFError) as error:
            self._stop()
            reason = (
                f"takes longer than {self._seconds:g} s" if late.is_set() else f"crashes, or needs {MEMORY >> 20} MiB"
            )
            raise InputError(f"cannot be rendered (it {reason})") from error
        finally:
            timer.cancel()
        if not good:
            raise InputError(f"cannot be rendered ({answer.decode(errors='replace')})")
        return answer

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with contextlib.suppress(OSError):  # what was not read by then
                process.stdin.close()
            process.stdout.close()
            process.wait()


def _exactly(file: io.BufferedIOBase, length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise EOFError
    return data


def _serve() -> None:
    """Answer requests until the input ends."""
    with contextlib.suppress(ImportError):  # Windows has no such limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import resvg_py

    source, target = sys.stdin.buffer, sys.stdout.buffer
    while head := source.read(_REQUEST.size):
        length, size = _REQUEST.unpack(head)
        svg = _exactly(source, length).decode()
        try:
            good, answer = (
                True,
                bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)),
            )
        except Exception as error:
            good, answer = False, str(error).encode()
        target.write(_ANSWER.pack(good, len(answer)) + answer)
        target.flush()


if __name__ == "__main__":
    _serve()
