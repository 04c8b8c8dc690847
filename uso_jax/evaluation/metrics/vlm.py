# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics judged by a vision-language model, by the protocol of their benchmark (`uso_jax.evaluation.protocol`).

Every question is asked and read under two rules. The strict rule asks a question up to three times and fails if no
reply can be read. The official one does what the benchmark's code does. The rule of the run asks; the other one reads
the replies that are there.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from uso_jax.evaluation.gallery import Sample
from uso_jax.evaluation.metrics.base import Metric, Tools
from uso_jax.evaluation.metrics.vlm_images import encoded
from uso_jax.evaluation.protocol import MADE, PROMPT, REFERENCES, STRICT, Attempts, Wording
from uso_jax.evaluation.score_log import Failed, Result, readings
from uso_jax.vlm.client import Turn
from uso_jax.vlm.judges import NoAnswer

_WORKERS = 8  # concurrent questions


@dataclass(frozen=True)
class Asked:
    """A question about an image: its name in the protocol, its references, and values of its placeholders."""

    name: str
    references: Sequence[str]
    values: Mapping[str, str]


Answers = Mapping[str, float]
Stages = Sequence[Sequence[str]]  # keys of questions; those of a stage are asked before the first of them is read


class AsksJudge:
    """Shared by judged metrics: asking and reading."""

    def __init__(self, metric: Metric, tools: Tools):
        self.metric, self.compat, self.protocol = metric, tools.compat, metric.judge
        self.vlm = tools.need("vlm", metric)
        self.wording = tools.prompts or Wording.own(self.protocol)
        self.identity: dict[str, Any] = {
            "judge": self.vlm.name,
            **self.wording.facts(),
            **self.protocol.facts(),
            "compat": tools.compat,
        }

    def __call__(self, samples: Sequence[Sample]) -> list[Result]:
        with ThreadPoolExecutor(_WORKERS) as threads:
            return list(threads.map(self._judge, samples))

    def _judge(self, sample: Sample) -> Result:
        try:
            return self.values(sample)
        except NoAnswer as error:
            return Failed(f"judge: {error}")

    def values(self, sample: Sample) -> Result:
        raise NotImplementedError

    def scored(
        self,
        sample: Sample,
        asked: Mapping[str, Asked],
        stages: Stages,
        figures: Callable[[Answers], dict[str, float]],
    ) -> Result:
        """Return the figures of every round under both rules.

        Args:
          sample: the image.
          asked: the questions, by key.
          stages: their order.
          figures: answers by key -> figures of a round. Official answers can lack keys.
        """
        turns = {key: self.turns(sample, one) for key, one in asked.items()}
        rounds = [self._round(sample, asked, turns, stages, number) for number in range(self.protocol.rounds)]
        unread = next((f"judge: the answer cannot be read: {reply[:120]!r}" for *_, reply in rounds if reply), "")
        strict: Result = Failed(unread) if unread else by_round([figures(answers) for answers, _, _ in rounds])
        rule, given = self.protocol.official, [figures(answers) for _, answers, _ in rounds]
        # Code that asks all questions again stops for good if that never helps.
        official = {} if rule.stop and rule.together and not all(given) else by_round(given)
        return readings(strict, official or Failed(unread or "judge: the benchmark's code cannot read the answer"))

    def _round(
        self,
        sample: Sample,
        asked: Mapping[str, Asked],
        turns: Mapping[str, Sequence[Turn]],
        stages: Stages,
        round_: int,
    ) -> tuple[Answers, Answers, str]:
        """Return the strict and the official answers of a round, and a reply that the strict rule cannot read."""
        replies: dict[tuple[str, int], str] = {}
        lacking: set[str] = set()

        def ask(key: str, number: int) -> str:
            question = self.protocol.questions[asked[key].name]
            parameters = {**self.protocol.parameters, **question.parameters}
            if self.protocol.fresh_seed:
                # Repeatable, and another one for every question and attempt.
                digest = hashlib.sha256(f"{sample.sha256} {asked[key].name} {round_} {number}".encode()).digest()
                parameters["seed"] = int.from_bytes(digest[:4]) >> 1
            replies[key, number] = self.vlm.ask(turns[key], round_=100 * round_ + number, parameters=parameters)
            return replies[key, number]

        def known(key: str, number: int) -> str | None:
            if (key, number) not in replies:
                lacking.add(key)
            return replies.get((key, number))

        readers = {key: self.wording.reader(self.protocol.questions[one.name]) for key, one in asked.items()}
        strict = {key: reader.strict for key, reader in readers.items()}
        official = {key: reader.official for key, reader in readers.items()}
        rule = self.protocol.official
        if self.compat:
            second = attempted(stages, rule, official, ask)
            first = attempted(stages, STRICT, strict, known)
        else:
            first = attempted(stages, STRICT, strict, ask)
            second = attempted(stages, rule, official, known)
            # Where the benchmark's code would have asked again, the strict answers are all there is.
            if lacking and len(second) < len(asked):
                whole = rule.stop and rule.together
                second = first if whole else {key: first[key] for key in lacking if key in first} | second
        last = {key: reply for (key, _), reply in replies.items()}
        if rule.guess:
            second = {key: second.get(key, _guess(one, last[key])) for key, one in asked.items()}
        return first, second, next((last[key] for key in asked if key not in first), "")

    def turns(self, sample: Sample, asked: Asked) -> tuple[Turn, ...]:
        """Return the conversation of a question."""
        references = self.protocol.references
        parts: Mapping[str, Callable[[], list]] = {
            REFERENCES: lambda: [encoded(path, references) for path in asked.references],
            MADE: lambda: [encoded(str(sample.path), self.protocol.made)],
            PROMPT: lambda: [sample.item.prompt],
        }
        text = lambda name: [self.wording.filled(name, asked.values)]
        return tuple(
            Turn(role, tuple(part for name in names for part in (parts[name]() if name in parts else text(name))))
            for role, names in self.protocol.questions[asked.name].turns
        )


