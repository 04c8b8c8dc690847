# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Speed of the input pipeline, against a torch DataLoader with PIL and against what training consumes.

    python tests/tools/benchmark_data.py [--examples 256] [--workers 0 1 2] [--steps 60]

Both sides decode the same 1024 x 1024 JPEGs and resize them to 512 x 512 with the same filter, with the same number of
worker processes, one after the other in this run, several times in turn; ratios above 1 mean that this pipeline is
faster. Without workers the processor's time is counted, which does not depend on what else the machine does. The second
table is examples a second of mini's own pipeline and of its training step.
"""

import argparse
import contextlib
import io
import itertools
import json
import pathlib
import runpy
import statistics
import tempfile
import time

import numpy as np
import torch
from PIL import Image

from uso_jax.data.loader import batches
from uso_jax.data.sources import open_source

SIDE, TO, BATCH, FILES, ROUNDS = 1024, 512, 8, 16, 3


class Files(torch.utils.data.Dataset):
    """What a torch user writes."""

    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        with Image.open(self.paths[index]) as image:
            resized = image.convert("RGB").resize((TO, TO), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.asarray(resized).copy())


def write_images(folder: pathlib.Path, count: int) -> list[pathlib.Path]:
    """Write JPEGs with the detail of photographs: smooth noise at several scales."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        image = np.zeros((SIDE, SIDE, 3), np.float32)
        for scale in (4, 16, 64, 256, 1024):
            noise = Image.fromarray(rng.integers(0, 256, (scale, scale, 3)).astype(np.uint8))
            image += np.asarray(noise.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32) / scale**0.3
        image = np.clip((image - image.mean()) / image.std() * 50 + 128, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=90)
        paths.append(folder / f"{number:04d}.jpg")
        paths[-1].write_bytes(buffer.getvalue())
    return paths


def seconds_torch(paths, workers: int) -> float:
    """Time one pass."""
    loader = torch.utils.data.DataLoader(Files(paths), BATCH, num_workers=workers, drop_last=True)
    return timed(iter(loader), len(paths) // BATCH, _warm(workers), _clock(workers))


def seconds_here(folder: pathlib.Path, count: int, workers: int, threads: int) -> float:
    """Time the same pass here; targets only, since the DataLoader reads one image an example."""
    options = dict(
        target_size=(TO, TO), content_size=(16, 16), style_size=(16, 16), num_styles=1, tokenize=lambda _: {}
    )
    source = open_source({"name": "json", "path": str(folder / "list.json")})
    stream = batches(
        source, batch_size=BATCH, seed=0, shuffle=False, num_workers=workers, num_threads=threads, **options
    )
    with contextlib.closing(iter(stream)) as reading:
        return timed(reading, count // BATCH, _warm(workers), _clock(workers))


def timed(reading, count: int, warm: int = 1, clock=time.perf_counter) -> float:
    """Return seconds per batch by `clock`, after warm-up batches that include the start of processes."""
    for _ in itertools.islice(reading, warm):
        pass
    start = clock()
    for _ in itertools.islice(reading, count - warm):
        pass
    return (clock() - start) / (count - warm)


def _warm(workers: int) -> int:
    return 1 + 2 * workers


def _clock(workers: int):
    return time.perf_counter if workers else time.process_time


def against_torch(count: int, workers: list[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        paths = write_images(folder, FILES) * (count // FILES)
        items = [{"prompt": "x", "target": path.name} for path in paths]
        (folder / "list.json").write_text(json.dumps(items))
        print(
            f"{SIDE} x {SIDE} JPEG to {TO} x {TO}, images a second (median of {ROUNDS}); workers | here | torch | ratio"
        )
        for number in workers:
            here, there = [], []
            for _ in range(ROUNDS):
                there.append(seconds_torch(paths, number))
                # Without workers torch decodes in the main process; one thread then does the same here.
                here.append(seconds_here(folder, len(paths), number, threads=1))
            rate = lambda times: BATCH / statistics.median(times)
            print(f"{number:7} | {rate(here):5.0f} | {rate(there):5.0f} | {rate(here) / rate(there):5.2f}", flush=True)


def against_training(steps: int) -> None:
    """Compare mini's pipeline alone with mini's disentanglement step alone."""
    import jax

    from uso_jax.models.uso import USO
    from uso_jax.parallel import sharding
    from uso_jax.training.init import initial_params
    from uso_jax.training.step import init_state, make_train_step
    from uso_jax.training.validation import pipeline_options

    root = pathlib.Path(__file__).parents[2]
    config = runpy.run_path(str(root / "configs" / "uso.py"))["get_config"]("mini32")
    stage, system = config.run_stages[-1], USO(config.system)
    mesh = sharding.make_mesh(config.mesh)
    where = sharding.shardings(mesh, config.rules, system.shapes)
    rates = stage.lr_multipliers(system.shapes)
    with jax.set_mesh(mesh):
        params = initial_params(config, system, where, set(rates))
        state = init_state(stage, rates, {path: params[path] for path in rates}, where)
        frozen = {path: value for path, value in params.items() if path not in rates}
        step = jax.jit(make_train_step(system, stage, rates, 0), donate_argnums=0)
        source = open_source(config.data.train, stage.data)
        stream = batches(source, batch_size=stage.batch_size, seed=0, **pipeline_options(config, stage))
        with contextlib.closing(iter(stream)) as reading:
            reading_seconds = timed(reading, steps)
            batch = sharding.global_batch(mesh, next(reading))
        state, _ = step(state, frozen, batch)
        jax.block_until_ready(state.step)
        start = time.perf_counter()
        for _ in range(steps - 1):
            state, _ = step(state, frozen, batch)
        jax.block_until_ready(state.params)
        training_seconds = (time.perf_counter() - start) / (steps - 1)
    fed, eaten = (stage.batch_size / seconds for seconds in (reading_seconds, training_seconds))
    print(f"mini, examples a second: pipeline {fed:.0f}, training step {eaten:.0f}, ratio {fed / eaten:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    against_torch(args.examples, args.workers)
    against_training(args.steps)
