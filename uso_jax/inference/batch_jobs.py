# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Batch jobs: images of a file of items, in upstream's format, as a JSON list or JSON lines.

    [{"prompt": "...", "image_paths": ["content.png" or "", "style.png", ...], "save_dir": "..."}, ...]

An item may also have "content_paths" (further content images), "image" (to edit) with "mask", "content_mask",
"style_masks" (one for each style, or ""), and any generation option, such as "width" or "seed".
Paths are relative to the file, with "/" or "\\" between folders. The config.json of an example of upstream's app is one
item: {"prompt": "...", "image_ref1": "content.png", "image_ref2": "style.png", "seed": 3407}.

A file name holds the identity of its image (a hash of the request and the weights), so two processes write the same
name only for the same image, and a rerun skips what is finished.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from uso_jax.common import atomic_files, folders, untrusted
from uso_jax.common.errors import InputError
from uso_jax.common.upstream_items import with_image_paths
from uso_jax.images import files
from uso_jax.images.reference import Reference
from uso_jax.inference.options import MAX_SEED, SPECS, GenerationOptions, check_options
from uso_jax.inference.pipeline import USOPipeline
from uso_jax.inference.request import IMAGES, PROMPT_LIMIT, ContentLike, Request, StyleLike
from uso_jax.inference.sampler import Progress
from uso_jax.inference.styles import is_style

_KEYS = ("prompt", "image_paths", "content_paths", *IMAGES, "style_masks", "save_dir")


@dataclass(frozen=True)
class Item:
    """One item: its prompt, its references, and the options in which it differs from the job's.

    `save_dir` is a path without suffix inside the job's folder; by default the file name holds the identity.
    """

    number: int
    prompt: str
    contents: Sequence[ContentLike] = ()
    styles: Sequence[StyleLike] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    save_dir: str | None = None
    images: Mapping[str, Any] = field(default_factory=dict)  # those of IMAGES, and style_masks, by name


def parse_item(values: Mapping[str, Any], number: int = 0, folder: str = "", where: str = "") -> Item:
    """Parse one item as upstream does: its first image is the content, "" for none, and the others are styles.

    Raises:
      InputError: a key is unknown, a value is not allowed or an image is missing; the message names the item, as
        `where` if that is given.
    """
    name = where or f"item {number}"
    values = with_image_paths(values, name)
    if unknown := values.keys() - {*_KEYS, *SPECS}:
        raise InputError(f"{name}: unknown key {min(unknown)!r}; the keys are {', '.join((*_KEYS, *SPECS))}")
    if not isinstance(prompt := values.get("prompt", ""), str):
        raise InputError(f"{name}: prompt must be text, not {prompt!r}")
    prompt = untrusted.text(prompt, f"{name}: the prompt", remedy="type it again", limit=PROMPT_LIMIT)
    paths = {}
    for key in ("image_paths", "content_paths"):
        paths[key] = values.get(key) or []
        if not isinstance(paths[key], list) or not all(isinstance(path, str) for path in paths[key]):
            raise InputError(f"{name}: {key} must be a list of paths")
    content, styles = [*paths["image_paths"][:1], *paths["content_paths"]], paths["image_paths"][1:]
    located = lambda path: folders.located(path, folder, name)
    contents = [located(path) for path in content if path]
    # The name of a saved style is not relative to the folder.
    is_name = lambda path: not pathlib.Path(path).suffix and not pathlib.Path(folder, path).exists()
    styles = [path if is_name(path) else located(path) for path in styles if path]
    images = {key: values[key] for key in IMAGES if values.get(key)}
    for key, path in images.items():
        if not isinstance(path, str):
            raise InputError(f"{name}: {key} must be a path, not {path!r}")
        images[key] = located(path)
    files_read = [*contents, *(path for path in styles if not is_style(path)), *images.values()]
    if masks := values.get("style_masks"):
        if not isinstance(masks, list) or not all(path is None or isinstance(path, str) for path in masks):
            raise InputError(f"{name}: style_masks must be a list of paths")
        images["style_masks"] = [located(path) if path else None for path in masks]
        files_read += filter(None, images["style_masks"])
    for path in files_read:
        if not pathlib.Path(path).is_file():
            raise InputError(f"{name}: image {path!r} does not exist; check the path")
    save_dir = values.get("save_dir")
    save_dir = save_dir.replace("\\", "/") if isinstance(save_dir, str) else save_dir
    if save_dir is not None and (
        not isinstance(save_dir, str) or save_dir[:1] == "/" or save_dir[1:2] == ":" or ".." in save_dir.split("/")
    ):
        raise InputError(f"{name}: save_dir {save_dir!r} must be a relative path without ..")
    options = check_options({key: value for key, value in values.items() if key in SPECS}, f"{name}: ")
    return Item(number, prompt, contents, styles, options, save_dir, images)


