# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Triplets of emoji artwork, drawn on demand, in artists' styles and in procedural styles.

    artists    content = (subject s, team A)    style = (subject t, team B)     target = (subject s, team B)
    drawn      content = (subject s, team A)    style = (subject t, style B)    target = (subject s of team A, style B)

An artist's style is a team and a background colour: the target has the background of the style image, the content
another one. A drawn style is one of `uso_jax.data.drawings.styles`, applied to silhouette and details of the artwork.
Example i of a split depends only on (seed, split, i). The splits:

    train              seen subjects,      six teams,  seen families, colours and textures
    heldout_subjects   held-out subjects,  six teams,  seen families, colours and textures
    heldout_styles     seen subjects,      emojione, which training never sees,  held-out colours and textures
    heldout_families   seen subjects,      held-out families (drawn styles only)
    heldout            held-out subjects,  emojione,  held-out colours and textures

The subject of a style image is always a seen one, and team A one of the six. `meta` of a triplet holds "look" (artists
or drawn); for the target "subject", "phrase", "team", "pose", "style" (a DrawingStyle, plain for artists) and "family";
for the references "content_team", "content_pose", "content_style", "style_subjects" and "style_teams"; and "labels",
indices into STYLES and FAMILIES for drawn styles, -1 for what classifiers of the procedural source do not know.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from uso_jax.common.errors import InputError
from uso_jax.data.drawings import counterfactual, sampling
from uso_jax.data.drawings.canvas import Pose
from uso_jax.data.drawings.drawn_source import DrawnSource
from uso_jax.data.drawings.look import FAMILIES, FAMILY_OF, HELDOUT_FAMILIES, PLAIN, STYLE_NAMES, DrawingStyle
from uso_jax.data.drawings.styles import STYLES, render
from uso_jax.data.emoji.artwork import HELDOUT_TEAM, TEAMS, EmojiArtwork, phrase
from uso_jax.data.splits import OLD_NAMES
from uso_jax.data.triplet import TASK_CONDITIONS, Triplet

LOOKS = ("artists", "drawn")
_NAMES_IN_KEYS = {new: old for old, new in OLD_NAMES.items()}  # keys seed the counterfactuals and must not change
TRAINED_TEAMS = tuple(team for team in TEAMS if team != HELDOUT_TEAM)
SENTENCES = ("{}", "a picture of {}", "here is {}", "{} in another place")
NUM_SUBJECTS = 60  # other subjects in the counterfactuals