def attempted(
    stages: Stages,
    rule: Attempts,
    read: Mapping[str, Callable[[str], float | None]],
    reply: Callable[[str, int], str | None],
) -> dict[str, float]:
    """Return the answers by key that a rule of attempts takes from replies.

    Args:
      stages: keys in the order of asking.
      rule: the rule.
      read: key -> reader.
      reply: (key, attempt) -> the reply, or None if there is none.
    """
    found: dict[str, float] = {}
    for group in [stages] if rule.together else [[[key]] for stage in stages for key in stage]:
        kept: dict[str, float] = {}
        for number in range(rule.most):
            if whole := _attempt(group, number, read, reply, kept) and rule.stop:
                break
        found |= kept if whole or not rule.stop else {}
    return found


def _attempt(group: Stages, number: int, read: Mapping, reply: Callable, kept: dict[str, float]) -> bool:
    """Make one attempt: add what was read to `kept`. Return False at the first reply that cannot be read."""
    for stage in group:
        replies = [(key, reply(key, number)) for key in stage]
        for key, text in replies:
            value = None if text is None else read[key](text)
            if value is None:
                return False
            kept[key] = value
    return True


def by_round(rounds: Sequence[Mapping[str, float]]) -> dict[str, float | list[float]]:
    """Return figure -> its value, or a list of its values by round, NaN where a round has none."""
    names = dict.fromkeys(name for figures in rounds for name in figures)
    if len(rounds) == 1:
        return dict(rounds[0])
    return {name: [figures.get(name, np.nan) for figures in rounds] for name in names}


def _guess(asked: Asked, reply: str) -> float:
    """Return a random whole number from 0 to 10, here a digest, so that runs are repeatable."""
    return float(hashlib.sha256(f"{asked.name} {dict(asked.values)} {reply}".encode()).digest()[0] % 11)


class Judged(AsksJudge):
    """The answers to the questions that the protocol names for an item, as figures."""

    def values(self, sample: Sample) -> Result:
        references, values = self.metric.references(sample.item), {"prompt": sample.item.prompt}
        asked = {key: Asked(name, references, values) for key, name in self.protocol.figures(sample.item).items()}
        return self.scored(sample, asked, [list(asked)], dict)


class Presence(AsksJudge):
    """SconeEval's distinction, from 0 to 10: whether each subject of each reference appears, compared with labels."""

    def values(self, sample: Sample) -> Result:
        item, asked, labels = sample.item, {}, []
        found = zip(self.metric.references(item), item.meta["subject_list"], item.meta["subject_label"], strict=True)
        for path, subjects, wanted in found:
            for subject, label in zip(subjects, wanted, strict=True):
                asked[str(len(asked))] = Asked("presence", [path], {"subject": subject})
                labels.append(bool(label))
        figures = lambda said: (
            distinction([bool(said[key]) for key in asked], labels) if len(said) == len(asked) else {}
        )
        return self.scored(sample, asked, [[key] for key in asked], figures)


def distinction(said: Sequence[bool], labels: Sequence[bool]) -> dict[str, float]:
    """Return accuracy, precision, recall and F1, scaled to 0..10; 0 where undefined."""
    pairs = list(zip(said, labels, strict=True))
    right = sum(a and b for a, b in pairs)
    share = lambda part, whole: 10 * part / whole if whole else 0.0
    return {
        "accuracy": share(sum(a == b for a, b in pairs), len(pairs)),
        "precision": share(right, sum(said)),
        "recall": share(right, sum(labels)),
        "f1": share(2 * right, sum(said) + sum(labels)),
    }
