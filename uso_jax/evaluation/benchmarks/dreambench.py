# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""DreamBench: 30 photographed subjects with 25 prompts each, published with DreamBooth; references and sizes as in UNO.

DATA is google/dreambooth's `dataset` folder: <subject>/NN.jpg and prompts_and_classes.txt.
"""

import pathlib
import re
from collections.abc import Mapping, Sequence

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.evaluation import records
from uso_jax.evaluation.benchmark import Benchmark, Column, images, published
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.metrics.base import Metric

LIVE = ("cat", "dog")  # classes with the live subject prompts
REFERENCES = (
    "backpack/02 backpack_dog/02 bear_plushie/03 berry_bowl/02 can/01 candle/02 cat/04 cat2/02 clock/03"
    " colorful_sneaker/01 dog/02 dog2/02 dog3/05 dog5/00 dog6/02 dog7/01 dog8/04 duck_toy/01 fancy_boot/02"
    " grey_sloth_plushie/04 monster_toy/04 pink_sunglasses/04 poop_emoji/00 rc_car/03 red_cartoon/00 robot_toy/00"
    " shiny_sneaker/01 teapot/04 vase/02 wolf_plushie/04"
)
"""The photo of each subject that UNO passes to the model."""


def prepare(data: pathlib.Path, options: Mapping[str, str]) -> Sequence[EvalItem]:
    """Return the items of every subject, or those of a list in UNO's format."""
    if options["refs"] not in ("all", "input"):
        raise InputError(f"option refs={options['refs']} is unknown; use all (as DreamBooth) or input")
    listed = _listed(pathlib.Path(options["list"])) if options["list"] else _single(data)
    items = []
    for key, prompt, shown in listed:
        compared = (
            shown if options["refs"] == "input" else [p for s in shown for p in images(pathlib.Path(s).parent, "")]
        )
        subject = "+".join(pathlib.Path(path).parent.name for path in shown)
        items.append(
            EvalItem(
                f"{subject}/{key}", "dreambench", "multi" if len(shown) > 1 else "single", prompt, tuple(shown),
                num_images=int(options["num_images"]), seed=3407, width=512, height=512,
                meta={"subject": subject, "subject_images": list(compared)},
            )
        )  # fmt: skip
    return items


def _single(data: pathlib.Path) -> list[tuple[str, str, list[str]]]:
    path, found = data / "prompts_and_classes.txt", []
    remedy = "--data must be google/dreambooth's dataset folder"
    text = untrusted.text(path, missing=f"cannot read {path}, it does not exist; {remedy}", remedy=remedy)
    text = text.replace("\r\n", "\n")
    classes = dict(re.findall(r"^(\w+),([\w ]+)$", text, re.MULTILINE))
    things, _, live = text.partition("Live Subject Prompts")
    prompts = {
        name: re.findall(r"^'(.*)'\.format", part, re.MULTILINE) for name, part in (("live", live), ("", things))
    }
    if not all(prompts.values()):
        raise InputError(f"{path} lacks the prompts of objects or of live subjects; download it again")
    for reference in REFERENCES.split():
        subject = reference.split("/")[0]
        image = data / f"{reference}.jpg"
        if subject not in classes or not image.is_file():
            raise InputError(
                f"subject {subject!r}: {image} or its class is missing; --data must be google/dreambooth's dataset"
            )
        word = classes[subject]
        for number, template in enumerate(prompts["live" if word in LIVE else ""]):
            prompt = template.replace("{0} ", "").replace("{1}", word)
            found.append((f"{number:02d}", prompt, [str(image)]))
    return found


def _listed(path: pathlib.Path) -> list[tuple[str, str, list[str]]]:
    found = []
    for number, (where, record) in enumerate(records.read_records(path, "list=FILE names UNO's JSON list")):
        shown = records.image_paths(record.get("image_paths"), path.parent, where)
        found.append((f"{number:04d}", records.text_field(record, ["prompt"], where), list(shown)))
    return found


_COLUMNS = ("DINO", "CLIP-I", "CLIP-T")
BENCHMARK = Benchmark(
    name="dreambench",
    title="DreamBench",
    source="arXiv 2208.12242; UNO's item lists, github.com/bytedance/UNO",
    prepare=prepare,
    metrics=(
        Metric("dino", "cosine", "dino", "subject"),
        Metric("clip_i", "cosine", "clip", "subject"),
        Metric("clip_t", "text", "clip", needs=("prompt",)),
        Metric("dinov2", "cosine", "dinov2", "subject"),
    ),
    columns=(
        *(Column(n, (f,), ("single",), "subject") for n, f in zip(_COLUMNS, ("dino", "clip_i", "clip_t"), strict=True)),
        Column("DINOv2", ("dinov2",), ("single",), "subject"),
        Column("DINO multi", ("dino",), ("multi",), "subject"),
        Column("CLIP-I multi", ("clip_i",), ("multi",), "subject"),
        Column("CLIP-T multi", ("clip_t",), ("multi",), "subject"),
    ),
    published=published(
        _COLUMNS,
        {
            "real images": (0.774, 0.885, None),
            "Textual Inversion": (0.569, 0.780, 0.255),
            "DreamBooth": (0.668, 0.803, 0.305),
            "BLIP-Diffusion": (0.670, 0.805, 0.302),
            "ELITE": (0.647, 0.772, 0.296),
            "SSR-Encoder": (0.612, 0.821, 0.308),
            "RealCustom++": (0.702, 0.794, 0.318),
            "OmniGen": (0.693, 0.801, 0.315),
            "OminiControl": (0.684, 0.799, 0.312),
            "FLUX IP-Adapter": (0.582, 0.820, 0.288),
            "UNO": (0.760, 0.835, 0.304),
            "USO": (0.777, 0.838, 0.317),
        },
    )
    | published(
        tuple(f"{name} multi" for name in _COLUMNS),
        {
            "MS-Diffusion": (0.525, 0.726, 0.319),
            "MIP-Adapter": (0.482, 0.726, 0.311),
            "OmniGen, two subjects": (0.511, 0.722, 0.331),
            "UNO, two subjects": (0.542, 0.733, 0.322),
        },
    ),
    published_source="USO's paper, table 5; UNO's paper",
    ours=("UNO's scoring script is unpublished; refs=all compares with all photos of a subject, as DreamBooth does.",),
    options={
        "refs": ("all", "compare with all photos of the subject (all) or only with the input image (input)"),
        "list": ("", "a list of items in UNO's JSON, such as its two-subject list, instead of single-subject items"),
        "num_images": ("6", "images per prompt; DreamBooth used 4, UNO 6"),
    },
    data="google/dreambooth's dataset folder",
)
