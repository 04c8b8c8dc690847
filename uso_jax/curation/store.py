# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A curation on disk: what each step found or made for every candidate, in shards that are there whole or not at all.

    DIR/manifest.json          which source, and how it is shared out
    DIR/STEP/settings.json     how a step was done, and on what
    DIR/STEP/00000.tar         the images that it made, NUMBER.png
    DIR/STEP/00000.jsonl       a row a candidate; written last, so a shard that has it is whole

A candidate is an image of the source with one of the layouts: number = index * (number of layouts) + layout. A row has
"number" and what the step found; a step that could not do its work for a candidate says why in "failed".
"""

import functools
import hashlib
import io
import json
import pathlib
import tarfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from uso_jax.common import atomic_files, progress
from uso_jax.common.errors import InputError
from uso_jax.data.storage import archives
from uso_jax.data.storage.places import Place
from uso_jax.images import decode

Row = dict[str, Any]
Made = tuple[Iterable[Row], Mapping[int, decode.Pixels]]  # rows, and images by the number of their candidate
MANIFEST, SETTINGS = "manifest.json", "settings.json"
NEEDS = {  # the steps that a step builds on
    "captions": (),
    "stylize": ("captions",),
    "destylize": ("captions",),
    "score": ("stylize", "destylize"),
    "judge": ("score",),
    "truth": ("stylize", "destylize"),
}
STEPS = tuple(NEEDS)


class Folder:
    """One curation's folder."""

    def __init__(self, path: pathlib.Path | str):
        self.path = pathlib.Path(path)
        self.manifest = _read_json(
            self.path / MANIFEST, f"{path} holds no curation: begin one with curate.py captions."
        )
        self.layouts: list[str] = self.manifest["layouts"]

    @classmethod
    def begin(cls, path: pathlib.Path | str, manifest: Mapping[str, Any]) -> "Folder":
        """Begin a curation, or go on with the same one."""
        path, manifest = pathlib.Path(path), json.loads(json.dumps(manifest))
        if not (path / MANIFEST).exists():
            with atomic_files.explained(path, "choose another --to."):
                path.mkdir(parents=True, exist_ok=True)
                atomic_files.write_file(path / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        folder = cls(path)
        if differs := _differs(folder.manifest, manifest):
            raise InputError(f"{path} is a curation of something else ({differs}): choose another --to.")
        return folder

    @property
    def shards(self) -> int:
        return -(-self.manifest["examples"] // self.manifest["shard_size"])

    def indices(self, shard: int) -> range:
        """Give the places in the source of a shard's images."""
        size = self.manifest["shard_size"]
        return range(shard * size, min((shard + 1) * size, self.manifest["examples"]))

    def numbers(self, index: int) -> dict[int, str]:
        """Give the candidates of an image of the source, with their layouts."""
        return {index * len(self.layouts) + i: layout for i, layout in enumerate(self.layouts)}

    def shard_of(self, number: int) -> int:
        return number // len(self.layouts) // self.manifest["shard_size"]

    # ------------------------------------------------------------------------------------------------ steps

    def run(
        self,
        step: str,
        settings: Mapping[str, Any],
        make: Callable[[int], Made],
        *,
        process: tuple[int, int] = (0, 1),
        again: Callable[[Row], bool] = lambda row: False,
    ) -> None:
        """Make the shards of a step that are not there yet, or that hold a row which is to be made `again`.

        Raises:
          InputError: the step was begun with other settings, or one that it builds on is not finished.
        """
        self._begin(step, settings)
        mine = range(process[0], self.shards, process[1])
        with progress.bar(total=len(mine), desc=step, unit="shard") as bar:
            for shard in mine:
                for need in NEEDS[step]:
                    self.rows(need, shard)
                if not self.is_done(step, shard) or any(map(again, self.rows(step, shard).values())):
                    self._write(step, shard, *make(shard))
                bar.update()

    def has(self, step: str) -> bool:
        """Tell whether a step was begun."""
        return (self.path / step / SETTINGS).is_file()

    def settings(self, step: str) -> dict[str, Any]:
        """Give how a step was done."""
        return _read_json(
            self.path / step / SETTINGS, f"{self.path} lacks the step {step}: run curate.py {step} first."
        )

    def is_done(self, step: str, shard: int) -> bool:
        """Tell whether a shard of a step is whole."""
        return self._file(step, shard, "jsonl").is_file()

    def rows(self, step: str, shard: int) -> dict[int, Row]:
        """Give a shard's rows by number."""
        path = self._file(step, shard, "jsonl")
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            return {row["number"]: row for row in map(json.loads, lines)}
        except FileNotFoundError:
            raise InputError(f"{self.path} lacks shard {shard:05d} of {step}: run curate.py {step} first.") from None
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error}): delete it and run curate.py {step} again.") from error

    def all_rows(self, step: str) -> dict[int, Row]:
        """Give all rows of a step by number; it must be finished."""
        return {number: row for shard in range(self.shards) for number, row in self.rows(step, shard).items()}

    def place(self, step: str, number: int) -> Place:
        """Give where an image that a step made lies."""
        return _members(str(self._file(step, self.shard_of(number), "tar")))[f"{number:08d}.png"]

    def target(self, row: Row) -> Place:
        """Give where the stylised image of a row of captions lies: in the source's own file if it has one."""
        return Place.unpack(row["place"]) if "place" in row else self.place("captions", row["picture"])

    def _begin(self, step: str, settings: Mapping[str, Any]) -> None:
        on = {need: _digest(self.settings(need)) for need in NEEDS[step]}
        settings = json.loads(json.dumps(dict(settings) | {"on": on}))
        path = self.path / step / SETTINGS
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            atomic_files.write_file(path, json.dumps(settings, indent=1) + "\n")
        elif differs := _differs(self.settings(step), settings):
            raise InputError(
                f"{path.parent} was made in another way ({differs}): delete that folder to make it again, or choose"
                " another --to."
            )

    def _write(self, step: str, shard: int, rows: Iterable[Row], images: Mapping[int, decode.Pixels]) -> None:
        later = [name for name, needs in NEEDS.items() if step in needs]
        for name in [*later, *(n for n, needs in NEEDS.items() if set(later) & set(needs))]:
            self._file(name, shard, "jsonl").unlink(missing_ok=True)  # it was made of what is replaced now
        with atomic_files.explained(self.path, "free some space and go on."):
            if images:
                _write_tar(self._file(step, shard, "tar"), images)
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            atomic_files.write_file(self._file(step, shard, "jsonl"), lines)

    def _file(self, step: str, shard: int, ending: str) -> pathlib.Path:
        return self.path / step / f"{shard:05d}.{ending}"


def _write_tar(path: pathlib.Path, images: Mapping[int, decode.Pixels]) -> None:
    with atomic_files.beside(path) as temporary, tarfile.open(temporary, "w") as tar:
        for number, image in images.items():
            data = decode.encode_png(image)
            member = tarfile.TarInfo(f"{number:08d}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    _members.cache_clear()


@functools.lru_cache(maxsize=64)
def _members(path: str) -> dict[str, Place]:
    return archives.list_members(path)


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _differs(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    names = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    return ", ".join("what it builds on" if name == "on" else name for name in names) + " differ" if names else ""


def _read_json(path: pathlib.Path, missing: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(missing) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable ({error}): delete the folder and begin again.") from error