class EmojiSource(DrawnSource):
    """A random-access source of `length` triplets of emoji artwork.

    Args:
      data_dir, manual_dir: directories of the rasterised artwork and of the tarballs, see `EmojiArtwork`.
      split: one of SPLITS.
      seed: of all random choices.
      size: side of the images in pixels.
      length: number of triplets.
      looks: sampling weights of "artists" and "drawn", equal by default. heldout_families has only drawn ones.
      tasks: sampling weights of "style_subject", "subject", "style" and "text"; omitted tasks do not occur.
      preserved: share of examples with a content image whose target keeps its pose.
      empty_prompt: share of style_subject examples with preserved layout that have the empty prompt.
      style_words: probability that the caption also names the style ("the pear, noto style on blue"). Subject examples
        whose target has another style than the content always name it.
      plain: share of subject and text examples whose target is by the content's team, on another background.
      same_look: share of subject examples whose target has exactly the content's look.
      num_styles: style images per example.

    Raises:
      InputError: an argument is invalid, or the artwork is missing.
    """

    def __init__(
        self,
        *,
        data_dir: Path | str,
        manual_dir: Path | str = "",
        split: str = "train",
        seed: int = 0,
        size: int = 32,
        length: int = 1_000_000,
        looks: Mapping[str, float | int] | None = None,
        tasks: Mapping[str, float | int] | None = None,
        preserved: float | int = 0.5,
        empty_prompt: float | int = 0.5,
        style_words: float | int = 0.0,
        plain: float | int = 0.3,
        same_look: float | int = 0.0,
        num_styles: int = 1,
    ):
        shares = {"preserved": preserved, "empty_prompt": empty_prompt, "style_words": style_words}
        shares |= {"plain": plain, "same_look": same_look}
        super().__init__(
            "emoji",
            split=split,
            seed=seed,
            size=size,
            length=length,
            num_styles=num_styles,
            tasks=tasks,
            shares=shares,
        )
        self._looks = sampling.edges(
            "emoji data", "looks", {"artists": 1, "drawn": 1} if looks is None else looks, LOOKS
        )
        if self.heldout_families:
            if looks is not None and not looks.get("drawn", 0) > 0:
                raise InputError("emoji data: heldout_families has only drawn styles; set a positive looks.drawn.")
            self._looks = sampling.edges("emoji data", "looks", {"drawn": 1}, LOOKS)
        self.preserved, self.empty_prompt, self.style_words = preserved, empty_prompt, style_words
        self.plain, self.same_look = plain, same_look
        self.artwork = EmojiArtwork(data_dir, manual_dir, size=size)
        self.subjects = self.artwork.heldout if self.heldout_subjects else self.artwork.seen
        is_heldout = lambda name: FAMILY_OF[name] in HELDOUT_FAMILIES
        self.styles = tuple(name for name in STYLE_NAMES if is_heldout(name) == self.heldout_families)

    def _draw(self, index: int, rng: np.random.Generator) -> Triplet:
        look, task = sampling.choose(rng, self._looks), sampling.choose(rng, self._tasks)
        has_content, has_style = TASK_CONDITIONS[task]
        name, content_team = sampling.pick(rng, self.subjects), sampling.pick(rng, TRAINED_TEAMS)
        own = self.artwork.subject(name, content_team)
        pose = Pose.draw(rng)
        preserved = has_content and rng.random() < self.preserved
        content_pose = pose if preserved else Pose.draw(rng)
        content_style = DrawingStyle.plain(rng, own)

        # Team and style of the target.
        team, style, is_own = content_team, content_style, True
        if task == "subject" and rng.random() < self.same_look:
            pass
        elif not has_style and rng.random() < self.plain:
            style = DrawingStyle.plain(rng, own)
        elif look == "drawn":
            style, is_own = DrawingStyle.draw(rng, self.styles, heldout=self.heldout_styles), False
        else:
            others = [other for other in TRAINED_TEAMS if other != content_team]
            team, is_own = HELDOUT_TEAM if self.heldout_styles else sampling.pick(rng, others), False
            style = DrawingStyle.plain(rng, self.artwork.subject(name, team))
        subject = own if team == content_team else self.artwork.subject(name, team)
        labels = {"subject": -1, "style": -1, "family": -1}
        if look == "drawn":
            labels |= {"style": list(STYLES).index(style.name), "family": list(FAMILIES).index(style.family)}
        meta = {"look": look, "subject": name, "phrase": phrase(name), "team": team, "pose": pose, "style": style}
        meta |= {"family": style.family, "labels": labels}

        content = None
        if has_content:
            meta |= {"content_team": content_team, "content_pose": content_pose, "content_style": content_style}
            content = render(own, content_pose, content_style, self.size)
        styles = ()
        if has_style:
            others = [other for other in self.artwork.seen if other != name]
            meta["style_subjects"] = tuple(sampling.pick(rng, others) for _ in range(self.num_styles))
            meta["style_teams"] = tuple(
                team if look == "artists" else sampling.pick(rng, TRAINED_TEAMS) for _ in range(self.num_styles)
            )
            styles = tuple(
                render(self.artwork.subject(*drawn), Pose.draw(rng), style, self.size)
                for drawn in zip(meta["style_subjects"], meta["style_teams"], strict=True)
            )

        sentence = "{}" if preserved or task == "text" else sampling.pick(rng, SENTENCES)
        prompt = sentence.format(meta["phrase"])
        # Without a style image, only the caption specifies the style.
        if rng.random() < self.style_words or (task == "subject" and not is_own):
            prompt += f", {style.words if style.name != PLAIN else f'{team} style on {style.ground_name}'}"
        if task == "style_subject" and preserved and rng.random() < self.empty_prompt:
            prompt = ""
        return Triplet(
            prompt=prompt,
            content=content,
            styles=styles,
            target=render(subject, pose, style, self.size),
            task=task,
            layout="preserved" if preserved else "shifted",
            key=f"emoji/{_NAMES_IN_KEYS.get(self.split, self.split)}/{self.seed}/{index}",
            meta=meta,
        )

    def counterfactuals(
        self, triplet: Triplet
    ) -> tuple[UInt8[np.ndarray, "m {self.size} {self.size} 3"], UInt8[np.ndarray, "k {self.size} {self.size} 3"]]:
        """Return the target with other subjects, and in other styles. The target itself comes first in both.

        Other styles of an artist's image are the same subject by every other team on the same background.
        """
        meta = triplet.meta
        subject = self.artwork.subject(meta["subject"], meta["team"])
        rng = np.random.default_rng(list(triplet.key.encode()))
        names = [name for name in self.artwork.names if name != subject.name]
        chosen = [names[i] for i in rng.permutation(len(names))[:NUM_SUBJECTS]]
        others = (self.artwork.subject(name, meta["team"]) for name in chosen)
        contents = counterfactual.other_subjects(subject, others, meta, self.size)
        if meta["look"] == "drawn":
            return contents, counterfactual.other_styles(subject, meta, triplet.key, self.size)
        teams = [meta["team"], *(team for team in TEAMS if team != meta["team"])]
        drawn = (self.artwork.subject(subject.name, team) for team in teams)
        return contents, np.stack([render(one, meta["pose"], meta["style"], self.size) for one in drawn])

    def flat_subjects(self, triplet: Triplet) -> None:
        """Return None: artwork has no flat style."""

    def style_drawings(
        self, triplet: Triplet, count: int, rng: np.random.Generator
    ) -> list[UInt8[np.ndarray, "n {self.size} {self.size} 3"]]:
        """Draw `count` other subjects in the style of the triplet's target, and then in each other style or team."""
        meta = triplet.meta
        names = [name for name in self.artwork.names if name != meta["subject"]]
        chosen = [names[i] for i in rng.permutation(len(names))[:NUM_SUBJECTS]]
        by = lambda team: [self.artwork.subject(name, team) for name in chosen]
        if meta["look"] == "drawn":
            own = by(meta["team"])
            styles = [(style, own) for style in counterfactual.alternatives(meta["style"], triplet.key)]
        else:
            teams = [meta["team"], *(team for team in TEAMS if team != meta["team"])]
            styles = [(meta["style"], by(team)) for team in teams]
        return counterfactual.drawings(styles, count, self.size, rng)
