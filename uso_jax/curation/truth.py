# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Step "truth": check the experts' images against the ground truth of drawn sources, without learned networks.

A style reference is correct if it is nearest to the target's style among 24 styles (other names and colours; for
artists' looks, the other teams). Pose and subject are the expert's choice, so patches are compared with those of random
subjects drawn in each style (`uso_jax.evaluation.metrics.counterfactual`).

A content reference is correct if the nearest plain drawing of all subjects, on the image's background, shows the
target's subject. The pose is the target's if the layout is preserved, otherwise for each subject the best-fitting
silhouette of many.

The same checks on true drawings measure their accuracy. Shapes: n images, h w pixels.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from uso_jax.common.errors import InputError
from uso_jax.curation.store import Folder, Made
from uso_jax.data.drawings.canvas import Canvas, Pose
from uso_jax.data.drawings.counterfactual import NUM_STYLES
from uso_jax.data.drawings.look import DrawingStyle
from uso_jax.data.drawings.source import ProceduralSource
from uso_jax.data.drawings.styles import render
from uso_jax.data.drawings.subjects import SUBJECTS, Subject
from uso_jax.data.emoji.source import NUM_SUBJECTS, TRAINED_TEAMS, EmojiSource
from uso_jax.evaluation.metrics import counterfactual
from uso_jax.images import decode

_POSES, _DRAWINGS = 150, 12
_INSIDE = 40.0  # difference from the background, of 255, from which a pixel belongs to the subject


class Truth:
    """The worker of the step "truth".

    Raises:
      InputError: the source has no ground truth.
    """

    def __init__(self, source: Any):
        if not isinstance(source, ProceduralSource | EmojiSource):
            raise InputError("the step truth needs the source procedural or emoji; omit it for other sources.")
        self.source, self.size = source, source.size
        rng = np.random.default_rng(0)
        self._poses = [Pose.draw(rng) for _ in range(_POSES)]
        self._masks = functools.lru_cache(maxsize=4096)(self._masks_of)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the checks."""
        return {"judge": "patches and plain looks", "styles": NUM_STYLES, "poses": _POSES, "drawings": _DRAWINGS}

    def make_shard(self, folder: Folder, shard: int) -> Made:
        """Check one shard. Returns one row per candidate, and no images."""
        rows = []
        for number, row in folder.rows("captions", shard).items():
            failed = [
                one["failed"]
                for step in ("stylize", "destylize")
                if "failed" in (one := folder.rows(step, shard)[number])
            ]
            if failed:
                rows.append({"number": number, "failed": failed[0]})
                continue
            style, content = (self._image(folder, step, number) for step in ("stylize", "destylize"))
            rows.append({"number": number} | self.judge_candidate(row["index"], row["layout"], style, content))
        return rows, {}

    def judge_candidate(self, index: int, layout: str, style: decode.Pixels, content: decode.Pixels) -> dict[str, bool]:
        """Return whether each reference is correct, and whether true references pass the same checks."""
        triplet = self.source[index]
        meta, rng = triplet.meta, np.random.default_rng([index, layout == "preserved"])
        known = self._subjects(meta, rng)
        pose = meta["pose"] if layout == "preserved" else None
        true_pose = pose or Pose.draw(rng)
        plain = render(known[0], true_pose, DrawingStyle.plain(rng, known[0]), self.size)
        (true, *rest), *others = self.source.style_drawings(triplet, _DRAWINGS + 1, rng)
        sets = [np.stack(rest), *(drawn[1:] for drawn in others)]
        has_style = lambda image: int(np.argmin(counterfactual.distances(image, sets))) == 0
        return {
            "style_right": has_style(style),
            "content_right": self._nearest_subject(content, known, pose, meta["subject"], rng),
            "true_style_right": has_style(true),
            "true_content_right": self._nearest_subject(plain, known, pose, meta["subject"], rng),
        }

    def _subjects(self, meta: dict, rng: np.random.Generator) -> list[Subject]:
        """Return the target's subject and then others."""
        if isinstance(self.source, ProceduralSource):
            return [SUBJECTS[meta["subject"]], *(one for name, one in SUBJECTS.items() if name != meta["subject"])]
        artwork, team = self.source.artwork, meta.get("content_team", TRAINED_TEAMS[0])
        names = [name for name in artwork.names if name != meta["subject"]]
        chosen = [names[i] for i in rng.permutation(len(names))[:NUM_SUBJECTS]]
        return [artwork.subject(name, team) for name in (meta["subject"], *chosen)]

    def _nearest_subject(
        self, image: decode.Pixels, known: Sequence[Subject], pose: Pose | None, name: str, rng: np.random.Generator
    ) -> bool:
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        ground = np.median(border, axis=0)
        inside = np.abs(image.astype(np.float32) - ground).sum(-1).reshape(-1) > _INSIDE
        best, found = np.inf, ""
        for subject in known:
            posed = pose or self._poses[_best_fit(inside, self._masks(subject.name, subject))]
            look = dataclasses.replace(DrawingStyle.plain(rng, subject), ground=tuple((ground / 255).tolist()))
            # Every team's version: the expert may draw a subject like any of them.
            for one in self._versions(subject):
                drawn = render(one, posed, look, self.size).astype(np.float32)
                error = float(np.mean((drawn - image) ** 2))
                if error < best:
                    best, found = error, subject.name
        return found == name

    def _versions(self, subject: Subject) -> list[Subject]:
        if isinstance(self.source, ProceduralSource):
            return [subject]
        return [self.source.artwork.subject(subject.name, team) for team in TRAINED_TEAMS]

    def _masks_of(self, name: str, subject: Subject) -> Bool[np.ndarray, "n hw"]:
        del name  # the cache key; subjects are hashed by identity
        covers = [Canvas(subject, pose, self.size) for pose in self._poses]
        return np.stack([canvas.distances[0] < 0 for canvas in covers])

    def _image(self, folder: Folder, step: str, number: int) -> decode.Pixels:
        return decode.cover(folder.place(step, number).decode(), (self.size, self.size))


def _best_fit(inside: Bool[np.ndarray, " hw"], masks: Bool[np.ndarray, "n hw"]) -> int:
    """Return the index of the mask with the largest intersection over union."""
    return int(np.argmax((masks & inside).sum(1) / np.maximum((masks | inside).sum(1), 1)))
