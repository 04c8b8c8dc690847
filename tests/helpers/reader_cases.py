# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""For every reader: a writer of its layout, options, and the triplets that must be read."""

import schemas

from uso_jax.data.sources import open_source

C = "missing caption"
S = "score is not a number from 0 to 4"
# name: (writer, options, triplets as (prompt, content, styles, target), with counts of skipped rows by reason)
CASES = {
    "json": (
        schemas.own_json,
        {},
        [
            ("one", "a", "b", "c"),
            ("", "a", "b", "d"),
            ("three", "", "be", "c"),
            ("four", "", "b", "f"),
            ("five", "", "", "f"),
        ],
        {},
    ),
    "uno": (
        schemas.uno,
        {},
        [("one", "a", "", "c"), ("two", "b", "", "c"), ("four", "a", "", "b"), ("five", "", "", "b")],
        {"more than one subject": 1},
    ),
    "uso_eval": (
        schemas.uso_eval,
        {"pictures": "made"},
        [
            ("one", "a", "", "c"),
            ("", "a", "b", "d"),
            ("three", "", "b", "e"),
            ("four", "", "ab", "f"),
            ("five", "", "", "c"),
        ],
        {},
    ),
    "uno_1m": (
        schemas.uno_1m,
        {},
        [("shows b", "a", "", "b"), ("shows a", "b", "", "a"), ("shows f", "e", "", "f"), ("shows e", "f", "", "e")],
        {"below 3.5": 1, S: 4, C: 1, "two image paths": 2},
    ),
    "subjects200k": (
        schemas.subjects200k,
        {},
        [("right", "a", "", "b"), ("left", "b", "", "a"), ("right", "c", "", "d"), ("left", "d", "", "c")],
        {"quality below 5": 1, "invalid desc": 1, "no quality assessment": 1},
    ),
    "omnistyle": (
        schemas.omnistyle,
        {},
        [("", "a", "b", "c"), ("", "a", "b", "f"), ("", "d", "b", "a"), ("", "e", "f", "d")],
        {"not CONTENT&&STYLE": 2, "style image is missing": 1},
    ),
    "syncd": (
        schemas.syncd,
        {"min_aesthetics": 5, "min_dino": 0.5},
        [("shows b", "a", "", "b"), ("shows a", "b", "", "a")],
        {"passes the score": 1, "DINO scores": 2, "prompts do not match": 1},
    ),
    "stylebooth": (
        schemas.stylebooth,
        {},
        [
            ("turn it into Pixel Art", "a", "", "c"),
            ("turn it into Pixel Art", "b", "", "d"),
            ("turn it into Ink", "a", "", "e"),
        ],
        {"incomplete row": 1, "an image is missing": 1},
    ),
    "webdataset": (
        schemas.webdataset,
        {},
        [("zero", "", "", "f"), ("one", "a", "b", "c"), ("two", "a", "b", "d"), ("three", "", "b", "e")],
        {"no image target": 1, "neither a prompt": 1},
    ),
    "folder": (
        schemas.plain_folder,
        {},
        [("shows c", "a", "be", "c"), ("", "a", "", "d"), ("", "b", "", "e"), ("shows f", "", "b", "f")],
        {"neither a prompt": 1},
    ),
    "parquet": (
        schemas.parquet,
        {},
        [
            ("one", "a", "b", "c"),
            ("", "a", "", "d"),
            ("three", "", "b", "e"),
            ("four", "", "", "f"),
            ("", "b", "", "c"),
        ],
        {},
    ),
}


def read(name, path, **options):
    return open_source({"name": name, "path": str(path)} | options)
