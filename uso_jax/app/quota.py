# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""How much clients may upload, and the deletion of files that nobody needs any more."""

import collections
import contextlib
import pathlib
import threading
import time
from collections.abc import Iterator, MutableSet

from uso_jax.web.requests import Refused

MEGABYTE = 1 << 20
MAX_FILE = 20 * MEGABYTE
MAX_BODY = MAX_FILE + (1 << 16)  # of a request that uploads a file
AT_ONCE, AT_ONCE_PER_CLIENT = 12, 6  # uploads; one holds up to MAX_BODY of memory
UPLOADS_KEPT = 2 * 3600.0  # seconds
BROKEN_KEPT = 600.0  # seconds; uploads that were not finished
IMAGES_KEPT = 24 * 3600.0  # seconds; generated images
SWEEP_EVERY = 300.0  # seconds


class UploadQuota:
    """Counts what clients upload. Thread-safe.

    The bytes that arrived within the last UPLOADS_KEPT seconds are counted, those of broken uploads too. After that
    time the files are deleted, so the quota bounds what lies on the disk.
    """

    def __init__(self, per_client: int, total: int):
        """Create a quota.

        Args:
          per_client: bytes of one address.
          total: bytes of all.
        """
        self.per_client, self.total = per_client, total
        self._lock = threading.Lock()
        self._taken: collections.deque[tuple[float, str, int]] = collections.deque()  # oldest first
        self._bytes: collections.Counter[str] = collections.Counter()
        self._open: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def upload(self, client: str) -> Iterator[None]:
        """Hold one of the places for uploads.

        Raises:
          Refused: all of them are taken.
        """
        with self._lock:
            if self._open[client] >= AT_ONCE_PER_CLIENT or self._open.total() >= AT_ONCE:
                raise Refused(429, "too many uploads at once; wait for the others to end, then try again")
            self._open[client] += 1
        try:
            yield
        finally:
            with self._lock:
                self._open[client] -= 1
                if not self._open[client]:
                    del self._open[client]

    def take(self, client: str, size: int) -> None:
        """Count bytes that arrive.

        Raises:
          Refused: the client, or all clients together, have uploaded too much.
        """
        with self._lock:
            now = time.monotonic()
            while self._taken and self._taken[0][0] < now - UPLOADS_KEPT - SWEEP_EVERY:
                _, past, freed = self._taken.popleft()
                self._bytes[past] -= freed
                if not self._bytes[past]:
                    del self._bytes[past]
            for whose, taken, limit in (
                ("your uploads", self._bytes[client], self.per_client),
                ("the uploads of all users", self._bytes.total(), self.total),
            ):
                if taken + size > limit:
                    raise Refused(
                        413,
                        f"{whose} reach the limit of {limit // MEGABYTE} MB. Files are deleted"
                        f" {UPLOADS_KEPT / 3600:g} hours after their upload: try again later, or start the app with a"
                        " larger --upload_quota",
                    )
            self._taken.append((now, client, size))
            self._bytes[client] += size


def sweep(uploaded: MutableSet[str], upload_folder: pathlib.Path, image_folder: pathlib.Path) -> None:
    """Delete old files.

    Args:
      uploaded: paths of uploads; those that are deleted are removed.
      upload_folder: files directly in it are uploads that are under way or broken.
      image_folder: holds generated images.
    """
    now = time.time()
    for path in list(uploaded):
        if _delete(pathlib.Path(path), now - UPLOADS_KEPT):
            uploaded.discard(path)
    for folder, kept in ((upload_folder, BROKEN_KEPT), (image_folder, IMAGES_KEPT)):
        for path in list(folder.glob("*")):
            if path.is_file():
                _delete(path, now - kept)


def _delete(path: pathlib.Path, before: float) -> bool:
    """Delete a file that was last changed before a time. Return whether it is gone."""
    try:
        if path.stat().st_mtime >= before:
            return False
        path.unlink()
    except FileNotFoundError:
        return True
    except OSError:
        return False  # tried again at the next sweep
    return True
