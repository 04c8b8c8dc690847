# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Step "score": similarity of the style reference and of the content reference to the target, by networks.

Scores are rewards of uso_jax.training.rewards: CSD and DINO for the released models. Mini has no DINO, so its content
reference is compared with the caption instead. Thresholds are applied later, when triplets are selected.
"""

import functools
from typing import Any

import jax
import numpy as np

from uso_jax.common.errors import BadExample, InputError
from uso_jax.curation.config import CurationConfig
from uso_jax.curation.store import Folder, Made
from uso_jax.images import decode
from uso_jax.models.uso import to_float
from uso_jax.models.uso_config import USOConfig
from uso_jax.training import rewards
from uso_jax.training.reward_networks import RewardNetworks


class Scorer:
    """The worker of the step "score". It loads only the networks of its two rewards, with the first triplet."""

    def __init__(self, config: CurationConfig):
        self.config = config.score
        self.names = {"style": self.config.style, "subject": self.config.subject}
        self.reads_captions = rewards.REWARDS[self.config.subject].needs == ("prompt",)
        self.networks = RewardNetworks(self.config.weights, self.names.values())

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that determines the scores: rewards, weight fingerprints and image size."""
        return {"rewards": self.names, "weights": self.networks.fingerprints(), "size": self.config.size}

    def make_shard(self, folder: Folder, shard: int) -> Made:
        """Score one shard. Returns one row per candidate, and no images."""
        captions = folder.rows("captions", shard)
        parts = {step: folder.rows(step, shard) for step in ("stylize", "destylize")}
        rows, waiting = [], []
        for number, row in captions.items():
            failed = [part[number]["failed"] for part in parts.values() if "failed" in part[number]]
            try:
                if failed:
                    raise BadExample(failed[0])
                if self.reads_captions and not row["caption"]:
                    raise BadExample("no caption to compare the content image with")
                places = folder.target(row), *(folder.place(step, number) for step in parts)
                images = [decode.cover(p.decode(), (self.config.size,) * 2) for p in places]
                waiting.append((number, images, row["caption"]))
            except BadExample as error:
                rows.append({"number": number, "failed": str(error)})
            if len(waiting) == self.config.batch_size:
                rows += self._batch(waiting)
                waiting = []
        if waiting:
            rows += self._batch(waiting)
        return sorted(rows, key=lambda row: row["number"]), {}

    def _batch(self, waiting: list[tuple[int, list[decode.Pixels], str]]) -> list[dict]:
        filled = waiting + [waiting[-1]] * (self.config.batch_size - len(waiting))
        target, style, content = (np.stack([images[i] for _, images, _ in filled]) for i in range(3))
        batch = {"target": target, "style": style[:, None], "content": content}
        valid = np.ones(len(filled), bool)
        batch |= {"style_valid": valid[:, None], "content_valid": valid}
        if self.reads_captions:
            tokens = [self._base.tokenize(caption) for _, _, caption in filled]
            batch |= {name: np.stack([one[name] for one in tokens]) for name in tokens[0]}
        found = jax.device_get(self._score(self.networks.params, batch))
        of = lambda i: {name: round(float(found[reward][i]), 5) for name, reward in self.names.items()}
        return [{"number": number} | of(i) for i, (number, _, _) in enumerate(waiting)]

    @functools.cached_property
    def _base(self) -> USOConfig:
        """The system whose tokenizers read captions."""
        config = self.networks.base
        if missing := set(rewards.REWARDS[self.config.subject].tokens) - config.token_counts().keys():
            raise InputError(
                f"config.curation.score: {self.config.subject} reads {' and '.join(missing)}, which the base model of"
                f" {self.networks.directory} does not have; choose another subject reward"
            )
        return config

    @functools.cached_property
    def _score(self):
        system = self.networks.system

        def score(params, batch):
            found = {}
            for name, shown in zip(
                self.names.values(), ("target", "content" if self.reads_captions else "target"), strict=True
            ):
                described = rewards.describe(system, params, [name], batch)
                found |= rewards.score(system, params, to_float(batch[shown]), described)
            return found

        return jax.jit(score)
