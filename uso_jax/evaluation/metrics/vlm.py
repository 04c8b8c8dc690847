# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics judged by a vision-language model: instruction following, subject preservation, quality.

Sources: OmniContext (arXiv 2506.18871), SconeEval (2512.12675), MICo-Bench (2512.07348), DreamBench++ (2406.16855).
By default, a question whose answer cannot be parsed is asked up to three times and then fails. Each class documents
what --compat does instead.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from uso_jax.evaluation.gallery import Sample, pixels
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.metrics.base import Metric, Tools
from uso_jax.evaluation.metrics.vlm_answers import read_pair, read_score, read_yes
from uso_jax.evaluation.metrics.vlm_prompts import TEXTS
from uso_jax.evaluation.score_log import Failed, Result
from uso_jax.vlm.judges import NoAnswer

T = TypeVar("T")
TRIES = 3
_WORKERS = 8  # concurrent questions
_MOST = 1024 * 1024  # maximum pixels of a reference


class _Judged:
    """Shared by the classes below: asking, parsing, retrying."""

    texts: tuple[str, ...] = ()
    max_tokens, temperature = 1400, None

    def __init__(self, metric: Metric, tools: Tools):
        self.metric, self.compat = metric, tools.compat
        self.vlm = tools.need("vlm", metric)
        self.tools, self.rounds = tools, metric.options.get("rounds", 1)
        self.text = {name: tools.prompts.get(name, TEXTS[name]) for name in self.texts}
        self.identity: dict[str, Any] = {
            "judge": self.vlm.name,
            "prompts": hashlib.sha256(repr(sorted(self.text.items())).encode()).hexdigest()[:12],
            "prompts_of": "the user" if any(name in tools.prompts for name in self.texts) else "this project",
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

    def asked(
        self,
        images: Sequence[bytes],
        prompt: str,
        read: Callable[[str], T | None],
        *,
        round_: int = 0,
        tries: int = TRIES,
    ) -> T:
        """Ask until `read` can parse the answer; each try is a separate round in the cache.

        Raises:
          NoAnswer: no answer could be parsed, or the judge has none.
        """
        options = dict(max_tokens=self.max_tokens, temperature=self.temperature)
        for number in range(tries):
            reply = self.vlm.ask(images, prompt, round_=100 * round_ + number, **options)
            if (found := read(reply)) is not None:
                return found
        raise NoAnswer(f"the answer cannot be read: {reply[:120]!r}")


class Instruction(_Judged):
    """OmniContext's and SconeEval's scores from 0 to 10: "pf" (prompt following) and "sc" (subject consistency).

    Items whose subset or case type contains "scene" use the rubric with the scene. With `options["labelled"]`, only
    subjects with label 1 count. --compat repeats OmniContext's script: the last of three rounds counts, and an answer
    that cannot be parsed becomes a random number (here a digest, so that runs are repeatable).
    """

    texts = ("following", "following_scene", "consistency", "consistency_scene", "labelled", "labelled_scene")

    def values(self, sample: Sample) -> Result:
        item = sample.item
        scene = "_scene" if "scene" in f"{item.subset} {item.meta.get('case_type', '')}" else ""
        labelled = self.metric.options.get("labelled")
        subjects = ", ".join(labelled_subjects(item)) if labelled else ""
        names = {"pf": f"following{scene}", "sc": f"{'labelled' if labelled else 'consistency'}{scene}"}
        images = [*(reference(path) for path in self.metric.references(item)), made(sample)]
        prompt = lambda text: text.replace("{prompt}", item.prompt).replace("{subjects}", subjects)
        return {
            figure: float(np.mean([self._score(images, prompt(self.text[name]), r) for r in range(self.rounds)]))
            for figure, name in names.items()
        }

    def _score(self, images: Sequence[bytes], prompt: str, round_: int) -> int:
        if not (self.compat and self.metric.options.get("random_on_failure")):
            return self.asked(images, prompt, read_score, round_=round_)
        kept = None
        for number in range(TRIES):
            reply = self.vlm.ask(images, prompt, round_=100 * round_ + number, max_tokens=self.max_tokens)
            kept = read_score(reply)
            if kept is None:
                kept = hashlib.sha256((prompt + reply).encode()).digest()[0] % 11
        return kept


class Presence(_Judged):
    """SconeEval's distinction, from 0 to 10: whether each subject of each reference appears, compared with labels."""

    texts = ("presence",)

    def values(self, sample: Sample) -> Result:
        item, said, labels = sample.item, [], []
        found = zip(self.metric.references(item), item.meta["subject_list"], item.meta["subject_label"], strict=True)
        for path, subjects, wanted in found:
            for subject, label in zip(subjects, wanted, strict=True):
                prompt, images = self.text["presence"].replace("{subject}", subject), [reference(path), made(sample)]
                said.append([self.asked(images, prompt, read_yes, round_=r) for r in range(self.rounds)])
                labels.append(bool(label))
        rounds = [distinction(list(answers), labels) for answers in zip(*said, strict=True)]
        return {name: float(np.mean([values[name] for values in rounds])) for name in rounds[0]}


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


class VieScore(_Judged):
    """MICo-Bench's "sc" and "pq", each the geometric mean of two numbers from 0 to 10.

    The judge sees the composed reference (the target) and the image for sc, and the image alone for pq. With --compat,
    an answer that cannot be parsed is not retried.
    """

    texts = ("semantics", "quality")
    temperature = 0.0

    def values(self, sample: Sample) -> Result:
        prompt, tries = self.text["semantics"].replace("{prompt}", sample.item.prompt), 1 if self.compat else TRIES
        first, image = [reference(path) for path in self.metric.references(sample.item)], made(sample)
        sc = self.asked([*first, image], prompt, read_pair, tries=tries)
        pq = self.asked([image], self.text["quality"], read_pair, tries=tries)
        return {"sc": float(np.sqrt(sc[0] * sc[1])), "pq": float(np.sqrt(pq[0] * pq[1]))}


class IdentityWeight(_Judged):
    """MICo-Bench's "weight": how much of each source image appears, from 0 to 1, averaged over sources.

    A source with a person (`meta["human_indices"]`) is weighted by the best cosine between its largest face and the
    image's faces. Any other source is weighted by the judge's yes or no; an unclear answer counts as no. With several
    people, a source without a detected face makes the weight 0. With --compat, an image without embeddings has weight
    1, as in the published script.
    """

    texts = ("source",)
    temperature, max_tokens = 0.0, 16

    def __init__(self, metric: Metric, tools: Tools):
        super().__init__(metric, tools)
        self.identity["faces"] = None if tools.faces is None else tools.faces.identity

    def values(self, sample: Sample) -> Result:
        item, weights = sample.item, []
        humans = set(item.meta.get("human_indices") or ())
        for number, path in enumerate(item.content_refs):
            if number not in humans:
                images = [reference(path), made(sample)]
                reply = self.vlm.ask(images, self.text["source"], max_tokens=self.max_tokens, temperature=0.0)
                weights.append(1.0 if read_yes(reply) else 0.0)
                continue
            if self.tools.faces is None:
                if self.compat:
                    return {"weight": 1.0}
                return Failed("faces: no embeddings; pass them with --faces")
            source, seen = (self.tools.faces.faces_in(file) for file in (path, str(sample.path)))
            if source is None or seen is None:
                return {"weight": 1.0} if self.compat else Failed(f"faces: no embeddings of {sample.path} or {path}")
            if not len(source) and len(humans) > 1:
                return {"weight": 0.0}
            weights.append(face_weight(float(np.max(source[0] @ seen.T))) if len(source) and len(seen) else 0.0)
        return {"weight": float(np.mean(weights))}


def face_weight(cosine: float) -> float:
    """Return MICo-Bench's weight of a face from its cosine with the source's."""
    return next(
        (weight for least, weight in ((0.45, 1.0), (0.30, 0.7), (0.15, 0.5), (0.05, 0.2)) if cosine >= least), 0.0
    )


class Scales(_Judged):
    """DreamBench++'s "cp" (concept preservation) and "pf" (prompt following), rated from 0 to 4 and scaled to 0..1."""

    texts = ("preservation", "alignment")

    def values(self, sample: Sample) -> Result:
        item, read = sample.item, lambda reply: read_score(reply, 4)
        text = self.text["preservation"].replace("{what}", "style" if item.subset == "style" else "subject")
        kept = self.asked([reference(self.metric.references(item)[0]), made(sample)], text, read)
        follows = self.asked([made(sample)], self.text["alignment"].replace("{prompt}", item.prompt), read)
        return {"cp": kept / 4, "pf": follows / 4}


def labelled_subjects(item: EvalItem) -> list[str]:
    """Return the subjects that an item of SconeEval asks for."""
    pairs = zip(item.meta["subject_list"], item.meta["subject_label"], strict=True)
    return [subject for names, labels in pairs for subject, label in zip(names, labels, strict=True) if label]


def reference(path: str) -> bytes:
    """Return a reference as JPEG for the judge: at most 1024 x 1024 pixels in total, sides multiples of 16."""
    image = Image.fromarray(pixels(path))
    scale = min(1.0, (_MOST / (image.width * image.height)) ** 0.5)
    size = tuple(max(16, int(side * scale) // 16 * 16) for side in image.size)
    return _jpeg(image if size == image.size else image.resize(size, Image.Resampling.LANCZOS))


def made(sample: Sample) -> bytes:
    """Return a generated image as JPEG for the judge, at its full size."""
    return _jpeg(Image.fromarray(sample.pixels))


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
