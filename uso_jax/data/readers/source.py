# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The items that readers yield, and `FileTriplets`, the random-access source built from them."""

import collections
import contextlib
import copy
import hashlib
import itertools
import json
import logging
import operator
import os
import pathlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Int32

from uso_jax.common import atomic_files, progress, untrusted, user_folders
from uso_jax.common.errors import BadExample, InputError
from uso_jax.data.readers.packed_rows import PackedRows
from uso_jax.data.storage.places import Place
from uso_jax.data.triplet import Triplet, task_of
from uso_jax.images.decode import Fit

_LOG = logging.getLogger("uso_jax.data")
_KEPT_FROM = 10_000  # number of triplets from which measured image sizes are cached on disk
_NAMED = 3  # skipped files of one reason that messages name
_MEASURED = 256  # files whose length is part of the digest; each costs a request on a network file system
_THREADS = 16  # for reading image headers, which is I/O-bound
_WAITING = 4096  # images whose headers wait for a thread
_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
quote = json.encoder.encode_basestring  # what it does with strings, without building an encoder for each
NONE = "null"  # JSON text of an image that an item lacks


@dataclass(frozen=True)
class Item:
    """A triplet whose images are not loaded yet. The fields are those of `Triplet`; `key` is unique in the source.

    `target` is None only for items that are generated from.
    """

    key: str
    target: Place | None
    prompt: str = ""
    content: Place | None = None
    styles: tuple[Place, ...] = ()
    layout: str = "shifted"
    meta: dict[str, Any] = field(default_factory=dict)
    mask: Place | None = None


class Packed(NamedTuple):
    """An item as the row that it is kept as, from readers of lists with millions of items."""

    key: str
    row: bytes
    has_mask: bool


@dataclass(frozen=True)
class LeftOut:
    """A row or file that a reader skips, with the reason. They are counted by reason, and the first ones named."""

    reason: str
    name: str = ""


def both_ways(
    key: str, images: Sequence[Place], captions: Sequence[str], meta: Mapping[str, Any], both: bool
) -> Iterator[Item]:
    """Yield the triplet from the first of two images of a subject to the second and, if `both`, the reverse one."""
    for content, target in ((0, 1), (1, 0))[: 2 if both else 1]:
        yield Item(f"{key}/{target}", images[target], captions[target], images[content], meta=dict(meta))


