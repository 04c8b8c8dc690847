# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""USO-Bench: subjects in new scenes, styles on new subjects, and every content in every style.

The benchmark's images and prompts are unpublished. The user supplies images. Without prompt files, 30 + 30 prompts
written here after the published templates are used.

    DATA/content/human/*.jpg   DATA/content/object/*.jpg   DATA/style/*.jpg     (or DATA/content/*.jpg, all objects)
    DATA/names.json            optional: {"human/01.jpg": "man", ...}, the names of content images in prompts
    DATA/subject_prompts.txt   optional: one per line; {subject} is replaced by the name
    DATA/style_prompts.txt     optional: one per line
"""

import pathlib
from collections.abc import Mapping, Sequence

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.evaluation.benchmark import Benchmark, Column, images, slug, text_lines
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.metrics.base import Metric

SCENES = (
    "The {subject} is reading a book in a cafe.",
    "The {subject} stands on a beach at sunset.",
    "The {subject} is in a jungle after the rain.",
    "The {subject} waits on a cobblestone street.",
    "The {subject} lies on a wooden floor.",
    "The {subject} is in front of a mountain.",
    "The {subject} is in a flower shop among bouquets.",
    "The {subject} rides through a forest.",
    "The {subject} is on a stage, behind a podium.",
    "The {subject} crosses a snowy square at night.",
)
INSTRUCTIONS = tuple(
    f"Transform the style of the image into {style} style."
    for style in (
        "Ghibli", "pixel art", "retro comic", "watercolor", "oil painting", "pencil sketch", "wool felt",
        "building brick", "3D cartoon", "Cubist",
    )
)  # fmt: skip
STYLED = tuple(
    f"{style} style, {scene[0].lower()}{scene[1:]}"
    for style, scene in zip(
        (
            "Ink wash",
            "Paper cut",
            "Low poly",
            "Stained glass",
            "Woodcut",
            "Pastel",
            "Neon",
            "Clay",
            "Mosaic",
            "Ukiyo-e",
        ),
        SCENES,
        strict=True,
    )
)
STYLE_PROMPTS = (
    "A villa on the coast.", "A cat sleeping on a chair.", "A beautiful woman.", "A handsome boy.", "A canvas bag.",
    "A duck.", "A child standing beside a huge cat.", "The Eiffel tower.", "A small boat on the lake.",
    "A dog lying on its stomach.", "A lighthouse in a storm.", "A bicycle against a wall.", "A bowl of fruit.",
    "A train in the valley.", "An old man with a pipe.", "A girl with an umbrella.", "A horse in a meadow.",
    "A castle on a hill.", "A teapot and two cups.", "A street at night.", "A robot in a garden.", "A fox in the snow.",
    "A bridge over a river.", "A market full of people.", "A violin on a table.", "A whale under the ice.",
    "A windmill among tulips.", "A dancer on a stage.", "A car in the desert.", "A bird on a branch.",
)  # fmt: skip


def prepare(data: pathlib.Path, options: Mapping[str, str]) -> Sequence[EvalItem]:
    """Return the products: subject prompts x contents, style prompts x styles, contents x styles in two layouts."""
    contents = [
        (kind, path) for kind, most in (("human", 20), ("object", 30)) for path in _contents(data, kind, most, options)
    ]
    if not contents:
        raise InputError(f"{data / 'content'} has no images; put content images into its folders human and object")
    styles = _chosen(images(data / "style", "style images"), 50, options)
    names = _names(data)
    subject_prompts = _prompts(data, "subject_prompts.txt", (*SCENES, *INSTRUCTIONS, *STYLED))
    style_prompts = _prompts(data, "style_prompts.txt", STYLE_PROMPTS)
    shifted = [prompt for prompt in subject_prompts if prompt in SCENES] or subject_prompts
    shifted = shifted[: int(options["shifted_prompts"])]
    say = lambda prompt, kind, path: prompt.replace(
        "{subject}", names.get(f"{kind}/{pathlib.Path(path).name}", "person" if kind == "human" else "object")
    )
    items = []

    def add(subset: str, key: str, prompt: str, content: str = "", style: str = "", count: int = 1, **meta):
        refs = dict(content_refs=(content,) if content else (), style_refs=(style,) if style else ())
        items.append(
            EvalItem(f"{subset}/{key}", "uso_bench", subset, prompt, **refs, num_images=count, seed=3407, meta=meta)
        )

    place = lambda kind, path: f"{kind}-{slug(pathlib.Path(path).stem)}"
    for kind, path in contents:
        for number, prompt in enumerate(subject_prompts):
            add("subject", f"{place(kind, path)}/{number:02d}", say(prompt, kind, path), path, count=4)
    for path in styles:
        for number, prompt in enumerate(style_prompts):
            add("style", f"{slug(pathlib.Path(path).stem)}/{number:02d}", prompt, style=path, count=4)
    for kind, content in contents:
        for style in styles:
            key = f"{place(kind, content)}/{slug(pathlib.Path(style).stem)}"
            add("combined_preserved", key, "", content, style)
            for number, prompt in enumerate(shifted):
                add("combined_shifted", f"{key}-{number}", say(prompt, kind, content), content, style)
    return items


def _contents(data: pathlib.Path, kind: str, most: int, options: Mapping[str, str]) -> list[str]:
    folder = data / "content" / kind
    if not folder.is_dir() and not (kind == "object" and not (data / "content" / "human").is_dir()):
        return []
    found = images(folder if folder.is_dir() else folder.parent, f"content images of kind {kind}")
    return _chosen(found, most if (data / "content" / "human").is_dir() else 50, options)


def _chosen(found: list[str], most: int, options: Mapping[str, str]) -> list[str]:
    """Return `most` images, spread evenly over the folder, or all with option all_images=yes."""
    if options["all_images"] == "yes" or len(found) <= most:
        return found
    return [found[number * len(found) // most] for number in range(most)]


def _prompts(data: pathlib.Path, name: str, otherwise: Sequence[str]) -> list[str]:
    path = data / name
    return text_lines(path, "one prompt per line") if path.exists() else list(otherwise)


def _names(data: pathlib.Path) -> dict[str, str]:
    path = data / "names.json"
    if not path.exists():
        return {}
    return untrusted.json(path, dict[str, str], remedy="it must map image names, as in {'human/01.jpg': 'man'}")


_COMBINED = ("combined_preserved", "combined_shifted")
BENCHMARK = Benchmark(
    name="uso_bench",
    title="USO-Bench",
    source="arXiv 2508.18966, sections 4.1 and F",
    prepare=prepare,
    metrics=(
        Metric("clip_i", "cosine", "clip", "content", ("subject",)),
        Metric("dino", "cosine", "dino", "content", ("subject",)),
        Metric("dinov2", "cosine", "dinov2", "content", ("subject",)),
        Metric("csd", "cosine", "csd_style", "style"),
        Metric("clip_t", "text", "clip", needs=("prompt",)),
        Metric("gram", "gram", against="style"),
        Metric("lpips", "lpips", against="content", subsets=("combined_preserved",), options={"network": "vgg16"}),
    ),
    columns=(
        Column("CLIP-I", ("clip_i",), ("subject",)),
        Column("DINO", ("dino",), ("subject",)),
        Column("CLIP-T subject", ("clip_t",), ("subject",)),
        Column("CSD style", ("csd",), ("style",)),
        Column("CLIP-T style", ("clip_t",), ("style",)),
        Column("CSD combined", ("csd",), _COMBINED),
        Column("CLIP-T combined", ("clip_t",), _COMBINED),
        Column("DINOv2", ("dinov2",), ("subject",)),
        Column("Gram style", ("gram",), ("style",), higher_is_better=False),
        Column("Gram combined", ("gram",), _COMBINED, higher_is_better=False),
        Column("LPIPS to content", ("lpips",), ("combined_preserved",), higher_is_better=None),
    ),
    published={
        name: dict(zip(("CLIP-I", "DINO", "CLIP-T subject"), values, strict=True))
        for name, values in {
            "RealCustom++": (0.314, 0.615, 0.303),
            "RealGeneral": (0.485, 0.732, 0.275),
            "UNO": (0.605, 0.789, 0.264),
            "BAGEL": (0.516, 0.741, 0.298),
            "OmniGen2": (0.475, 0.723, 0.302),
            "FLUX.1 Kontext": (0.579, 0.775, 0.287),
            "Qwen-Image-Edit": (0.544, 0.756, 0.302),
        }.items()
    }
    | {
        name: {"CSD style": csd, "CLIP-T style": clip_t}
        for name, csd, clip_t in (
            ("DEADiff", 0.462, 0.274),
            ("InstantStyle-XL", 0.540, 0.276),
            ("CSGO", 0.452, 0.272),
            ("StyleStudio", 0.348, 0.282),
        )
    }
    | {
        "DreamO": {"CLIP-I": 0.588, "DINO": 0.787, "CLIP-T subject": 0.280, "CSD style": 0.454, "CLIP-T style": 0.278},
        "StyleID": {"CSD combined": 0.407, "CLIP-T combined": 0.230},
        "OmniStyle": {"CSD combined": 0.365, "CLIP-T combined": 0.229},
        "USO": {
            "CLIP-I": 0.623,
            "DINO": 0.793,
            "CLIP-T subject": 0.288,
            "CSD style": 0.557,
            "CLIP-T style": 0.282,
            "CSD combined": 0.495,
            "CLIP-T combined": 0.283,
        },
    },
    published_source="tables 1 and 2 of the paper's first version; its CLIP-I and DINO headers are probably swapped",
    ours=(
        "The original images and prompts are unpublished; the user supplies images, and prompts or this project's.",
        "The paper's 7,040 style and 29,500 combined samples do not follow from its numbers; here they are products.",
        "Encoders are assumed: CLIP ViT-B/32, DINO ViT-S/16, CSD ViT-L/14. DINOv2, Gram and LPIPS are additions.",
    ),
    options={
        "shifted_prompts": ("1", "scenes in which every content-style pair is also generated"),
        "all_images": ("no", '"yes" uses all images instead of the published 20 + 30 and 50'),
    },
    data="content/human, content/object and style, folders of images (50 of each kind in the paper)",
)
