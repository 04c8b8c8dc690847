# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Import checkpoints into a weights directory, one chunk of a parameter at a time.

At most one chunk and the tensors it is made of are in memory. Chunks follow the order of the source files, so that
another thread hashes the bytes just read; it reads only those that the import does not.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from uso_jax import weights
from uso_jax.common import progress
from uso_jax.common.errors import InputError
from uso_jax.weights import manifest_configs, quantization
from uso_jax.weights.files.arrays import BFLOAT16, Buffer
from uso_jax.weights.files.tensors import File
from uso_jax.weights.manifest_text import format_struct
from uso_jax.weights.strided_copy import copy_cast
from uso_jax.weights.tables.table import Entry, Piece
from uso_jax.weights.writer import Writer

from .recognition import Checkpoint

STACK_BYTES = 2**26  # layers written together, in bytes of the file's own dtype
_BLOCK = 2**20  # numbers at a time, to fit a processor's cache
_GAP = 2**26  # bytes read again only to hash them, so that those just read can follow
_WIDEST = {np.dtype(np.float16): 65504.0}


def import_checkpoint(
    checkpoint: Checkpoint,
    directory: str,
    dtype: np.dtype | None,
    overwrite: bool,
    bar: progress.Bar,
    mode: str | None = None,
) -> list[str]:
    """Write a checked checkpoint as a component; return warnings about its numbers.

    Args:
      checkpoint: the files.
      directory: the weights directory.
      dtype: dtype to cast to; None: keep each parameter's.
      overwrite: replace the component if it exists.
      bar: updated with the bytes done, counted before quantisation.
      mode: format in which large kernels are quantised (uso_jax.weights.quantization), without casting them first.

    Raises:
      InputError: a file could not be read or written; nothing is left behind.
    """
    component = checkpoint.family.component
    weights.check_writable(directory, component, overwrite)
    structs = checkpoint.structs(dtype)
    sections = manifest_configs.describe(component, checkpoint.config)
    origin = [[str(f.path.absolute()), f.size, f.path.stat().st_mtime_ns] for f in checkpoint.files]
    origin += [checkpoint.family.name, sections, checkpoint.notes]
    chosen = quantization.choose(component, structs) if mode else {}
    kept = checkpoint.structs() if mode else structs
    stored = dict(structs)
    for path, struct in chosen.items():
        stored |= quantization.stored(path, struct, mode)
    origin += [mode] if mode else []
    count, memory = _Counter(), (Buffer(), Buffer())
    with (
        Writer(directory, component, stored, origin) as writer,
        Digests(checkpoint.files) as digests,
    ):
        for path, first, rows, parts in _plan(checkpoint):
            # The scales are written first.
            if not writer.has(path, first):
                own = kept[path].dtype if path in chosen else structs[path].dtype
                shape = (rows, *structs[path].shape[1:]) if structs[path].shape else ()
                chunk = memory[0](shape, own)
                _assemble(chunk, checkpoint, first, parts, count, memory[1], digests)
                if path in chosen:
                    chunk, scales = quantization.quantise(chunk, mode)
                    writer.write(quantization.scale_path(path), first, scales)
                writer.write(path, first, chunk)
            bar.update(rows / (structs[path].shape or (1,))[0] * structs[path].size * structs[path].dtype.itemsize)
        bar.note("SHA-256")
        manifest = {
            "family": checkpoint.family.name,
            "prefix": checkpoint.prefix,
            "config": sections,
            "sources": [
                {"file": file.path.name, "size": file.size, "sha256": digest}
                for file, digest in zip(checkpoint.files, digests.finish(), strict=True)
            ],
        }
        writer.finish(manifest | quantised_facts(structs, chosen, mode))
    warnings = count.warnings(structs)
    if chosen and count.bad:
        warnings.append("where they are quantised, NaN became 0 and infinity the largest number of its group")
    return warnings


# ---------------------------------------------------------------------------------------------------- what to make


Part = tuple[str, Entry, int, Piece]  # key, entry, first row of the piece in the tensor, piece


def quantised_facts(
    structs: Mapping[str, jax.ShapeDtypeStruct], chosen: Mapping[str, jax.ShapeDtypeStruct], mode: str | None
) -> dict[str, Any]:
    """Return what a manifest says of quantised kernels; nothing if there are none.

    Args:
      structs: all parameters before they are quantised.
      chosen: those that are.
      mode: their format.
    """
    if not chosen:
        return {}
    dtypes = sorted({str(s.dtype) for s in structs.values()})
    return {
        "dtype": dtypes[0] if len(dtypes) == 1 else "mixed",
        "parameters": sum(s.size for s in structs.values()),
        "quantization": {"mode": mode, "parameters": {path: format_struct(s) for path, s in chosen.items()}},
    }


def layers_together(shape: tuple[int, ...], itemsize: int) -> int:
    """Return how many layers of a stack to write together: a divisor of their number, of at most STACK_BYTES or one."""
    layer = max(math.prod(shape[1:]) * itemsize, 1)
    return max((n for n in range(1, shape[0] + 1) if shape[0] % n == 0 and n * layer <= STACK_BYTES), default=1)


