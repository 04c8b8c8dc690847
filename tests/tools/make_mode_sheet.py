# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Draw a sheet of what weights make of every mode of generation, from the first held-out drawings, nothing picked.

python tests/tools/make_mode_sheet.py docs/images/modes.webp [WEIGHTS]

And one row per style, in the order in which styles first occur: content, style, made, told in words, target.

python tests/tools/make_mode_sheet.py docs/images/styles.webp WEIGHTS --styles
"""

import argparse

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from uso_jax.data.drawings.source import ProceduralSource
from uso_jax.images import contact_sheet
from uso_jax.inference.pipeline import USOPipeline

SIDE, CELL, EACH = 64, 96, 4
MODES = {  # title: split of the drawings, their settings
    "subject: content image and text": ("heldout_subjects", dict(tasks={"subject": 1.0}, preserved=1.0, plain=1.0)),
    "style: style image and text": ("heldout_styles", dict(tasks={"style": 1.0})),
    "both, layout kept: no text": ("heldout", dict(tasks={"style_subject": 1.0}, preserved=1.0, empty_prompt=1.0)),
    "both, another layout: text": ("heldout", dict(tasks={"style_subject": 1.0}, preserved=0.0)),
    "several styles": ("heldout", dict(tasks={"style_subject": 1.0}, preserved=1.0, empty_prompt=1.0, seed=1)),
    "text alone": ("heldout_styles", dict(tasks={"text": 1.0}, style_words=1.0, plain=0.0)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("weights", nargs="?", default="mini")
    parser.add_argument("--styles", action="store_true", help="one row per style instead")
    args = parser.parse_args()
    pipe = USOPipeline.from_weights(args.weights)
    sheet = by_style(pipe) if args.styles else by_mode(pipe)
    sheet.save(args.file, quality=90, method=6)


def by_mode(pipe: USOPipeline) -> Image.Image:
    """Return two columns of modes, each with its first drawings."""
    parts = []
    for title, (split, settings) in MODES.items():
        source = ProceduralSource(split=split, size=SIDE, **({"plain": 1.0} | settings))
        triplets = [source[number] for number in range(EACH)]
        more = [source[number + EACH].styles[0] for number in range(EACH)] if title == "several styles" else None
        made, columns = [], {}
        for number, triplet in enumerate(triplets):
            styles = [*triplet.styles, *([more[number]] if more else [])]
            print(f"{title}, row {number + 1}: {triplet.prompt!r}")
            made.append(draw(pipe, triplet.prompt, triplet.content, styles, seed=number))
        if triplets[0].content is not None:
            columns["content"] = np.stack([t.content for t in triplets])
        if triplets[0].styles:
            columns["style"] = np.stack([t.styles[0] for t in triplets])
        columns |= {"style 2": np.stack(more)} if more else {}
        columns["made"] = np.stack(made)
        columns |= {} if more else {"target": np.stack([t.target for t in triplets])}
        parts.append(titled(contact_sheet.draw(columns, cell=CELL), title))
    width, height = max(part.width for part in parts), parts[0].height
    sheet = Image.new("RGB", (2 * width, -(-len(parts) // 2) * height), "white")
    for number, part in enumerate(parts):
        sheet.paste(part, (number % 2 * width, number // 2 * height))
    return sheet


def by_style(pipe: USOPipeline) -> Image.Image:
    """Return one row per style of training's families, and of the unseen ones, in the order of first occurrence."""
    rows = {}
    for split, count in (("heldout", 22), ("heldout_families", 6)):
        wishes = dict(preserved=1.0, style_words=0.0, plain=1.0, empty_prompt=1.0)
        source = ProceduralSource(split=split, size=SIDE, tasks={"style_subject": 1.0}, **wishes)
        found = {}
        for number in range(1000):
            triplet = source[number]
            found.setdefault(triplet.meta["style"].name, triplet)
            if len(found) == count:
                break
        for name, triplet in found.items():
            made = draw(pipe, "", triplet.content, triplet.styles, seed=len(rows))
            told = draw(pipe, source.told(triplet), triplet.content, [], seed=len(rows))
            rows[name] = [triplet.content, triplet.styles[0], made, told, triplet.target]
    columns = ("content", "style", "made", "in words", "target")
    half = -(-len(rows) // 2)
    parts = []
    for names in (list(rows)[:half], list(rows)[half:]):
        images = [np.stack([rows[name][column] for name in names]) for column in range(len(columns))]
        parts.append(labelled(contact_sheet.draw(dict(zip(columns, images, strict=True)), cell=CELL), names))
    sheet = Image.new("RGB", (sum(part.width for part in parts), parts[0].height), "white")
    for number, part in enumerate(parts):
        sheet.paste(part, (number * parts[0].width, 0))
    return sheet


def draw(pipe: USOPipeline, prompt: str, content, styles, seed: int) -> np.ndarray:
    more = {} if content is None else {"content": content}
    return np.asarray(pipe(prompt, styles=list(styles), seed=seed, num_steps=12, **more).images[0])


def titled(part: Image.Image, title: str) -> Image.Image:
    found = Image.new("RGB", (part.width, part.height + 24), "white")
    found.paste(part, (0, 24))
    ImageDraw.Draw(found).text((6, 6), title, fill=(20, 20, 20), font=ImageFont.load_default(15))
    return found


def labelled(part: Image.Image, names: list[str]) -> Image.Image:
    found, font = Image.new("RGB", (part.width + 92, part.height), "white"), ImageFont.load_default(13)
    found.paste(part, (92, 0))
    for number, name in enumerate(names):
        middle = 28 + number * (CELL + 6) + CELL // 2
        ImageDraw.Draw(found).text((86, middle), name, fill=(20, 20, 20), font=font, anchor="rm")
    return found


if __name__ == "__main__":
    main()
