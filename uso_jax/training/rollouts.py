# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Roll-outs: the images that a stage with a policy trains on, made by its old policy, a round at a time.

A round takes `prompts` examples from the data, generates `group` images for each, scores them all and gives out batches
of them. Everything follows from the seed, the round, the old policy and the position of the data, so a run that is
killed anywhere continues with the same images. Scores that are on disk are not asked for again: an endpoint may answer
differently the second time. Shapes: n images of a round and process, b batch.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from uso_jax.common import progress
from uso_jax.data.iterator import StreamIterator
from uso_jax.data.rollout_store import Request, RolloutStore
from uso_jax.models.uso import USO, Batch, to_float
from uso_jax.parallel import sharding
from uso_jax.params import Params
from uso_jax.training import black_boxes, rewards
from uso_jax.training.advantages import advantages
from uso_jax.training.black_boxes import Wanted
from uso_jax.training.objectives import POLICIES, flow_matching
from uso_jax.training.policy import ADVANTAGES, COUNTED
from uso_jax.training.questions import QUESTIONS
from uso_jax.training.stage import StageConfig
from uso_jax.training.step import TrainState

Arrays = dict[str, np.ndarray]
_SCORE = "score/"  # before the name of a score, in what the device returns


class Rollouts:
    """The batches of a stage with a policy, resumable at any batch.

    Args:
      system: the model.
      stage: a stage with a policy.
      mesh: devices.
      data: examples, `prompts` a batch over all processes, with rows.
      seed: of the stage.
      folder: where rounds are kept.
    """

    def __init__(
        self,
        system: USO,
        stage: StageConfig,
        mesh: jax.sharding.Mesh,
        data: StreamIterator,
        seed: int,
        folder: pathlib.Path,
    ):
        self.system, self.stage, self.mesh, self.data, self.seed = system, stage, mesh, data, seed
        self.store = RolloutStore(folder)
        self.round, self.used = 0, 0
        self.figures: dict[str, float] = {}  # of the round that began with the last batch; {} if none did
        self._start = data.get_state()
        self._made: Arrays | None = None
        placed = jax.sharding.NamedSharding(mesh, sharding.BATCH)
        self._sample = jax.jit(make_roll_out(system, stage), out_shardings=placed)
        self._ask = None
        if QUESTIONS.keys() & stage.policy.black_boxes.keys():
            from uso_jax.training.vlm_scores import VlmScores  # needs an extra

            self._ask = VlmScores.opened(stage, folder).score

    def batch(self, state: TrainState, frozen: Params) -> dict[str, jax.Array]:
        """Return the next batch on the devices; the first of a round is preceded by the roll-out."""
        self.figures = {}
        if self._made is None:
            with progress.phase(f"generating the images of round {self.round}"):
                self._made = self._make({**frozen, **state.old})
        n = len(self._made[ADVANTAGES])
        size = self.stage.batch_size * n // self.stage.policy.images  # this process's part
        epoch, position = divmod(self.used, n // size)
        order = np.random.default_rng([self.seed, self.round, epoch]).permutation(n)
        chosen = order[position * size : (position + 1) * size]
        self.used += 1
        found = sharding.global_batch(self.mesh, {name: value[chosen] for name, value in self._made.items()})
        if self.used == self.stage.policy.steps_per_round(self.stage.batch_size):
            self.round, self.used, self._made, self._start = self.round + 1, 0, None, self.data.get_state()
        return found

    def get_state(self) -> dict[str, Any]:
        """Return the position as a JSON-serialisable dict."""
        return {"round": self.round, "used": self.used, "data": self._start}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue at a position; the images of its round are made again."""
        self.round, self.used, self._start, self._made = state["round"], state["used"], state["data"], None
        self.data.set_state(state["data"])

    def close(self) -> None:
        """End reading."""
        self.data.close()

    # ------------------------------------------------------------------------------------------------ one round

    def _make(self, params: Params) -> Arrays:
        """Generate and score the images of a round; return this process's part of its batches."""
        policy = self.stage.policy
        examples = {name: np.repeat(value, policy.group, axis=0) for name, value in next(self.data).items()}
        rows = np.repeat(self.data.rows, policy.group, axis=0)
        n, made = len(rows), self._generate(params, examples)
        images = made["images"]
        kept = self.store.read(self.round, images)
        found = self._scores(images, rows, made) if kept is None else kept
        gathered = _gather({name: value.reshape(-1, policy.group) for name, value in found.items()})
        worth, counted = advantages(policy, gathered)
        own = _own_rows(n // policy.group)
        worth, counted = worth[own].reshape(-1), counted[own].reshape(-1)
        if kept is None:
            requests = self._requests(examples, rows) if policy.keep_images else []
            self.store.write(self.round, images, rows, found, worth, requests)
        self._tell(gathered, counted)
        float32 = lambda values: values.astype(np.float32)
        needed = {name: value for name, value in made.items() if is_for_training(name)}
        return examples | needed | {ADVANTAGES: float32(worth), COUNTED: float32(counted)}

    def _generate(self, params: Params, examples: Arrays) -> Arrays:
        """Generate an image for every row; return images, scores by networks and what the loss needs."""
        policy, n = self.stage.policy, len(examples["style_valid"])
        size = (policy.sample_batch or self.stage.batch_size) * n // policy.images
        key = jax.random.fold_in(jax.random.key(self.seed), self.round)
        parts = []
        for number in progress.bar(range(n // size), "generating images", unit="batch", leave=False):
            part = {name: value[number * size : (number + 1) * size] for name, value in examples.items()}
            batch = sharding.global_batch(self.mesh, part)
            parts.append(_local(self._sample(params, batch, jax.random.fold_in(key, number))))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _scores(self, images: np.ndarray, rows: np.ndarray, made: Arrays) -> Arrays:
        """Return every score of every image."""
        found = {name: made[_SCORE + name] for name in self.stage.policy.weights}
        others = self.stage.policy.black_boxes
        wanted = [self._wanted(*row) for row in rows.tolist()] if others else []
        for name in others:
            with progress.phase(f"scoring by {name}"):
                found[name] = black_boxes.score(name, images, wanted, self._ask)
        return found

    def _requests(self, examples: Arrays, rows: np.ndarray) -> list[Request]:
        """Return what each group was generated for; of precomputed examples nothing is known."""
        every = self.stage.policy.group
        if "txt" in examples:
            return [Request() for _ in rows[::every]]
        found = []
        for i, row in enumerate(rows[::every].tolist()):
            example = {name: value[i * every] for name, value in examples.items()}
            has = {name: name in example and name in self.stage.conditions for name in ("content", "style")}
            content = example["content"] if has["content"] and example["content_valid"] else None
            styles = list(example["style"][example["style_valid"]]) if has["style"] else []
            found.append(Request(self._wanted(*row).triplet.prompt, content, styles))
        return found

    def _wanted(self, source: int, index: int) -> Wanted:
        opened = self.data.stream.sources[source]
        return Wanted(opened[index], opened)

    def _tell(self, scores: Arrays, counted: np.ndarray) -> None:
        weights = self.stage.policy.scores
        self.figures = {
            f"reward_{name}": float(np.nanmean(value)) for name, value in scores.items() if np.isfinite(value).any()
        }
        self.figures["reward"] = sum(weights[name] * self.figures.get(f"reward_{name}", 0.0) for name in weights)
        self.figures["scored"] = float(np.mean(counted))


def make_roll_out(system: USO, stage: StageConfig) -> Callable[[Params, Batch, jax.Array], dict[str, jax.Array]]:
    """Return the program (parameters, examples, key) -> images, scores by networks, and what the loss needs."""
    policy, names = stage.policy, tuple(stage.policy.weights)

    def roll_out(params: Params, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        inputs = flow_matching.encode_conditions(params, system, stage, batch)
        tokens, needed = POLICIES[policy.method].roll_out(params, system, stage, inputs, key)
        images = system.decode_tokens(params, tokens, *stage.target_size)
        described = rewards.describe(system, params, names, batch)
        scores = rewards.score(system, params, to_float(images), described)
        has = rewards.valid(system, names, batch)
        found = {_SCORE + name: jnp.where(has[name], value, jnp.nan) for name, value in scores.items()}
        return {"images": images} | needed | found

    return roll_out


def is_for_training(name: str) -> bool:
    """Return whether a result of a roll-out belongs into the batches that the stage trains on."""
    return name != "images" and not name.startswith(_SCORE)


def _local(arrays: Mapping[str, jax.Array]) -> Arrays:
    """Return this process's rows of arrays that are split by rows, in their order."""
    found = {}
    for name, array in arrays.items():
        parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
        found[name] = np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])
    return found


def _gather(scores: Arrays) -> Arrays:
    """Return the scores of all processes, whose parts follow each other."""
    if jax.process_count() == 1:
        return scores
    return {name: np.concatenate(list(multihost_utils.process_allgather(value))) for name, value in scores.items()}


def _own_rows(count: int) -> slice:
    """Return which of the gathered groups are this process's."""
    first = jax.process_index() * count
    return slice(first, first + count)
