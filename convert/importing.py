# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints into a weights directory, a chunk of a parameter at a time.

Never more than one chunk and the tensors it is made of are in memory. Chunks are made in the order of the source files,
while another thread reads the same files for their SHA-256: whichever is ahead brings the pages in for the other, so a
disk is read once.
"""

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from tqdm import tqdm

from convert.checkpoint import Checkpoint
from convert.source import BFLOAT16, File
from convert.table import Entry, Piece
from uso_jax import sizes, weights
from uso_jax.errors import InputError
from uso_jax.weights_files import Writer

_BLOCK = 2**20  # numbers at a time: what fits a processor's cache
_ROWS = 32  # of a matrix at a time when it is transposed: several times as fast as all at once
_WIDEST = {np.dtype(np.float16): 65504.0}


def import_checkpoint(
    checkpoint: Checkpoint, directory: str, dtype: np.dtype | None, overwrite: bool, bar: tqdm
) -> list[str]:
    """Write a checked checkpoint as a component; give what the user should know of its numbers.

    Raises:
      InputError: it could not be read or written; nothing is left behind.
    """
    component = checkpoint.family.component
    weights.check_writable(directory, component, overwrite)
    structs = checkpoint.structs(dtype)
    sections = sizes.describe(component, checkpoint.config)
    origin = [[str(f.path.absolute()), f.size, f.path.stat().st_mtime_ns] for f in checkpoint.files]
    count = _Counter()
    with (
        Writer(directory, component, structs, [origin, checkpoint.family.name, sections, checkpoint.notes]) as writer,
        _digests(checkpoint.files) as digests,
    ):
        for path, first, rows, parts in _plan(checkpoint, writer):
            chunk = None
            if not writer.has(path, first) or rows > writer.rows[path]:
                chunk = _assemble(checkpoint, structs[path], first, rows, parts, count)
                writer.write(path, first, chunk)
            bar.update(rows / (structs[path].shape or (1,))[0] * structs[path].size * structs[path].dtype.itemsize)
        bar.set_postfix_str("SHA-256")
        manifest = {
            "family": checkpoint.family.name,
            "prefix": checkpoint.prefix,
            "config": sections,
            "sources": [
                {"file": file.path.name, "size": file.size, "sha256": digest}
                for file, digest in zip(checkpoint.files, digests(), strict=True)
            ],
        }
        writer.finish(manifest)
    return count.warnings(structs)


# ---------------------------------------------------------------------------------------------------- what to make


Part = tuple[str, Entry, int, Piece]  # key, entry, first row of the piece in the tensor, piece


def _plan(checkpoint: Checkpoint, writer: Writer) -> list[tuple[str, int, int, list[Part]]]:
    """Give (path, first row, rows, what they are made of) of everything to write, in the order of the files."""
    made: dict[tuple[str, int], list[Part]] = {}
    for key, entry in checkpoint.entries.items():
        offset = 0
        for piece in entry.pieces:
            # A stack is written some layers at a time, anything else at once.
            first = 0 if entry.layer is None else entry.layer - entry.layer % writer.rows[piece.path]
            made.setdefault((piece.path, first), []).append((key, entry, offset, piece))
            offset += piece.stop - piece.start
    plan = []
    for (path, first), parts in made.items():
        shape = checkpoint.shapes[path].shape
        rows = (shape or (1,))[0] if parts[0][1].layer is None else writer.rows[path]
        plan.append((path, first, rows, parts))
    return sorted(plan, key=lambda item: min(checkpoint.sources[key].place for key, *_ in item[3]))


def _assemble(
    checkpoint: Checkpoint,
    struct: jax.ShapeDtypeStruct,
    first: int,
    rows: int,
    parts: Sequence[Part],
    count: "_Counter",
) -> np.ndarray:
    out = np.empty((rows, *struct.shape[1:]) if struct.shape else (), struct.dtype)
    for key, entry, offset, piece in parts:
        source = checkpoint.sources[key]
        tensor = source.read(offset, offset + piece.stop - piece.start) if source.shape else source.read()
        if tensor.shape != (piece.stop - piece.start, *source.shape[1:])[: len(source.shape)]:
            raise InputError(f"{checkpoint.names}: tensor {key} changed while it was read; import it again")
        count(key, tensor, out.dtype)
        # Only the layer axis is counted from the chunk's first row.
        place = entry.place(piece)
        place = place if entry.layer is None else (place[0] - first, *place[1:])
        _copy(out[place], entry.flax(tensor))
    return out


def _copy(out: np.ndarray, value: np.ndarray) -> None:
    """Copy and cast; matrices in strips, because a transposed one read row by row misses the cache each time."""
    if out.dtype == value.dtype == BFLOAT16:
        out, value = out.view(np.uint16), value.view(np.uint16)  # numpy copies its own dtypes faster
    with np.errstate(over="ignore", invalid="ignore"):  # counted and reported by _Counter
        if out.ndim != 2 or value.flags.c_contiguous:
            out[...] = value
            return
        for start in range(0, out.shape[1], _ROWS):
            out[:, start : start + _ROWS] = value[:, start : start + _ROWS]


class _Counter:
    """Count numbers that are not finite, or become so."""

    def __init__(self):
        self.bad: dict[str, int] = {}
        self.overflowing: dict[str, int] = {}

    def __call__(self, key: str, tensor: np.ndarray, dtype: np.dtype) -> None:
        flat = tensor.reshape(-1)
        limit = _WIDEST.get(np.dtype(dtype)) if flat.dtype != dtype else None
        for start in range(0, flat.size, _BLOCK):
            block = flat[start : start + _BLOCK]
            if flat.dtype == BFLOAT16:
                # All exponent bits set: NaN or infinity. On integers this is many times as fast.
                bits = block.view(np.uint16) & 0x7FFF
                suspicious = bits.max() >= (0x7F80 if limit is None else 0x477F)
            else:
                suspicious = True
            if not suspicious:
                continue
            numbers = block.astype(np.float64 if block.dtype == np.float64 else np.float32, copy=False)
            bad = numbers.size - int(np.count_nonzero(np.isfinite(numbers)))
            if bad:
                self.bad[key] = self.bad.get(key, 0) + bad
            if limit is not None and (
                over := int(np.count_nonzero(np.abs(numbers) >= limit + 16)) - int(np.isinf(numbers).sum())
            ):
                self.overflowing[key] = self.overflowing.get(key, 0) + over

    def warnings(self, structs: dict[str, jax.ShapeDtypeStruct]) -> list[str]:
        """Say what was found."""
        texts = []
        for found, what in (
            (self.bad, "NaN or infinite"),
            (self.overflowing, "too large for float16 and became infinite"),
        ):
            if found:
                some = ", ".join(list(found)[:3]) + (", ..." if len(found) > 3 else "")
                texts.append(f"{sum(found.values()):,} numbers in {len(found):,} tensors are {what}: {some}")
        return texts


# ---------------------------------------------------------------------------------------------------- SHA-256


@contextlib.contextmanager
def _digests(files: Sequence[File]) -> Iterator:
    """Compute the files' SHA-256 beside the body; the yielded function waits for them."""
    found: list[str] = []
    problems: list[OSError] = []
    stop = threading.Event()

    def run():
        try:
            for file in files:
                digest, buffer = hashlib.sha256(), memoryview(bytearray(2**22))
                with file.path.open("rb", buffering=0) as stream:
                    while not stop.is_set() and (size := stream.readinto(buffer)):
                        digest.update(buffer[:size])
                found.append(digest.hexdigest())
        except OSError as error:
            problems.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def wait() -> list[str]:
        thread.join()
        if problems:
            raise InputError(f"{files[len(found)].path}: cannot be read ({problems[0].strerror})")
        return found

    try:
        yield wait
    finally:
        stop.set()
        thread.join()
