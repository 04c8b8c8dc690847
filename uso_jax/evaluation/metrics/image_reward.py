# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""ImageReward (arXiv 2304.05977) as a metric: predicted human preference for an image given its prompt."""

from collections.abc import Sequence

import numpy as np

from uso_jax.evaluation.gallery import Sample
from uso_jax.evaluation.metrics.base import Metric, Tools
from uso_jax.evaluation.score_log import Result
from uso_jax.models.image_reward import MAX_TOKENS
from uso_jax.models.text import token_ids

_COMPONENT = "image_reward"
_TOKENIZER = "google-bert/bert-base-uncased"


class Reward:
    """The reward of an image for the first 35 tokens of its prompt; higher is better."""

    def __init__(self, metric: Metric, tools: Tools):
        self.metric = metric
        self.networks = tools.need("networks", metric)
        self.identity = self.networks.identity_of(_COMPONENT)
        self.tokenizer = self.networks.tokenizer(_COMPONENT, _TOKENIZER)

    def __call__(self, samples: Sequence[Sample]) -> list[Result]:
        ids = np.stack([token_ids(self.tokenizer, sample.item.prompt, MAX_TOKENS) for sample in samples])
        seen = self.networks.sees(_COMPONENT)
        found = []
        for start in range(0, len(samples), self.networks.batch_size):
            part = slice(start, start + self.networks.batch_size)
            pixels = np.stack([seen.host(sample.pixels) for sample in samples[part]])
            batch = {"pixels": pixels, "input_ids": ids[part], "valid": ids[part] != 0}
            look = lambda module, x: {"reward": module(**x)}
            found += list(self.networks.run(_COMPONENT, "reward", look, batch)["reward"])
        return [{self.metric.name: float(value)} for value in found]
