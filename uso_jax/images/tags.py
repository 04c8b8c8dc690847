# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A check of the tag directories of TIFF files and EXIF blocks, before a library reads them.

PIL copies the value of every tag. Many tags may share the same bytes, so that a small file takes any amount of memory.
Format: TIFF 6.0, section 2, https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf
"""

import struct

from uso_jax.common.errors import BadExample

_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WITHOUT = (b"BM", b"GIF8")  # formats without tags begin so; raw pixels may equal a signature
_SIZES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)  # bytes of a value by its type
_BYTES = (1, 2, 6, 7)  # types that PIL keeps as bytes; it makes a Python object of each other value
_MAX_NUMBERS = 1 << 20
_SLACK = 1 << 20  # bytes
_MAX_ENTRIES = 1 << 18  # in all directories
_DIRECTORIES = (34665, 34853, 40965, 330)  # tags that point to another directory: EXIF, GPS, interoperability, SubIFDs


def check(data: bytes, what: str) -> None:
    """Raise BadExample if the tags in an encoded image declare far more values than the file holds."""
    if data.startswith(_WITHOUT):
        return
    tiff = data.startswith(_SIGNATURES)
    budget = _MAX_ENTRIES
    for signature in _SIGNATURES:
        start = 0 if tiff and data.startswith(signature) else -1 if tiff else data.find(signature)
        while start >= 0:
            block = memoryview(data)[start:]
            entries, size, numbers = _declared(block, signature[:1] == b"I", b"+" in signature, budget)
            budget -= entries + 16
            if budget < 0 or size > 2 * len(block) + _SLACK or numbers > _MAX_NUMBERS:
                raise BadExample(f"{what} has damaged tags; save it again")
            start = -1 if tiff else data.find(signature, start + 4)


def _declared(block: memoryview, little: bool, big: bool, most: int) -> tuple[int, int, int]:
    """Count the entries of a tag block, up to `most`, the bytes of their values, and the values that are not bytes.

    Values that do not lie in the block are left out, as PIL does.
    """
    order = "<" if little else ">"
    layout, count_format, head = (order + "HHQ8s", "Q", 8) if big else (order + "HHL4s", "H", 4)
    offset_format, length_of = order + ("Q" if big else "L"), struct.calcsize(layout)
    waiting = [struct.unpack_from(offset_format, block, head)[0]] if len(block) >= 2 * head else []
    seen, entries, size, numbers = set(), 0, 0, 0
    while waiting and entries <= most:
        start = waiting.pop()
        if start in seen or start + 8 > len(block):
            continue
        seen.add(start)
        (count,) = struct.unpack_from(order + count_format, block, start)
        start += struct.calcsize(order + count_format)
        count = min(count, (len(block) - start) // length_of)
        entries += count
        if entries > most:
            break
        for tag, kind, number, value in struct.iter_unpack(layout, block[start : start + count * length_of]):
            length = number * _SIZES[kind] if kind < len(_SIZES) else 0
            (at,) = struct.unpack(offset_format, value)
            if tag in _DIRECTORIES:
                waiting.append(at)
            if length > len(value) and at + length <= len(block):
                size += length
                numbers += 0 if kind in _BYTES else number
    return entries, size, numbers