def read_items(path: str | pathlib.Path) -> list[Item]:
    """Read a JSON file of items.

    Raises:
      InputError: the file is not a list of items, or an item is wrong; the message names it.
    """
    folder, path = os.path.dirname(path), pathlib.Path(path)
    remedy = "correct it: it holds a JSON list of items, each with prompt and image_paths"
    missing = f"{untrusted.printable(path)} does not exist; check --eval_json_path"
    found = untrusted.json_items(path, missing=missing, remedy=remedy)
    items = [parse_item(one, i, folder, where) for i, (where, one) in enumerate(found)]
    if not items:
        raise InputError(f"{path} has no items; {remedy}")
    owner: dict[str, int] = {}
    for item in items:
        if item.save_dir and (first := owner.setdefault(os.path.normpath(item.save_dir), item.number)) != item.number:
            raise InputError(f"{path}: items {first} and {item.number} have the same save_dir; make them differ")
    return items


@dataclass(frozen=True)
class Job:
    """How the images of some items are generated and where they are written.

    Attributes:
      save_path: folder of the images.
      options: of all items; an item's options come before these.
      num_images_per_prompt: images of each item, with consecutive seeds.
      concat_refs: append the references to each image.
      batch_size: the most images to generate at once.
      process: (index, count) of the processes that share the items.
    """

    save_path: pathlib.Path
    options: GenerationOptions = GenerationOptions()
    num_images_per_prompt: int = 1
    concat_refs: bool = False
    batch_size: int = 1
    process: tuple[int, int] = (0, 1)

    def check(self, items: Sequence[Item]) -> None:
        """Check, before the weights are loaded, every image's seed and whether every file can be written.

        Raises:
          InputError: a seed would be too large or a path cannot be written; the message names the item.
        """
        names = {item.save_dir or "0": item for item in reversed(items)}  # those without a name differ in a hash only
        for item in items:
            seed = item.options.get("seed", self.options.seed)
            if seed + self.num_images_per_prompt - 1 > MAX_SEED:
                raise InputError(
                    f"item {item.number}: the last of {self.num_images_per_prompt} images would have the seed"
                    f" {seed + self.num_images_per_prompt - 1}, above {MAX_SEED}; choose a smaller seed"
                )
        for name, item in names.items():
            path = self.save_path / f"{name}_{self.num_images_per_prompt - 1}.json"
            with atomic_files.explained(f"{path} (item {item.number})", "choose another --save_path or save_dir"):
                atomic_files.probe(path)

    def count(self, num_items: int) -> int:
        """Return how many images of the items this process generates."""
        process, num_processes = self.process
        return len(range(process, num_items * self.num_images_per_prompt, num_processes))

    def run(self, pipe: USOPipeline, items: Sequence[Item], progress: Progress) -> Iterator[tuple[pathlib.Path, bool]]:
        """Generate all images that are not finished. Yield each file, and whether it was generated now."""
        waiting: list[tuple[pathlib.Path, Request, str]] = []
        for path, request, identity in self._requests(pipe, items):
            if _is_finished(path, identity):
                yield path, False
                continue
            waiting.append((path, request, identity))
            if len(waiting) == self.batch_size:
                yield from self._generate(pipe, waiting, progress)
                waiting = []
        if waiting:
            yield from self._generate(pipe, waiting, progress)

    def _requests(self, pipe: USOPipeline, items: Sequence[Item]) -> Iterator[tuple[pathlib.Path, Request, str]]:
        process, num_processes = self.process
        for order, item in enumerate(items):
            options = dataclasses.replace(self.options, **item.options)
            for repeat in range(self.num_images_per_prompt):
                if (order * self.num_images_per_prompt + repeat) % num_processes != process:
                    continue
                # References are read here, one image at a time, so that a long list does not fill the memory.
                one = dataclasses.replace(options, seed=options.seed + repeat)
                read = dict(contents=item.contents, styles=item.styles, **item.images)
                request = pipe.request(item.prompt, **read, options=one)
                identity = request.identity({**pipe.context, "concat_refs": self.concat_refs})
                numbered = item.save_dir is None
                name = f"{item.number}_{repeat}_{identity}" if numbered else f"{item.save_dir}_{repeat}"
                yield self.save_path / f"{name}.png", request, identity

    def _generate(self, pipe: USOPipeline, waiting: list, progress: Progress) -> Iterator[tuple[pathlib.Path, bool]]:
        result = pipe.generate([request for _, request, _ in waiting], progress=progress)
        for (path, request, identity), image, record in zip(waiting, result.images, result.records, strict=True):
            if self.concat_refs:
                styles = [style for style in request.styles if isinstance(style, Reference)]
                image = files.append_references(image, [*request.references, *styles])
            files.write_image(path, image, record | {"identity": identity, "concat_refs": self.concat_refs})
            yield path, True


def _is_finished(path: pathlib.Path, identity: str) -> bool:
    try:
        return path.is_file() and files.read_record(path).get("identity") == identity
    except InputError:
        return False
