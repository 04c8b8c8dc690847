# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Steps "stylize" and "destylize": generate a style reference and a de-stylised content reference of a stylised image.

Source: arXiv 2508.18966, section 3.2. The stylised image is the target. The stylising expert generates another subject
in its style; the de-stylising expert generates the same subject as a photograph, with a preserved or shifted layout.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from uso_jax import mini, weights
from uso_jax.common.errors import BadExample, InputError
from uso_jax.curation.config import CurationConfig
from uso_jax.curation.store import Folder, Made, Row
from uso_jax.inference.options import GenerationOptions, check_options
from uso_jax.inference.pipeline import USOPipeline
from uso_jax.models.components import ADAPTERS, folders
from uso_jax.weights import pretrained

_NETWORKS = {*folders(lambda row: row.quantizable or row.encodes), *ADAPTERS}  # that images are generated with


class Expert:
    """The worker of one of the steps "stylize" and "destylize". Its weights are loaded with the first image.

    Raises:
      InputError: the configuration names no weights for this expert.
    """

    def __init__(self, name: str, config: CurationConfig):
        self.name, self.seed, self.config = name, config.seed, getattr(config, name)
        if not self.config.weights:
            raise InputError(f"set --config.curation.{name}.weights to the weights directory of the {name} expert.")
        self._number = ("stylize", "destylize").index(name)
        where = f"config.curation.{name}.settings: "
        self._options = GenerationOptions(**check_options(self.config.settings, where))

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that determines the images: configuration, seed and weight fingerprints."""
        directory = mini.directory(self.config.weights)
        have = [name for name in weights.components(directory) if name in _NETWORKS]
        found = dataclasses.asdict(self.config) | {
            "weights": {name: pretrained.fingerprint(directory / name) for name in have}
        }
        del found["batch_size"]
        return found | {"seed": self.seed}

    def make_shard(self, folder: Folder, shard: int) -> Made:
        """Generate the images of one shard. Returns one row per candidate, and images by candidate number."""
        captions = folder.rows("captions", shard)
        rows, images, waiting = [], {}, []
        for number, row in captions.items():
            prompt = self._prompt(row, captions)
            if prompt is None:
                reason = row.get("failed") or "no caption for the prompt"
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
        """Return the prompt of a candidate, or None if its template needs a caption or subject that is missing."""
        if "key" not in row:
            return None
        template, values = self.config.prompts[row["layout"]], {}
        if "{caption}" in template or row["layout"] == "shifted":
            if not row["caption"]:
                return None
            values["caption"] = row["caption"]
        if "{subject}" in template:
            # The caption of another image in this shard, so that shards are independent.
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
                f"config.curation.{self.name}.prompts: {template!r} may contain only {{caption}} and {{subject}}"
                f" ({error})"
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
            reference = {"styles" if self.config.reference == "style" else "contents": [image]}
            options = dataclasses.replace(self._options, seed=seed)
            requests.append(self._pipe.request(prompt, **reference, options=options))
            asked.append({"number": number, "prompt": prompt, "seed": seed})
        if requests:
            # Padded to a full batch, so that all batches use one compiled program.
            filled = requests + [requests[-1]] * (self.config.batch_size - len(requests))
            made = self._pipe.generate(filled, batch_size=self.config.batch_size).images
            yield from zip(asked, map(np.asarray, made), strict=False)

    @functools.cached_property
    def _pipe(self) -> USOPipeline:
        return USOPipeline.from_weights(self.config.weights, dtype=self.config.dtype or None)
