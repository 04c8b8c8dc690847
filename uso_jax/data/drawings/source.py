# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Procedural triplets, which need no files or network and have exact ground truth for content, style and layout.

    content = (subject s, its plain look)    style = (another subject t, style B)    target = (subject s, style B)

Example i of a split depends only on (seed, split, i), so any process can draw any example.
The splits (see `Subject.heldout` and `look`):

    train              seen subjects,      seen families,      seen colours and textures
    heldout_subjects   held-out subjects,  seen families,      seen colours and textures
    heldout_styles     seen subjects,      seen families,      held-out colours and textures
    heldout_families   seen subjects,      held-out families,  seen colours and textures
    heldout            held-out subjects,  seen families,      held-out colours and textures

The subject of a style image is always a seen one. `meta` of a triplet holds, for the target, the names of "subject" and
"family", "pose" (a Pose) and "style" (a DrawingStyle), the same for the other images, and "labels", the integer labels
of classifiers: indices into SUBJECTS, STYLES and FAMILIES. Counterfactuals are exact:

    render(SUBJECTS[other], meta["pose"], meta["style"], size)              another subject in the same style
    render(SUBJECTS[meta["subject"]], meta["pose"], other_style, size)      the same subject in another style
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from uso_jax.common.errors import InputError
from uso_jax.data.drawings import counterfactual, sampling
from uso_jax.data.drawings.canvas import SCALE, TURN, Pose
from uso_jax.data.drawings.drawn_source import DrawnSource
from uso_jax.data.drawings.look import FAMILIES, HELDOUT_FAMILIES, PLAIN, STYLE_NAMES, DrawingStyle
from uso_jax.data.drawings.styles import STYLES, render
from uso_jax.data.drawings.subjects import SUBJECTS, subject_names
from uso_jax.data.triplet import TASK_CONDITIONS, Triplet

NUMBERS = {"subject": list(SUBJECTS), "style": list(STYLES), "family": list(FAMILIES)}
SENTENCES = ("{}", "a picture of {}", "a drawing of {}", "here is {}", "{} in another place")
CAPTIONS = ("target", "style", "style_image")
STILL = SENTENCES[:-1]  # sentences that hold where the layout is preserved


