# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Emoji artwork of seven design teams, rasterised once into a file with random access.

The artwork is not part of this project: download the seven npm tarballs (the error for a missing one shows the
command). The file under `data_dir` stores the output of `subject_from_artwork` for every subject and team. It is
memory-mapped, so opening it is instant and processes share it.
"""

import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Float32

from uso_jax.common import atomic_files, extras, progress
from uso_jax.common.errors import InputError
from uso_jax.data.drawings.artwork import ARTWORK_SIDE, subject_from_artwork
from uso_jax.data.drawings.shapes import NOTHING
from uso_jax.data.drawings.subjects import FIELD_REACH, FIELD_SIZE, Subject
from uso_jax.data.emoji.iconify import IconSet, common_subjects, find_tarballs, read_icon_set
from uso_jax.data.emoji.renderer import Renderer

# Images made from the artwork must carry these licence notices.
LICENCES = {
    "twemoji": "Twemoji, CC-BY-4.0",
    "noto": "Noto Emoji, Apache-2.0",
    "noto-v1": "Noto Emoji (v1), Apache-2.0",
    "openmoji": "OpenMoji, CC-BY-SA-4.0",
    "fluent-emoji": "Fluent Emoji, MIT",
    "fluent-emoji-flat": "Fluent Emoji Flat, MIT",
    "emojione": "Emoji One (v2), CC-BY-4.0",
}
TEAMS = tuple(LICENCES)
HELDOUT_TEAM = "emojione"
FOLDER = "emoji_artwork"
VERSION = 1  # of the file format; increase it when the stored content changes
FIELD_KEPT = (FIELD_SIZE + 1) // 2  # side of the stored distance field: every second point


def is_heldout(subject: str) -> bool:
    """Return whether a subject is held out of training. Depends only on its name, so the split is stable."""
    return zlib.crc32(subject.encode()) % 10 == 0


class EmojiArtwork:
    """Subjects by name and team, at a resolution for images of `size` pixels.

    Args:
      data_dir: holds the rasterised artwork, which is created there if it is missing.
      manual_dir: holds the tarballs; "" if the rasterised artwork exists already.
      size: side of the images to draw, in pixels.

    Raises:
      InputError: the rasterised artwork is missing or damaged, or tarballs are missing.
    """

    def __init__(self, data_dir: Path | str, manual_dir: Path | str, *, size: int):
        # A subject never exceeds the image, so the image's resolution suffices (a power of two, at most 128).
        self.side = min(ARTWORK_SIDE, max(8, 1 << (size - 1).bit_length()))
        self._records = _open(_made(Path(data_dir) / FOLDER, str(manual_dir), self.side), _layout(self.side))
        self.names = tuple(name.decode() for name in self._records["name"][:, 0].tolist())
        self._rows = {name: row for row, name in enumerate(self.names)}
        self.seen = tuple(name for name in self.names if not is_heldout(name))
        self.heldout = tuple(name for name in self.names if is_heldout(name))

    def subject(self, name: str, team: str) -> Subject:
        """Return a subject as drawn by a team, including its artwork."""
        record = self._records[self._rows[name], TEAMS.index(team)]
        fill, ink = record["fill"].decode(), record["ink"].decode()
        artwork = record["artwork"] * np.float32(1 / 255)
        subject = Subject(name, phrase(name), fill, ink, NOTHING, NOTHING, is_heldout(name), artwork)
        # Fills the cached property `Subject.field`, which would be computed otherwise.
        vars(subject)["field"] = _refined(record["field"])
        return subject


def phrase(name: str) -> str:
    """Return the name of a subject for captions."""
    return f"the {name.replace('-', ' ')}"


def _layout(side: int) -> np.dtype:
    fields = [("field", "<f2", (FIELD_KEPT, FIELD_KEPT, 2)), ("artwork", "u1", (side, side, 4))]
    return np.dtype([*fields, ("name", "S64"), ("fill", "S16"), ("ink", "S16")])


def _made(folder: Path, manual_dir: str, side: int) -> Path:
    """Return the path of the rasterised artwork of this resolution; create it if necessary."""
    kind = f"v{VERSION}-{side}px"
    if not manual_dir:
        found = sorted(folder.glob(f"{kind}-*.npy"))
        if len(found) != 1:
            raise InputError(
                f"{folder} holds {len(found)} files of emoji artwork for {side} pixels ({kind}-*.npy), expected one:"
                " set manual_dir to the directory of the downloaded tarballs (npm pack "
                + " ".join(f"@iconify-json/{team}" for team in TEAMS)
                + ")."
            )
        return found[0]
    tarballs = find_tarballs(Path(manual_dir), TEAMS)
    digest = hashlib.sha256()
    for team in TEAMS:
        digest.update(hashlib.sha256(tarballs[team].read_bytes()).digest())
    path = folder / f"{kind}-{digest.hexdigest()[:16]}.npy"
    if not path.exists():
        extras.require("data")
        _write(path, [read_icon_set(tarballs[team], team) for team in TEAMS], side)
    return path


def _open(path: Path, layout: np.dtype) -> np.ndarray:
    try:
        records = np.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is not readable ({error}): delete it to create it again.") from error
    if records.dtype != layout or records.ndim != 2 or records.shape[1] != len(TEAMS):
        raise InputError(f"{path} does not hold emoji artwork of this version: delete it to create it again.")
    return records


def _write(path: Path, sets: list[IconSet], side: int) -> None:
    """Rasterise all icons (two to three minutes) and write the file atomically."""
    names = common_subjects(sets)
    heldout = sum(map(is_heldout, names))
    if len(names) - heldout < 2 or not heldout:
        raise InputError(
            f"emoji data: the {len(sets)} icon sets share {len(names) - heldout} seen and {heldout} held-out subjects,"
            " but at least 2 and 1 are needed: download the published sets again with npm pack."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / ".gitignore").write_text("*\n")  # third-party artwork must not be committed by accident
    with atomic_files.beside(path) as temporary:
        records = np.lib.format.open_memmap(temporary, "w+", _layout(side), (len(names), len(sets)))
        bar = progress.bar(total=records.size, desc="Rasterising emoji", unit="icon")
        with bar, Renderer() as renderer:
            for row, name in enumerate(names):
                for column, icons in enumerate(sets):
                    # Twice the stored resolution, for antialiasing.
                    drawn = icons.render(name, max(128, 2 * side), renderer)
                    for field, value in _record(subject_from_artwork(drawn, f"{icons.name} {name}"), side):
                        records[field][row, column] = value
                    records["name"][row, column] = name
                    bar.update()
        records.flush()


def _record(subject: Subject, side: int) -> Iterator[tuple[str, object]]:
    artwork = subject.artwork
    while len(artwork) > side:
        artwork = artwork.reshape(len(artwork) // 2, 2, len(artwork) // 2, 2, 4).mean((1, 3))
    yield "artwork", (artwork * 255 + 0.5).clip(0, 255).astype(np.uint8)
    axis = np.linspace(-FIELD_REACH, FIELD_REACH, FIELD_KEPT)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    # As `Subject.field`, without its correction: distances of a raster are exact.
    body = subject.body.distance(x, y)
    yield "field", np.stack([body, np.maximum(subject.detail.distance(x, y), body + 0.02)], axis=-1)
    yield "fill", subject.fill
    yield "ink", subject.ink


def _refined(kept: Float16[np.ndarray, "y x 2"]) -> Float32[np.ndarray, "n 2"]:
    """Upsample a stored distance field linearly by two."""
    # Handling the two distances of a point as one complex number is several times faster.
    coarse = kept.astype(np.float32).view(np.complex64)[..., 0]
    rows = np.empty((FIELD_SIZE, FIELD_KEPT), np.complex64)
    rows[::2] = coarse
    rows[1::2] = (coarse[1:] + coarse[:-1]) * np.float32(0.5)
    fine = np.empty((FIELD_SIZE, FIELD_SIZE), np.complex64)
    fine[:, ::2] = rows
    fine[:, 1::2] = (rows[:, 1:] + rows[:, :-1]) * np.float32(0.5)
    return fine.view(np.float32).reshape(-1, 2)