def _plan(checkpoint: Checkpoint) -> list[tuple[str, int, int, list[Part]]]:
    """Return (path, first row, rows, parts) of every chunk to write, in the order of the files."""
    together = {path: layers_together(s.shape, s.dtype.itemsize) for path, s in checkpoint.structs().items() if s.shape}
    made: dict[tuple[str, int], list[Part]] = {}
    for key, entry in checkpoint.entries.items():
        offset = 0
        for piece in entry.pieces:
            # A stack is written a few layers at a time, any other parameter at once.
            first = 0 if entry.layer is None else entry.layer - entry.layer % together[piece.path]
            made.setdefault((piece.path, first), []).append((key, entry, offset, piece))
            offset += piece.stop - piece.start
    plan = []
    for (path, first), parts in made.items():
        shape = checkpoint.shapes[path].shape
        rows = (shape or (1,))[0] if parts[0][1].layer is None else together[path]
        plan.append((path, first, rows, parts))
    return sorted(plan, key=lambda item: min(checkpoint.sources[key].place for key, *_ in item[3]))


def _assemble(
    out: np.ndarray,
    checkpoint: Checkpoint,
    first: int,
    parts: Sequence[Part],
    count: "_Counter",
    memory: Buffer,
    digests: "Digests",
) -> None:
    """Fill a chunk that starts at row `first` from the tensors it is made of."""
    for key, entry, offset, piece in parts:
        source = checkpoint.sources[key]
        rows_ = (offset, offset + piece.stop - piece.start) if source.shape else (0, None)
        if source.file is None:
            tensor = source.read(*rows_)
        else:
            digests.wait()
            tensor = source.read(*rows_, memory)
            skipped = rows_[0] * math.prod(source.shape[1:]) * source.dtype.itemsize
            digests.add(source.file, source.place[1] + skipped, tensor)
        if tensor.shape != (piece.stop - piece.start, *source.shape[1:])[: len(source.shape)]:
            raise InputError(f"{checkpoint.names}: tensor {key} changed while it was read; import it again")
        count(key, tensor, out.dtype)
        # Only the layer axis is counted from the chunk's first row.
        place = entry.place(piece)
        place = place if entry.layer is None else (place[0] - first, *place[1:])
        copy_cast(out[place], entry.flax(tensor))


class _Counter:
    """Count numbers that are not finite, or overflow when they are cast."""

    def __init__(self):
        self.bad: dict[str, int] = {}
        self.overflowing: dict[str, int] = {}

    def __call__(self, key: str, tensor: np.ndarray, dtype: np.dtype) -> None:
        flat = tensor.reshape(-1)
        limit = _WIDEST.get(np.dtype(dtype)) if flat.dtype != dtype else None
        for start in range(0, flat.size, _BLOCK):
            block = flat[start : start + _BLOCK]
            if flat.dtype == BFLOAT16:
                # All exponent bits set: NaN or infinity. Comparing integers is many times as fast.
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
        """Return a sentence for each kind that was found."""
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


class Digests:
    """Compute the SHA-256 of files while they are read in parts, mostly in order."""

    def __init__(self, files: Sequence[File]):
        self._files = files
        self._digests = [hashlib.sha256() for _ in files]
        self._added = [0] * len(files)  # positions up to which bytes were added
        self._hashed = [0] * len(files)  # ... and hashed
        self._pool = ThreadPoolExecutor(1)
        self._last: Future | None = None

    def __enter__(self) -> "Digests":
        return self

    def __exit__(self, *error) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, file: File, start: int, data: np.ndarray) -> None:
        """Add the bytes of a file from `start` on; they must not change before `wait` returns."""
        number = next(i for i, other in enumerate(self._files) if other is file)
        # A stack of small parameters is read from all over a file; following it would read most of the file twice.
        if 0 <= start - self._added[number] <= _GAP:
            self._last = self._pool.submit(self._update, number, start, data.reshape(-1).view(np.uint8))
            self._added[number] = start + data.nbytes

    def wait(self) -> None:
        """Wait until the bytes added may change."""
        try:
            if self._last is not None:
                self._last.result()
        except OSError as error:
            raise self._unreadable(error) from error

    def finish(self) -> list[str]:
        """Read the bytes that were not added, and return the digests."""
        self.wait()
        try:
            for number, file in enumerate(self._files):
                self._pool.submit(self._skip, number, file.size).result()
        except OSError as error:
            raise self._unreadable(error) from error
        return [digest.hexdigest() for digest in self._digests]

    def _unreadable(self, error: OSError) -> InputError:
        names = ", ".join(str(file.path) for file in self._files)
        return InputError(f"{names}: cannot be read ({error.strerror}); check the disk")

    def _update(self, number: int, start: int, data: np.ndarray) -> None:
        self._skip(number, start)
        self._digests[number].update(data)
        self._hashed[number] += data.nbytes

    def _skip(self, number: int, stop: int) -> None:
        """Hash the file itself up to a position."""
        start = self._hashed[number]
        with self._files[number].path.open("rb") as stream:
            stream.seek(start)
            while start < stop and (data := stream.read(min(2**20, stop - start))):
                self._digests[number].update(data)
                start += len(data)
        self._hashed[number] = start
