# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Judge prompts by name: this project's wording of each benchmark's published rubric.

--judge_prompts replaces them by name.
"""

from collections.abc import Mapping

_SCORE = (
    " Be strict: give 10 only where nothing is wrong, and let every visible mistake cost points. Answer as "
    'JSON: {"score": <whole number from 0 to 10>, "reasoning": "<one sentence>"}'
)
_PAIR = " Answer with a list of the two numbers only: [first, second]"
_YES = " Answer with one word, yes or no."
_FOUR = ' Answer as JSON: {"score": <whole number from 0 to 4>, "reasoning": "<one sentence>"}'

TEXTS: Mapping[str, str] = {
    "following": (
        "The first images are references, the last was made after this instruction: {prompt}\n"
        "How completely does the last image do what the instruction says? Look at actions, relations, "
        "attributes and place; do not judge whether the subjects are the referenced ones."
    )
    + _SCORE,
    "following_scene": (
        "The first images are references, the last was made after this instruction: {prompt}\n"
        "How completely does the last image do what the instruction says, and is its scene the one that a "
        "reference shows? Do not judge whether the subjects are the referenced ones."
    )
    + _SCORE,
    "consistency": (
        "The first images are references, the last was made after this instruction: {prompt}\n"
        "Is every subject of the references that the instruction asks for the very same one in the last "
        "image? Compare faces, hair, clothes, shapes, colours, marks and text."
    )
    + _SCORE,
    "consistency_scene": (
        "The first images are references, the last was made after this instruction: {prompt}\n"
        "Are the subjects and the scene of the references the very same ones in the last image? Compare "
        "faces, hair, clothes, shapes, colours, marks, and of the scene its layout and objects."
    )
    + _SCORE,
    "labelled": (
        "The first images are references, the last was made after this instruction: {prompt}\n"
        "Only these subjects are meant: {subjects}. Is each of them the very same one in the last image? "
        "Ignore all others."
    )
    + _SCORE,
    "labelled_scene": (
        "The first images are references, the last was made after this instruction: {prompt}\n"
        "Only these subjects are meant: {subjects}. Is each of them, and the scene, the very same in the "
        "last image? Ignore all others."
    )
    + _SCORE,
    "presence": (
        "The first image shows, among others, this subject: {subject}. Does the same subject appear in the "
        "second image?"
    )
    + _YES,
    "source": ("Does what the first image shows appear in the second image, recognisable as the same?") + _YES,
    "semantics": (
        "The first image is a reference composition, the second was made after this instruction: {prompt}\n"
        "Give two numbers from 0 to 10: how well the second image follows the instruction, and how much "
        "its subjects resemble those of the first."
    )
    + _PAIR,
    "quality": (
        "Give two numbers from 0 to 10 for this image: how natural it looks (light, distances, "
        "proportions), and how free it is of artefacts (distortions, blurs, wrong limbs, seams)."
    )
    + _PAIR,
    "preservation": (
        "The first image is a reference, the second was made of it. How much of the {what} of the first "
        "does the second keep? 0: nothing, 4: all of it."
    )
    + _FOUR,
    "alignment": ("How well does this image show the following? {prompt}\n0: not at all, 4: completely.") + _FOUR,
}
