# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Load a uso-serve process on this machine and print what it does.

    python tests/tools/serve_load.py                    200 requests of mixed kinds from 8 clients, then one by one
    python tests/tools/serve_load.py --requests 1000    memory over many requests
    python tests/tools/serve_load.py --drain            SIGTERM while requests wait: all are answered

Every answer is checked: its number of images, their seeds in order, and that an equal request gave equal images.
"""

import argparse
import asyncio
import base64
import hashlib
import io
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import httpx
import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]
KINDS = ("text", "subject", "style", "both", "edit")


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--drain", action="store_true")
    args = parser.parse_args()
    messages = [message(number) for number in range(args.requests)]
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder) / "log"
        process, address = start(log, args.batch)
        try:
            asyncio.run(
                drain(process, address, messages[:40]) if args.drain else load(process, address, messages, args)
            )
        finally:
            process.send_signal(signal.SIGTERM)
            print("exit code", process.wait(60))


def message(number: int) -> dict:
    """Return a request: its kind, number of images and size change with the number."""
    kind, rng = KINDS[number % len(KINDS)], np.random.default_rng(number % 10)
    encoded = lambda: _encoded(rng.integers(0, 256, (6, 6, 3), np.uint8))
    found = {"prompt": f"a fish {number}", "n": 1 + number % 2, "seed": 1000 * number, "num_steps": 8}
    if kind in ("subject", "both"):
        found["content"] = encoded()
    if kind in ("style", "both"):
        found["styles"] = [encoded()]
    if kind == "edit":
        found |= {"image": encoded(), "strength": 0.75}
    return found


def _encoded(small: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(small).resize((32, 32), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def start(log: pathlib.Path, batch: int) -> tuple[subprocess.Popen, str]:
    """Start a server with mini's weights; return the process and its address."""
    command = [sys.executable, "-u", "scripts/serve.py", "--batch", str(batch), "--queue", "4096", "--wait", "0.02"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=log.open("w"), stderr=subprocess.STDOUT)
    while not (found := re.search(r"USO at (\S+)/", log.read_text())):
        if process.poll() is not None:
            raise SystemExit(log.read_text())
        time.sleep(0.1)
    return process, found[1]


async def load(process: subprocess.Popen, address: str, messages: list[dict], args: argparse.Namespace) -> None:
    """Send all messages from several clients, then some of them one by one, and print the figures."""
    async with httpx.AsyncClient(base_url=address, timeout=600) as client:
        for one in messages[:10]:  # compile
            await asyncio.gather(*(send(client, one) for _ in range(args.batch)))
        before = memory(process)
        together, seconds, digests = await crowd(client, messages, args.clients)
        images = sum(one["n"] for one in messages)
        print(f"{len(messages)} requests, {images} images, {args.clients} clients: {seconds:.1f} s")
        print(f"  p50 {statistics.median(together):.2f} s, p95 {np.percentile(together, 95):.2f} s")
        print(f"  memory {before:.0f} -> {memory(process):.0f} MiB")
        few = messages[:100]
        alone, alone_seconds, others = await crowd(client, few, 1)
        rate, alone_rate = images / seconds, sum(one["n"] for one in few) / alone_seconds
        print(f"one by one: p50 {statistics.median(alone):.2f} s, p95 {np.percentile(alone, 95):.2f} s")
        print(f"images a second: {rate:.2f} together, {alone_rate:.2f} one by one, ratio {rate / alone_rate:.2f}")
        equal = sum(a == b for a, b in zip(digests, others, strict=False))
        print(f"equal bytes in batches and alone: {equal} of {len(few)}")


async def crowd(client: httpx.AsyncClient, messages: list[dict], clients: int) -> tuple[list[float], float, list[str]]:
    """Send messages from several clients that each wait for their answer; return latencies, seconds and digests."""
    waiting, latencies, digests = iter(enumerate(messages)), {}, {}

    async def one() -> None:
        for number, message in waiting:
            started = time.monotonic()
            digests[number] = await send(client, message)
            latencies[number] = time.monotonic() - started

    started = time.monotonic()
    await asyncio.gather(*(one() for _ in range(clients)))
    seconds = time.monotonic() - started
    assert len(digests) == len(messages), "requests were lost"
    order = range(len(messages))
    return [latencies[i] for i in order], seconds, [digests[i] for i in order]


async def send(client: httpx.AsyncClient, message: dict) -> str:
    """Send a message, check the answer, and return a digest of its images."""
    answer = await client.post("/v1/images/generations", json=message)
    assert answer.status_code == 200, answer.text[:500]
    data = answer.json()["data"]
    assert [one["seed"] for one in data] == [message["seed"] + i for i in range(message["n"])], "order was lost"
    return hashlib.sha256("".join(one["b64_json"] for one in data).encode()).hexdigest()


async def drain(process: subprocess.Popen, address: str, messages: list[dict]) -> None:
    """Ask the server to end while requests wait; all of them must be answered."""
    async with httpx.AsyncClient(base_url=address, timeout=600) as client:
        await send(client, messages[0])
        posts = [asyncio.create_task(send(client, one)) for one in messages]
        await asyncio.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        answers = await asyncio.gather(*posts, return_exceptions=True)
    good = sum(isinstance(one, str) for one in answers)
    print(f"SIGTERM with {len(messages)} requests under way: {good} answered")
    assert good == len(messages), [repr(one)[:200] for one in answers if not isinstance(one, str)][:3]


def memory(process: subprocess.Popen) -> float:
    """Return the resident memory of a process in MiB."""
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


if __name__ == "__main__":
    main()
