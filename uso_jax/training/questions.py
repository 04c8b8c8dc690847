# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Questions to a vision-language model about generated images, by the name of the score."""

HIGHEST = 10.0
_FORM = 'Answer with JSON alone: {"score": whole number from 0 to 10}'
QUESTIONS = {
    "vlm_subject": (
        "The first image shows a subject. How well does the second image show the same subject? Compare shape,"
        " proportions, parts and markings. Do not count drawing style, colours, background, pose and size. 10: the"
        f" same subject without doubt, 5: alike, 0: another subject or none. {_FORM}"
    ),
    "vlm_style": (
        "The first image has a style. How well does the second image have the same style? Compare medium, texture,"
        " lines, palette and light. Do not count what is shown. 10: the same hand, 5: alike, 0: another style."
        f" {_FORM}"
    ),
    "vlm_prompt": (
        "How well does the image show this text? 10: everything it says, 5: a part of it, 0: nothing of it."
        f' {_FORM}\nText: "{{prompt}}"'
    ),
}
