# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The experts: from a stylised image back to a style reference and to a de-stylised content reference.

Source: arXiv 2508.18966, section 3.2. The curated image is the target; the stylising expert draws another subject in
its style, the de-stylising one the same subject as a photograph, with the layout preserved or shifted.
"""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from uso_jax import mini, weights
from uso_jax.common.errors import BadExample, InputError
from uso_jax.curation.config import CurationConfig, plain
from uso_jax.curation.store import Folder, Made, Row
from uso_jax.inference.pipeline import USOPipeline
from uso_jax.models.components import ADAPTERS, folders
from uso_jax.weights import pretrained

_NETWORKS = {*folders(lambda row: row.quantizable or row.encodes), *ADAPTERS}  # that images are generated with


class Expert:
    """One of "stylize" and "destylize"; its weights are loaded when the first image is made."""

    def __init__(self, name: str, config: CurationConfig):
        self.name, self.seed, self.config = name, config.seed, getattr(config, name)
        if not self.config.weights:
            raise InputError(f"set --config.curation.{name}.weights to the weights directory of the expert.")
        self._number = ("stylize", "destylize").index(name)

    @property
    def settings(self) -> dict[str, Any]:
        """Identify how images are made."""
        directory = mini.directory(self.config.weights)
        have = [name for name in weights.components(directory) if name in _NETWORKS]
        found = plain(self.config) | {"weights": {name: pretrained.fingerprint(directory / name) for name in have}}
        del found["batch_size"]
        return found | {"seed": self.seed}

    def make_shard(self, folder: Folder, shard: int) -> Made:
        """Make the images of one shard."""
        captions = folder.rows("captions", shard)
        rows, images, waiting = [], {}, []
        for number, row in captions.items():
            prompt = self._prompt(row, captions)
            if prompt is None:
                reason = row.get("failed") or "there is no caption for its prompt"
                rows.append({"number": number, "failed": reason})
                continue
            waiting.append((number, row, prompt))
        for start in range(0, len(waiting), self.config.batch_size):
            for made, image in self._batch(folder, waiting[start : start + self.config.batch_size]):
                rows.append(made)
                if image is not None:
                    images[made["number"]] = image
        return sorted(rows, key=lambda row: row["number"]), images

    def _prompt(self, row: Row, captions: dict[int, Row]) -> str | None:
        """Fill in the prompt of a candidate; None if what it needs is not known."""
        if "key" not in row:
            return None
        template, values = self.config.prompts[row["layout"]], {}
        if "{caption}" in template or row["layout"] == "shifted":
            if not row["caption"]:
                return None
            values["caption"] = row["caption"]
        if "{subject}" in template:
            # Another image's: of this shard, so that a shard depends on nothing else.
            known = {one["caption"] for one in captions.values() if one.get("caption")}
            others = sorted(known - {row["caption"]}) if not self.config.subjects else list(self.config.subjects)
            if not others:
                return None
            rng = np.random.default_rng([self.seed, self._number, row["number"]])
            values["subject"] = others[rng.integers(len(others))]
        try:
            return template.format(**values)
        except (LookupError, ValueError) as error:
            raise InputError(
                f"config.curation.{self.name}.prompts: {template!r} may name {{caption}} and {{subject}} only ({error})"
            ) from error

    def _batch(self, folder: Folder, waiting: list[tuple[int, Row, str]]) -> Iterator[tuple[Row, Any]]:
        requests, asked = [], []
        for number, row, prompt in waiting:
            seed = int(np.random.default_rng([self.seed, self._number, number, 1]).integers(2**32))
            try:
                image = folder.target(row).decode()
            except BadExample as error:
                yield {"number": number, "failed": f"unreadable: {error}"}, None
                continue
            shown = {"styles": [image]} if self.config.reference == "style" else {"content": image}
            requests.append(self._pipe.request(prompt=prompt, seed=seed, **shown, **self.config.settings))
            asked.append({"number": number, "prompt": prompt, "seed": seed})
        if requests:
            # Filled up, so that one program serves all batches.
            filled = requests + [requests[-1]] * (self.config.batch_size - len(requests))
            made = self._pipe.generate(filled, batch_size=self.config.batch_size).images
            yield from zip(asked, map(np.asarray, made), strict=False)

    @functools.cached_property
    def _pipe(self) -> USOPipeline:
        return USOPipeline.from_weights(self.config.weights, dtype=self.config.dtype or None)