class ProceduralSource(DrawnSource):
    """A random-access source of `length` drawn triplets.

    Args:
      split: one of SPLITS.
      seed: of all random choices.
      size: side of the images in pixels.
      length: number of triplets.
      tasks: sampling weights of "style_subject", "subject", "style" and "text"; omitted tasks do not occur.
      preserved: share of examples with a content image whose target keeps its pose.
      empty_prompt: share of style_subject examples with preserved layout that have the empty prompt.
      style_words: probability that the caption also names the style ("a star, halftone style, blue on yellow").
        Subject examples with a styled target always name it, since nothing else specifies the style.
      place_words: probability that the caption of a shifted layout also states position and size of the subject.
      sentences: probability that a caption of a preserved layout, or of a text example, is a sentence, as captions of
        shifted layouts always are, and not only the phrase.
      subject_words: probability that the caption names a subject that a content image shows; otherwise it says "this".
      captions: what prompts describe: the "target", the "style" alone ("this, halftone style, blue on yellow"), or the
        whole "style_image" ("a star, halftone style, blue on yellow").
      plain: share of subject and text examples whose target has the plain look.
      same_look: share of subject examples whose target has exactly the content's look. If the layout is preserved too,
        the target is a copy of the content.
      num_styles: style images per example.
      scale, turn: ranges of the poses, see `Pose.draw`.
      subjects, families, styles: restrict the drawings; None means all of the split. Held-out ones stay held out.

    Raises:
      InputError: an argument is invalid, or the restrictions leave nothing to draw.
    """

    def __init__(
        self,
        *,
        split: str = "train",
        seed: int = 0,
        size: int = 32,
        length: int = 1_000_000,
        tasks: Mapping[str, float | int] | None = None,
        preserved: float | int = 0.5,
        empty_prompt: float | int = 0.5,
        style_words: float | int = 0.0,
        place_words: float | int = 0.0,
        sentences: float | int = 0.0,
        subject_words: float | int = 1.0,
        captions: str = "target",
        plain: float | int = 0.3,
        same_look: float | int = 0.0,
        num_styles: int = 1,
        scale: Sequence[float | int] = SCALE,
        turn: float | int = TURN,
        subjects: Sequence[str] | None = None,
        families: Sequence[str] | None = None,
        styles: Sequence[str] | None = None,
    ):
        shares = {"preserved": preserved, "empty_prompt": empty_prompt, "style_words": style_words}
        shares |= {"place_words": place_words, "sentences": sentences, "subject_words": subject_words}
        shares |= {"plain": plain, "same_look": same_look}
        super().__init__(
            "procedural",
            split=split,
            seed=seed,
            size=size,
            length=length,
            num_styles=num_styles,
            tasks=tasks,
            shares=shares,
        )
        self.preserved, self.empty_prompt, self.plain, self.same_look = preserved, empty_prompt, plain, same_look
        self.style_words, self.place_words, self.subject_words = style_words, place_words, subject_words
        if captions not in CAPTIONS:
            raise InputError(f"procedural data: captions must be one of {', '.join(CAPTIONS)}, not {captions!r}.")
        self.sentences, self.captions = sentences, captions
        self.scale, self.turn = (float(scale[0]), float(scale[1])), turn
        self.styles = _styles(split, styles, families)
        chosen = _known("subject", subjects, tuple(SUBJECTS))
        self.seen = tuple(name for name in chosen if not SUBJECTS[name].heldout)
        heldout = tuple(name for name in chosen if SUBJECTS[name].heldout)
        self.subjects = heldout if self.heldout_subjects else self.seen
        if not self.subjects or len(self.seen) < 2:
            raise InputError(
                f"procedural data: split {split!r} needs at least one subject of the split and two seen subjects among"
                f" {', '.join(chosen)}; held out are {', '.join(subject_names(heldout=True))}."
            )

    def _draw(self, index: int, rng: np.random.Generator) -> Triplet:
        task = sampling.choose(rng, self._tasks)
        has_content, has_style = TASK_CONDITIONS[task]
        subject = SUBJECTS[sampling.pick(rng, self.subjects)]
        pose = self._pose(rng)
        preserved = has_content and rng.random() < self.preserved
        content_pose = pose if preserved else self._pose(rng)
        look = DrawingStyle.plain(rng, subject)
        if task == "subject" and rng.random() < self.same_look:
            style = look
        elif not has_style and rng.random() < self.plain:
            style = DrawingStyle.plain(rng, subject)
        else:
            style = DrawingStyle.draw(rng, self.styles, heldout=self.heldout_styles)
        labels = {"subject": subject.name, "style": style.name, "family": style.family}
        meta = {"subject": subject.name, "phrase": subject.phrase, "family": style.family, "pose": pose, "style": style}
        meta["labels"] = {name: NUMBERS[name].index(value) for name, value in labels.items()}

        content = None
        if has_content:
            meta |= {"content_pose": content_pose, "content_style": look}
            content = render(subject, content_pose, look, self.size)
        styles = ()
        if has_style:
            others = [name for name in self.seen if name != subject.name]
            meta["style_subjects"] = tuple(sampling.pick(rng, others) for _ in range(self.num_styles))
            styles = tuple(render(SUBJECTS[name], self._pose(rng), style, self.size) for name in meta["style_subjects"])

        # Options that are off consume no random number, so that they do not change the triplets of older settings.
        bare = preserved or task == "text"
        if bare and self.sentences and rng.random() < self.sentences:
            sentence = sampling.pick(rng, STILL)
        else:
            sentence = "{}" if bare else sampling.pick(rng, SENTENCES)
        nameless = has_content and self.subject_words < 1 and rng.random() >= self.subject_words
        prompt = sentence.format("this" if nameless else subject.phrase)
        if rng.random() < self.place_words and not preserved:
            prompt += f", {pose.words}"
        # Without a style image, only the caption specifies the style.
        if rng.random() < self.style_words or (task == "subject" and style.name != PLAIN):
            prompt += f", {style.words}"
        if task == "style_subject" and preserved and rng.random() < self.empty_prompt:
            prompt = ""
        if self.captions != "target":
            whole = has_style and self.captions == "style_image"
            prompt = f"{SUBJECTS[meta['style_subjects'][0]].phrase if whole else 'this'}, {style.words}"
        return Triplet(
            prompt=prompt,
            content=content,
            styles=styles,
            target=render(subject, pose, style, self.size),
            task=task,
            layout="preserved" if preserved else "shifted",
            key=f"procedural/{self.split}/{self.seed}/{index}",
            meta=meta,
        )

    def counterfactuals(
        self, triplet: Triplet
    ) -> tuple[UInt8[np.ndarray, "m {self.size} {self.size} 3"], UInt8[np.ndarray, "k {self.size} {self.size} 3"]]:
        """Return the target with every other subject, and in other styles. The target itself comes first in both."""
        subject = SUBJECTS[triplet.meta["subject"]]
        return (
            counterfactual.other_subjects(subject, SUBJECTS.values(), triplet.meta, self.size),
            counterfactual.other_styles(subject, triplet.meta, triplet.key, self.size),
        )

    def told(self, triplet: Triplet) -> str:
        """Return the triplet's prompt with its style in words, which a base model without style images can follow."""
        return f"{triplet.prompt or 'this'}, {triplet.meta['style'].words}"

    def flat_subjects(self, triplet: Triplet) -> UInt8[np.ndarray, "m {self.size} {self.size} 3"]:
        """Return the target flat, in its colours, with every subject, the true one first."""
        meta = triplet.meta | {"style": dataclasses.replace(triplet.meta["style"], name="flat")}
        return counterfactual.other_subjects(SUBJECTS[meta["subject"]], SUBJECTS.values(), meta, self.size)

    def style_drawings(
        self, triplet: Triplet, count: int, rng: np.random.Generator
    ) -> list[UInt8[np.ndarray, "n {self.size} {self.size} 3"]]:
        """Draw `count` other subjects in the style of the triplet's target, and then in each of the other styles."""
        others = [one for name, one in SUBJECTS.items() if name != triplet.meta["subject"]]
        styles = counterfactual.alternatives(triplet.meta["style"], triplet.key)
        return counterfactual.drawings([(style, others) for style in styles], count, self.size, rng)

    def _pose(self, rng: np.random.Generator) -> Pose:
        return Pose.draw(rng, scale=self.scale, turn=self.turn)


def _known(what: str, names: Sequence[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """Validate a restriction. The result is in the order of `known`, so the user's order does not matter."""
    if names is None:
        return known
    strange = [name for name in names if name not in known]
    if strange:
        raise InputError(
            f"procedural data: unknown {what} {', '.join(map(repr, strange))}; known are {', '.join(known)}."
        )
    return tuple(name for name in known if name in names)


def _styles(split: str, styles: Sequence[str] | None, families: Sequence[str] | None) -> tuple[str, ...]:
    """Return the styles of a split, restricted to some styles and families."""
    wanted = _known("style", styles, STYLE_NAMES)
    kept = _known("style family", families, tuple(family for family in FAMILIES if family != PLAIN))
    own = [f for f in kept if (f in HELDOUT_FAMILIES) == (split == "heldout_families")]
    names = tuple(name for family in own for name in FAMILIES[family] if name in wanted)
    if not names:
        raise InputError(
            f"procedural data: split {split!r} has none of the styles {', '.join(wanted)} of {', '.join(kept)};"
            f" the held-out families are {', '.join(HELDOUT_FAMILIES)}, which only heldout_families contains."
        )
    return names