class FileTriplets:
    """Random access to the triplets of a reader. Images are read and decoded on access.

    Items are kept as JSON in `PackedRows`.

    Args:
      name: of the reader.
      path: of the data, for messages and keys.
      found: output of the reader.

    Attributes:
      left_out: number of skipped rows and files by reason.
      num_masks: number of targets with a mask.

    Raises:
      InputError: two items have the same key, or there are none.
    """

    def __init__(self, name: str, path: str, found: Iterable[Item | Packed | LeftOut]):
        self.name, self.path = name, str(path)
        self.left_out: collections.Counter[str] = collections.Counter()
        self._rows, hashes = PackedRows(), array("q")
        self.num_masks = 0
        names: dict[str, list[str]] = collections.defaultdict(list)
        for item in found:
            if isinstance(item, LeftOut):
                self.left_out[item.reason] += 1
                if item.name and len(names[item.reason]) < _NAMED:
                    names[item.reason].append(untrusted.printable(item.name))
                continue
            key, row, has_mask = item if isinstance(item, Packed) else _packed(item)
            hashes.append(hash(key))
            self.num_masks += has_mask
            self._rows.append(row)
        self._check_keys(np.asarray(hashes))
        if not len(self):
            lost = "; ".join(_told(reason, count, names[reason]) for reason, count in self.left_out.items())
            raise InputError(f"{self.path} has no usable triplet ({lost or 'it is empty'}).")
        for reason, count in self.left_out.items():
            _LOG.warning("%s: %s", self.path, _told(reason, count, names[reason]))
        if self.num_masks:
            _LOG.info("%s: %d targets have a mask, for stages with outside_mask below 1", path, self.num_masks)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: SupportsIndex) -> Triplet:
        return self.fitted(operator.index(index))

    def fitted(self, index: int, target: Fit | None = None, content: Fit | None = None, style: Fit | None = None):
        """Return a triplet whose images are resized by these functions while they are decoded.

        Raises:
          BadExample: an image cannot be read or decoded.
        """
        item = self.item(index)
        what = f" (item {item.key} of {self.path})"
        content = None if item.content is None else item.content.decode(what, content)
        styles = tuple(place.decode(what, style) for place in item.styles)
        return Triplet(
            prompt=item.prompt,
            content=content,
            styles=styles,
            target=None if item.target is None else item.target.decode(what, target),
            task=task_of(content=content is not None, styles=bool(styles)),
            layout=item.layout,
            key=f"{os.path.basename(self.path.rstrip('/'))}/{item.key}",
            meta=item.meta,
            mask=_mask(item, what, target),
        )

    def item(self, index: int) -> Item:
        """Return an item without reading its images."""
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        return _unpack(self._rows[index])

    def split(self, share: float) -> dict[str, "FileTriplets"]:
        """Return the triplets to train on and those to hold out, by "train" and "heldout".

        The digest of its key decides about a triplet, so it stays where it is when others are added.

        Args:
          share: of the triplets that is held out, at least one.

        Raises:
          InputError: there is only one triplet.
        """
        count = len(self)
        if count < 2:
            raise InputError(f"{self.path} has one usable triplet; training and validation need at least two.")
        digests = b"".join(hashlib.sha256(_key(row).encode()).digest() for row in self._rows)
        ranks = np.argsort(np.frombuffer(digests, "S32"), kind="stable")
        held = np.zeros(count, bool)
        held[ranks[: min(max(1, round(share * count)), count - 1)]] = True
        return {"train": self._only(~held), "heldout": self._only(held)}

    def _only(self, chosen: np.ndarray) -> "FileTriplets":
        """Return the source of some of the triplets."""
        part = copy.copy(self)
        part._rows = PackedRows(itertools.compress(self._rows, chosen))
        return part

    def _check_keys(self, hashes: np.ndarray) -> None:
        """Raise an InputError if two triplets have the same key; only keys of equal hashes are compared."""
        values, counts = np.unique(hashes, return_counts=True)
        seen: set[str] = set()
        for row in itertools.compress(self._rows, np.isin(hashes, values[counts > 1])):
            if (key := _key(row)) in seen:
                raise InputError(f"{self.path}: two triplets have the key {key!r}; rename or remove one.")
            seen.add(key)

    def digest(self) -> str:
        """Return a digest of all rows, and of the lengths of some of their files."""
        found = self._rows_digest()
        for index in range(0, len(self), -(-len(self) // _MEASURED)):
            target = self.item(index).target
            if target is not None and target.length < 0 and os.path.isfile(target.file):
                found.update(f"{index} {os.path.getsize(target.file)} ".encode())
        return found.hexdigest()[:16]

    def sizes(self) -> Int32[np.ndarray, "n 4"]:
        """Return (height, width) of every target and content image, 0 where absent or unreadable.

        Only image headers are read. For large sets the result is cached in the user's cache directory.
        """
        name = self._rows_digest().hexdigest()[:24]
        kept = cache_folder() / "sizes" / f"{name}.npy"
        if len(self) >= _KEPT_FROM and kept.is_file():
            return np.load(kept, allow_pickle=False)
        with ThreadPoolExecutor(_THREADS) as pool:
            rows = itertools.chain.from_iterable(pool.map(_sizes_of, some) for some in _batched(self._rows, _WAITING))
            hidden = len(self) < _KEPT_FROM
            sizes = list(progress.bar(rows, f"sizes of {self.path}", total=len(self), unit="item", disable=hidden))
        sizes = np.asarray(sizes, np.int32)
        if len(self) >= _KEPT_FROM:
            with contextlib.suppress(OSError):  # the next run reads the headers again
                kept.parent.mkdir(parents=True, exist_ok=True)
                with atomic_files.beside(kept) as temporary, temporary.open("wb") as file:
                    np.save(file, sizes)
        return sizes

    def _rows_digest(self):
        found = hashlib.sha256()
        for row in self._rows:
            found.update(row)
        return found


def cache_folder() -> pathlib.Path:
    """Return the directory of cached data."""
    return user_folders.cache()


def _told(reason: str, count: int, names: Sequence[str]) -> str:
    more = ", ..." if len(names) < count else ""
    return f"{count} skipped: {reason}" + (f" ({', '.join(names)}{more})" if names else "")


def _mask(item: Item, what: str, fit: Fit | None) -> np.ndarray | None:
    """Return the mask of a target, resized as the target is.

    Raises:
      BadExample: it cannot be read, or has another size than the target.
    """
    if item.mask is None or item.target is None:
        return None
    if (found := item.mask.size()) != (wanted := item.target.size()):
        sizes = (f"{width} x {height}" for height, width in (found, wanted))
        raise BadExample(f"{item.mask}{what} is {' and its target '.join(sizes)} pixels: make them equal.")
    return item.mask.decode(what, fit)


def _batched(rows: Iterable[bytes], number: int) -> Iterator[list[bytes]]:
    rows = iter(rows)
    while some := list(itertools.islice(rows, number)):
        yield some


def _sizes_of(row: bytes) -> tuple[int, int, int, int]:
    item = _unpack(row)
    return *_size(item.target), *_size(item.content)


def _size(place: Place | None) -> tuple[int, int]:
    try:
        return (0, 0) if place is None else place.size()
    except BadExample:
        return 0, 0  # reported when the image is decoded


def pack(
    key: str,
    prompt: str,
    layout: str,
    content: str,
    styles: Iterable[str],
    target: str,
    meta: Mapping[str, Any],
    mask: str = NONE,
) -> Packed:
    """Return an item whose images are JSON texts, such as `pack_place` returns.

    The row is JSON without a line feed. The digests by which runs know their data are made of it.
    """
    text = (
        f"[{quote(key)},{quote(prompt)},{quote(layout)},{content},[{','.join(styles)}],{target},"
        f"{_ENCODE(meta) if meta else '{}'}"
    )
    text += "]" if mask == NONE else f",{mask}]"  # rows without masks are those of earlier releases
    return Packed(key, text.encode("utf-8", "surrogateescape"), mask != NONE)  # names of files may be any bytes


def pack_place(place: Place | None) -> str:
    """Return the JSON text of an image, or of none."""
    return NONE if place is None else _ENCODE(place.pack())


def _packed(item: Item) -> Packed:
    images = (pack_place(item.content), map(pack_place, item.styles), pack_place(item.target))
    return pack(item.key, item.prompt, item.layout, *images, item.meta, pack_place(item.mask))


def _key(row: bytes) -> str:
    return json.loads(row.decode("utf-8", "surrogateescape"))[0]


def _unpack(row: bytes) -> Item:
    key, prompt, layout, content, styles, target, meta, *mask = json.loads(row.decode("utf-8", "surrogateescape"))
    return Item(
        key=key,
        prompt=prompt,
        layout=layout,
        content=Place.unpack(content),
        styles=tuple(map(Place.unpack, styles)),
        target=Place.unpack(target),
        meta=meta,
        mask=Place.unpack(mask[0]) if mask else None,
    )
