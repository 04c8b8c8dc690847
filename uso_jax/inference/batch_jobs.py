# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Images by the file: upstream's list of JSON items, where each image goes, and which are made already.

    [{"prompt": "...", "image_paths": ["content.png" or "", "style.png", ...], "save_dir": "..."}, ...]

`save_dir` may be left out, "content_paths" may name further content references. Paths are relative to the JSON file.

An image's file carries its identity (what was asked for, of which weights), so two processes can only write the same
name for the same image, and a rerun knows what is finished.
"""

import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uso_jax.common.errors import InputError
from uso_jax.common.json_files import require_object
from uso_jax.images import files
from uso_jax.inference import styles as style_files
from uso_jax.inference.pipeline import USOPipeline
from uso_jax.inference.request import Request
from uso_jax.inference.sampler import Progress

_KEYS = ("prompt", "image_paths", "content_paths", "save_dir")


@dataclass(frozen=True)
class Item:
    """One item: what it refers to, and the arguments that are its own."""

    number: int
    arguments: Mapping[str, Any]  # prompt, contents, styles
    save_dir: str | None = None


def item(values: Mapping[str, Any], number: int = 0, folder: str = "") -> Item:
    """Read one item as upstream does: of its images the first is content, "" for none, and the others are styles.

    Raises:
      InputError: an image is missing; the message names the item.
    """
    where = f"item {number}"
    if unknown := values.keys() - set(_KEYS):
        raise InputError(f"{where}: unknown key {min(unknown)!r}; known are {', '.join(_KEYS)}")
    if not isinstance(prompt := values.get("prompt", ""), str):
        raise InputError(f"{where}: prompt is {prompt!r}, but must be text")
    paths = {}
    for name in ("image_paths", "content_paths"):
        paths[name] = values.get(name) or []
        if not isinstance(paths[name], list) or not all(isinstance(path, str) for path in paths[name]):
            raise InputError(f"{where}: {name} is a list of paths")
    content, styles = [*paths["image_paths"][:1], *paths["content_paths"]], paths["image_paths"][1:]
    contents = [os.path.join(folder, path) for path in content if path]
    # A style may also be a name in the library, which no folder stands before.
    named = lambda path: not pathlib.Path(path).suffix and not pathlib.Path(folder, path).exists()
    styles = [path if named(path) else os.path.join(folder, path) for path in styles if path]
    for path in [*contents, *(path for path in styles if not style_files.is_style(path))]:
        if not pathlib.Path(path).is_file():
            raise InputError(f"{where}: image {path!r} does not exist; check the path")
    save_dir = values.get("save_dir")
    if save_dir is not None and (
        not isinstance(save_dir, str) or os.path.isabs(save_dir) or ".." in save_dir.split("/")
    ):
        raise InputError(f"{where}: save_dir {save_dir!r} must be a path inside the folder of images")
    return Item(number, {"prompt": prompt, "contents": contents, "styles": styles}, save_dir)


def read(path: str | pathlib.Path) -> list[Item]:
    """Read a JSON file of items.

    Raises:
      InputError: it is no such file, or an item is wrong; the message names it.
    """
    try:
        values = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check --eval_json_path") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); correct it") from error
    if not isinstance(values, list) or not values:
        raise InputError(f"{path} must be a JSON list of items, each with prompt and image_paths")
    folder = os.path.dirname(path)
    found = [item(require_object(one, f"{path}: item {i}"), i, folder) for i, one in enumerate(values)]
    owner: dict[str, int] = {}
    for one in found:
        if one.save_dir and (first := owner.setdefault(os.path.normpath(one.save_dir), one.number)) != one.number:
            raise InputError(f"{path}: items {first} and {one.number} have one save_dir; give each its own")
    return found


@dataclass(frozen=True)
class Job:
    """Where the images of items go, and how many of each there are."""

    save_path: pathlib.Path
    settings: Mapping[str, Any]  # arguments of USOPipeline.request that all items share
    num_images_per_prompt: int = 1
    concat_refs: bool = False
    batch_size: int = 1
    process: tuple[int, int] = (0, 1)  # which of how many processes; each makes its own images

    def run(self, pipe: USOPipeline, items: Sequence[Item], progress: Progress) -> Iterator[tuple[pathlib.Path, bool]]:
        """Make what is not finished; give each file, and whether it was made now."""
        waiting: list[tuple[pathlib.Path, Request, str]] = []
        for path, one, identity in self._wanted(pipe, items):
            if _finished(path, identity):
                yield path, False
                continue
            waiting.append((path, one, identity))
            if len(waiting) == self.batch_size:
                yield from self._make(pipe, waiting, progress)
                waiting = []
        if waiting:
            yield from self._make(pipe, waiting, progress)

    def _wanted(self, pipe: USOPipeline, items: Sequence[Item]) -> Iterator[tuple[pathlib.Path, Request, str]]:
        process, num_processes = self.process
        first = self.settings.get("seed", 3407)
        for order, one in enumerate(items):
            for repeat in range(self.num_images_per_prompt):
                if (order * self.num_images_per_prompt + repeat) % num_processes != process:
                    continue
                # References are read only when their turn comes.
                wanted = pipe.request(**{**self.settings, **one.arguments, "seed": first + repeat})
                identity = wanted.identity({**pipe.context, "concat_refs": self.concat_refs})
                name = f"{one.number}_{repeat}_{identity}" if one.save_dir is None else f"{one.save_dir}_{repeat}"
                yield self.save_path / f"{name}.png", wanted, identity

    def _make(self, pipe: USOPipeline, waiting: list, progress: Progress) -> Iterator[tuple[pathlib.Path, bool]]:
        result = pipe.generate([one for _, one, _ in waiting], progress=progress)
        for (path, one, identity), image, record in zip(waiting, result.images, result.records, strict=True):
            if self.concat_refs:
                styles = [style for style in one.styles if isinstance(style, files.Reference)]
                image = files.append_references(image, [*one.references, *styles])
            files.write_image(path, image, record | {"identity": identity, "concat_refs": self.concat_refs})
            yield path, True


def _finished(path: pathlib.Path, identity: str) -> bool:
    try:
        return path.is_file() and files.read_record(path).get("identity") == identity
    except InputError:
        return False
