# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Storage of a curation: the results of every step for every candidate, in atomically written shards.

    DIR/manifest.json          the source, layouts and shard size
    DIR/STEP/settings.json     settings of the step, and digests of the settings of the steps it needs
    DIR/STEP/00000.tar         generated images, NUMBER.png
    DIR/STEP/00000.jsonl       one row per candidate; written last, so its presence marks a complete shard

A candidate is an image of the source with one of the layouts: number = index * (number of layouts) + layout. A row has
"number" and the results of the step, or the reason in "failed".
"""

import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from uso_jax.common import atomic_files, progress, untrusted
from uso_jax.common.errors import InputError
from uso_jax.curation.rows import RESULTS, ROWS, Manifest
from uso_jax.data.storage import archives
from uso_jax.data.storage.places import Place
from uso_jax.images import decode

Row = dict[str, Any]
Made = tuple[Iterable[Row], Mapping[int, decode.Pixels]]  # rows, and images by candidate number
MANIFEST, SETTINGS = "manifest.json", "settings.json"
_AGAIN = "delete its directory and start again"
NEEDS = {  # step -> steps whose results it needs
    "captions": (),
    "stylize": ("captions",),
    "destylize": ("captions",),
    "score": ("stylize", "destylize"),
    "judge": ("score",),
    "truth": ("stylize", "destylize"),
}
STEPS = tuple(NEEDS)


class Folder:
    """The directory of a curation.

    Raises:
      InputError: the directory holds no curation.
    """

    def __init__(self, path: pathlib.Path | str):
        self.path = pathlib.Path(path)
        missing = f"{path} holds no curation: start one with uso-curate captions."
        self.manifest = untrusted.json(self.path / MANIFEST, Manifest, missing=missing, remedy=_AGAIN)
        self.layouts: list[str] = self.manifest["layouts"]
        if self.manifest["shard_size"] < 1 or self.manifest["examples"] < 0 or not self.layouts:
            raise InputError(f"{self.path / MANIFEST} is damaged: its sizes make no sense; {_AGAIN}")

    @classmethod
    def begin(cls, path: pathlib.Path | str, manifest: Mapping[str, Any]) -> "Folder":
        """Create a curation, or open an existing one with the same manifest.

        Raises:
          InputError: the directory holds a curation with another manifest.
        """
        path, manifest = pathlib.Path(path), untrusted.recorded(manifest)
        if not (path / MANIFEST).exists():
            with atomic_files.explained(path, "choose another --to."):
                path.mkdir(parents=True, exist_ok=True)
                atomic_files.write_file(path / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        folder = cls(path)
        if differs := _differs(folder.manifest, manifest):
            raise InputError(f"{path} holds another curation ({differs}): choose another --to.")
        return folder

    @property
    def shards(self) -> int:
        return -(-self.manifest["examples"] // self.manifest["shard_size"])

    def indices(self, shard: int) -> range:
        """Return the source indices of the images of a shard."""
        size = self.manifest["shard_size"]
        return range(shard * size, min((shard + 1) * size, self.manifest["examples"]))

    def numbers(self, index: int) -> dict[int, str]:
        """Return the layouts of the candidates of a source image, by candidate number."""
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
        """Compute the missing shards of a step.

        Args:
          step: name of the step.
          settings: everything that determines its results; stored with the first shard.
          make: computes a shard.
          process: (index, count); this process computes every count-th shard.
          again: shards with a row that it accepts are computed again.

        Raises:
          InputError: the step was run with other settings, or a step it needs is not finished.
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
                else:
                    bar.skip()

    def has(self, step: str) -> bool:
        """Return whether a step was started."""
        return (self.path / step / SETTINGS).is_file()

    def settings(self, step: str) -> dict[str, Any]:
        """Return the settings of a step.

        Raises:
          InputError: the step was not started.
        """
        missing = f"{self.path} lacks the step {step}: run curate.py {step} first."
        return untrusted.json(self.path / step / SETTINGS, dict[str, Any], missing=missing, remedy=_AGAIN)

    def is_done(self, step: str, shard: int) -> bool:
        """Return whether a shard of a step is complete."""
        return self._file(step, shard, "jsonl").is_file()

    def rows(self, step: str, shard: int) -> dict[int, Row]:
        """Return the rows of a shard by candidate number.

        Raises:
          InputError: the shard is missing or damaged.
        """
        path = self._file(step, shard, "jsonl")
        missing = f"{self.path} lacks shard {shard:05d} of {step}: run curate.py {step} first."
        again = f"delete it and run curate.py {step} again"
        rows = untrusted.json_lines(path, ROWS[step], missing=missing, remedy=f"the file is damaged, {again}")
        found = {row["number"]: row for _, row in rows}
        if found.keys() != {number for index in self.indices(shard) for number in self.numbers(index)}:
            raise InputError(f"{path} is damaged (it lacks candidates of its shard): {again}")
        for number, row in found.items():
            if absent := [] if "failed" in row else [name for name in RESULTS.get(step, ()) if name not in row]:
                raise InputError(f"{path} is damaged (candidate {number} has no {absent[0]}): {again}")
        return found

    def all_rows(self, step: str) -> dict[int, Row]:
        """Return all rows of a finished step by candidate number."""
        return {number: row for shard in range(self.shards) for number, row in self.rows(step, shard).items()}

    def place(self, step: str, number: int) -> Place:
        """Return the location of an image that a step generated."""
        path, name = self._file(step, self.shard_of(number), "tar"), f"{number:08d}.png"
        if (found := _members(str(path)).get(name)) is None:
            raise InputError(f"{path} has no {name}: delete it with its .jsonl and run curate.py {step} again")
        return found

    def target(self, row: Row) -> Place:
        """Return the location of the stylised image of a row of captions: the source's file, or a copy without one."""
        if "place" in row:
            return Place.unpack(row["place"])
        return self.place("captions", row.get("picture", row["number"]))

    def _begin(self, step: str, settings: Mapping[str, Any]) -> None:
        on = {need: _digest(self.settings(need)) for need in NEEDS[step]}
        settings = untrusted.recorded(dict(settings) | {"on": on})
        path = self.path / step / SETTINGS
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            atomic_files.write_file(path, json.dumps(settings, indent=1) + "\n")
        elif differs := _differs(self.settings(step), settings):
            raise InputError(
                f"{path.parent} was made with other settings ({differs}): delete that directory to redo the step, or"
                " choose another --to."
            )

    def _write(self, step: str, shard: int, rows: Iterable[Row], images: Mapping[int, decode.Pixels]) -> None:
        later = [name for name, needs in NEEDS.items() if step in needs]
        for name in [*later, *(n for n, needs in NEEDS.items() if set(later) & set(needs))]:
            self._file(name, shard, "jsonl").unlink(missing_ok=True)  # depends on what is replaced here
        with atomic_files.explained(self.path, "free some space and run the command again."):
            if images:
                members = {f"{number:08d}": image for number, image in images.items()}
                archives.write_images(self._file(step, shard, "tar"), members)
                _members.cache_clear()
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            atomic_files.write_file(self._file(step, shard, "jsonl"), lines)

    def _file(self, step: str, shard: int, ending: str) -> pathlib.Path:
        return self.path / step / f"{shard:05d}.{ending}"


@functools.lru_cache(maxsize=64)
def _members(path: str) -> dict[str, Place]:
    return archives.list_members(path)


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _differs(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    names = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    return ", ".join("earlier steps" if name == "on" else name for name in names) + " differ" if names else ""
