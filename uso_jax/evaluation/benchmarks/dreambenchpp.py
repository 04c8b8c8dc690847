# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""DreamBench++: 150 references of animals, people, objects and styles with nine prompts each.

DATA is the data set's folder: images/<kind>/NN.jpg and captions/<kind>/NN.txt, whose first line is the subject.
"""

import pathlib
from collections.abc import Mapping, Sequence

from uso_jax.evaluation.benchmark import Benchmark, Column, Values, images, text_lines
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.metrics.base import Metric
from uso_jax.evaluation.metrics.vlm_answers import FOUR, NAMED_FOUR
from uso_jax.evaluation.protocol import MADE, PROMPT, REFERENCES, Encoding, JudgeProtocol, Question, Text

PROMPT_KINDS = ("photorealistic",) * 4 + ("style transfer",) * 3 + ("imaginative",) * 2  # of an image's nine prompts
KINDS = ("animal", "human", "object", "style")


def prepare(data: pathlib.Path, options: Mapping[str, str]) -> Sequence[EvalItem]:
    """Return the items of the four kinds; references of kind style are style images."""
    items = []
    for kind in KINDS:
        for path in images(data / "images" / kind, f"references of kind {kind}"):
            name = pathlib.Path(path).stem
            subject, *prompts = text_lines(data / "captions" / kind / f"{name}.txt", "a subject and prompts")
            refs = {"style_refs" if kind == "style" else "content_refs": (path,)}
            for number, prompt in enumerate(prompts):
                key = f"{kind}/{name}_{number}"
                meta = {"subject": subject, "prompt_kind": (*PROMPT_KINDS, *[""] * len(prompts))[number]}
                items.append(EvalItem(key, "dreambenchpp", kind, prompt, **refs, meta=meta))
    return items


def derive(item: EvalItem, values: Values, compat: bool) -> Values:
    """Return "pf" under the name of its kind of prompt too."""
    kind = item.meta.get("prompt_kind")
    return {f"pf {kind}": values["pf"]} if kind and "pf" in values else {}


def _rated(kind: str) -> dict[str, Text]:
    """Return the texts that ask how much of a reference an image keeps, and what the judge says before it sees them."""
    return {
        kind: Text(
            f"You will see two images: a reference, and an image made of it. How much of the {kind} of the first does "
            'the second keep? 0: nothing, 4: all of it. Answer as JSON: {"score": <number from 0 to 4>}',
            f"user_prompt_{kind}_full.txt",
            strip=True,
        ),
        f"{kind}_reply": Text(
            f"I compare the {kind} of both images and answer with a score from 0 to 4, as JSON. Show me the images.",
            f"gpt_prompt_{kind}_full.txt",
            strip=True,
        ),
    }


def _question(text: str, *shown: str) -> Question:
    return Question((("user", (text,)), ("assistant", (f"{text}_reply",)), ("user", shown)), FOUR, NAMED_FOUR)


_SQUARE = Encoding(squash=512, detail="high")
JUDGE = JudgeProtocol(
    source="dreambench_plus: eval_concept_preservation.py, eval_prompt_following.py, benchmarking.py",
    texts=_rated("subject")
    | _rated("style")
    | {
        "alignment": Text(
            "You will see a description and an image. How well does the image show what the description says? "
            "0: not at all, 4: completely. "
            'Answer as JSON: {"score": <number from 0 to 4>, "reasoning": "<one sentence>"}',
            "user_prompt_text_full.txt",
            strip=True,
        ),
        "alignment_reply": Text(
            "I compare the image with the description and answer with a score from 0 to 4 and one sentence, as JSON. "
            "Show me both.",
            "gpt_prompt_text_full.txt",
            strip=True,
        ),
    },
    questions={
        "subject": _question("subject", REFERENCES, MADE),
        "style": _question("style", REFERENCES, MADE),
        "alignment": _question("alignment", PROMPT, MADE),
    },
    figures=lambda item: {"cp": "style" if item.subset == "style" else "subject", "pf": "alignment"},
    parameters={"temperature": 1},
    fresh_seed=True,
    references=_SQUARE,
    made=_SQUARE,
    rounds=3,
)

BENCHMARK = Benchmark(
    name="dreambenchpp",
    title="DreamBench++",
    source="arXiv 2406.16855; github.com/yuangpeng/dreambench_plus",
    prepare=prepare,
    metrics=(
        Metric("scales", "judged", against="all", judge=JUDGE),
        Metric("clip_i", "cosine", "clip", "all"),
        Metric("dino", "cosine", "dino", "all"),
        Metric("clip_t", "text", "clip", needs=("prompt",)),
    ),
    columns=(
        *(Column(f"CP {kind}", ("cp",), (kind,)) for kind in KINDS),
        Column("CP", ("cp",)),
        *(Column(f"PF {kind}", (f"pf {kind}",)) for kind in dict.fromkeys(PROMPT_KINDS)),
        Column("PF", ("pf",)),
        Column("CP x PF", product=("CP", "PF")),
        Column("CLIP-I", ("clip_i",)),
        Column("DINO", ("dino",)),
        Column("CLIP-T", ("clip_t",)),
    ),
    derive=derive,
    ours=(
        "The judge prompts are this project's unless --judge_prompts replaces them. USO has no published results.",
        "With --compat, a rating that cannot be read three times is left out of the mean of its round, decimals of"
        " published scores are cut off, and scores beyond 4 count. Otherwise each of them is a failure.",
        "The published DINO is ViT-S/8; here it is the network in --metric_weights.",
    ),
    data="folders images and captions, each with animal, human, object and style",
)
