# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The web app in a process whose connections to other machines are written down, and a client for gradio's protocol."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import httpx
import xla_flags
from tiny import ROOT

SLOW = 120  # seconds that an image may take on a busy machine
# Runs scripts/app.py after a hook that writes down every address outside this machine.
_WATCHED = """
import runpy, sys
outside = open(sys.argv[1], "a", buffering=1)
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        address = arguments[1] if event != "socket.getaddrinfo" else arguments
        host = str(address[0]) if isinstance(address, tuple) else "127.0.0.1"
        if not host.startswith("127.") and host not in ("localhost", "::1", "", "None"):
            outside.write(f"{event} {address}\\n")
sys.addaudithook(hook)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class AppServer:
    """A running app."""

    address: str
    process: subprocess.Popen
    folder: pathlib.Path

    def log(self) -> str:
        """Return all that the app printed."""
        return (self.folder / "log").read_text()

    def outside(self) -> list[str]:
        """Return the connections to other machines, and the names of other machines that were looked up."""
        return (self.folder / "outside").read_text().splitlines()

    def megabytes(self, name: str) -> float:
        """Return a memory figure of the process: VmRSS, or VmHWM, its peak since `forget_peak`."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1024

    def forget_peak(self) -> None:
        """Begin a new measurement of the peak memory."""
        pathlib.Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


@contextlib.contextmanager
def run(folder: pathlib.Path, arguments: Sequence[str], **environment: str) -> Iterator[AppServer]:
    """Run scripts/app.py with its files in a folder."""
    changes = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags.flags(),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "XDG_DATA_HOME": str(folder / "data"),
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        **environment,
    }
    command = [sys.executable, "-u", "-c", _WATCHED, str(folder / "outside"), "scripts/app.py", *arguments]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | changes, stdout=log, stderr=log)
    try:
        while not (found := re.search(r"USO at (\S+)/", (folder / "log").read_text())):
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.2)
        yield AppServer(found[1], process, folder)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()


class Session:
    """A browser's side of gradio's protocol."""

    def __init__(self, address: str, name: str = "test"):
        self.http = httpx.Client(base_url=f"{address}/gradio_api", timeout=SLOW)
        self.config, self.name = httpx.get(f"{address}/config").json(), name

    def upload(self, name: str, data: bytes) -> dict:
        """Upload a file; return its description in a request."""
        answer = self.http.post("/upload", files={"files": (name, data)})
        answer.raise_for_status()
        return self.file(answer.json()[0], name)

    @staticmethod
    def file(path: str, name: str) -> dict:
        return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def event(self, num_inputs: int) -> int:
        """Return the number of the event with this number of inputs."""
        return next(d["id"] for d in self.config["dependencies"] if len(d["inputs"]) == num_inputs)

    def join(self, num_inputs: int, data: list, **more) -> httpx.Response:
        """Ask for the event with this number of inputs."""
        body = {"fn_index": self.event(num_inputs), "data": data, "session_hash": self.name} | more
        # json.dumps writes NaN, which httpx refuses.
        return self.http.post("/queue/join", content=json.dumps(body), headers={"Content-Type": "application/json"})

    def call(self, num_inputs: int, data: list, **more) -> dict:
        """Run the event with this number of inputs; return the last message."""
        assert self.join(num_inputs, data, **more).status_code == 200
        return self.wait()

    def wait(self) -> dict:
        """Return the last message of the event that was asked for."""
        with self.http.stream("GET", "/queue/data", params={"session_hash": self.name}) as stream:
            for line in stream.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                if message.get("msg") == "process_completed":
                    return message
        raise AssertionError("no answer")
