# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Five items of every benchmark in the form its data have, tiny networks of all metrics, faces and read texts."""

import hashlib
import json
import pathlib

import jax
import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from uso_jax import params, weights
from uso_jax.evaluation.benchmarks import dreambench
from uso_jax.models.clip import Clip, ClipConfig, ClipVisionConfig
from uso_jax.models.csd import Csd
from uso_jax.models.dino import Dino, DinoConfig
from uso_jax.models.image_reward import BertConfig, ImageReward, ImageRewardConfig
from uso_jax.models.inception import Inception, InceptionConfig
from uso_jax.weights import manifest_configs

SIDE = 16
_rng = np.random.default_rng(0)


def image(path: pathlib.Path, size: tuple[int, int] = (SIDE, SIDE)) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = Image.fromarray(_rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    coarse.resize(size, Image.Resampling.BICUBIC).save(path)
    return str(path)


def jsonl(path: pathlib.Path, lines: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


# ---------------------------------------------------------------------------------------------------- data


def uso_bench(data):
    for kind in ("human", "object"):
        image(data / "content" / kind / "a.png")
    image(data / "style" / "ink.png")
    (data / "subject_prompts.txt").write_text("The {subject} reads.\n")
    (data / "style_prompts.txt").write_text("A villa.\n")
    (data / "names.json").write_text('{"human/a.png": "man"}')


def make_dreambench(data):
    classes, prompts = ["subject_name,class"], []
    for reference in dreambench.REFERENCES.split():
        subject, number = reference.split("/")
        classes.append(f"{subject},{'dog' if 'dog' in subject else 'toy car'}")
        image(data / subject / f"{number}.jpg"), image(data / subject / "09.jpg")
    prompts = "prompt_list = [\n'a {0} {1} in the snow'.format(unique_token, class_token),\n]\n"
    text = "Classes\n\n" + "\n".join(classes) + f"\n\nPrompts\n\nObject Prompts\n\n{prompts}\nLive Subject Prompts\n\n"
    (data / "prompts_and_classes.txt").write_text(text + prompts.replace("in the snow", "in a hat"))


def omnicontext(data):
    tasks = ("single_character", "single_object", "multi_object", "scene_object", "scene_character_object")
    jsonl(data / "data.jsonl", [
        {"key": str(n), "task_type": task, "instruction": f"Put it {n}.", "instruction_language": "en",
         "input_images": [pathlib.Path(image(data / "images" / f"{n}.png")).relative_to(data).as_posix()]}
        for n, task in enumerate(tasks)
    ])  # fmt: skip


def sconeeval(data):
    image(data / "a.png"), image(data / "b.png")
    common = {"instruction": "The mug on a table.", "input_images": ["a.png", "b.png"], "case_type": "scene_1"}
    common |= {"subject_list": [["mug", "cup"], ["cat"]], "subject_label": [[1, 0], [0]]}
    tasks = ("composition_single", "composition_multi", "distinction_single_cross", "distinction_single_intra")
    tasks = (*tasks, "distinction_multi_cross")
    jsonl(data / "data.jsonl", [common | {"key": n, "task_type": task} for n, task in enumerate(tasks)])


def multiid(data):
    image(data / "gt.png"), image(data / "ref.png")
    common = {"prompt": "a man reads", "image_paths": ["ref.png"], "ori_img_path": "gt.png"}
    (data / "p1.json").write_text(json.dumps([common | {"name": f"n{n}"} for n in range(5)]))


def mico(data):
    sources, reference = [f"{n}.png" for n in range(2)], "reference.png"
    for name in (*sources, reference):
        image(data / name)
    common = {"input": sources, "reference": reference, "prompt": "both on a bench"}
    for task, humans in (("object_centric", []), ("human_centric", [0, 1]), ("hoi", [0])):
        jsonl(data / f"mico_bench_{task}.jsonl", [common | {"idx": 1, "human_indices": humans}])
    lines = [common | {"ed_idx": n, "refined_prompt": "a bench", "human_indices": []} for n in range(2)]
    jsonl(data / "mico_bench_dere.jsonl", lines)


def innocomposer(data):
    lines = []
    for n in range(5):
        files = {name: pathlib.Path(image(data / f"{name}{n}.png")).name for name in ("subject", "style", "target")}
        lines.append({"key": f"p{n}", "prompt": "a poster", "text_lines": ["Sale"], **files})
    jsonl(data / "posters.jsonl", lines)


def viton_hd(data):
    for n in range(5):
        image(data / "image" / f"{n}_00.jpg", (48, 64)), image(data / "cloth" / f"{n}_00.jpg")
    jsonl(data / "prompts.jsonl", [{"id": "1_00", "prompt": "a woman on a stair"}])


def fashion130k(data):
    lines = []
    for n in range(5):
        files = {name: pathlib.Path(image(data / f"{name}{n}.png", (48, 64))).name for name in ("garment", "target")}
        lines.append({"key": f"f{n}", "prompt": "a coat", **files})
    jsonl(data / "pairs.jsonl", lines)


def triplets(data):
    for n in range(5):
        for name in ("content", "style", "target"):
            image(data / ("ink" if n < 3 else "felt") / str(n) / f"{name}.png", (48, 48))
    (data / "ink" / "1" / "prompt.txt").write_text("a fox")


def dreambenchpp(data):
    for kind in ("animal", "human", "object", "style"):
        image(data / "images" / kind / "00.jpg")
        (data / "captions" / kind).mkdir(parents=True)
        (data / "captions" / kind / "00.txt").write_text("cat\na cat runs\n" + "a cat sits\n" * (kind == "animal"))


def mini(data):
    pass


MAKE = {
    "uso_bench": uso_bench, "dreambench": make_dreambench, "omnicontext": omnicontext, "sconeeval": sconeeval,
    "multiid": multiid, "mico": mico, "innocomposer": innocomposer, "viton_hd": viton_hd, "fashion130k": fashion130k,
    "triplets": triplets, "dreambenchpp": dreambenchpp, "mini": mini,
}  # fmt: skip
OPTIONS = {
    "mini": ["--option", "count=2", "--option", "size=16"], "dreambench": ["--option", "num_images=1"],
    "sconeeval": ["--option", "num_images=1"],
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------- tools


def networks(folder: pathlib.Path) -> None:
    """Write a weights directory of random tiny networks."""
    vision = ClipVisionConfig.tiny(image_size=16)
    dino = DinoConfig.tiny(image_size=16)
    text = ClipConfig.tiny().text
    bert = BertConfig(
        vocab_size=64, hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=40, encoder_hidden_size=24,
    )  # fmt: skip
    parts = {
        "clip_model": (Clip, ClipConfig(vision, text)),
        "dino": (Dino, dino),
        "dinov2": (Dino, DinoConfig.tiny(image_size=16, layer_scale=True)),
        "csd": (Csd, vision),
        "image_reward": (ImageReward, ImageRewardConfig(dino, bert)),
        "inception": (Inception, InceptionConfig(divisor=16)),
    }
    for number, (name, (make, config)) in enumerate(parts.items()):
        shapes = params.shapes(lambda rngs, make=make, config=config: make(config, rngs=rngs))
        rng = np.random.default_rng(number)
        values = {path: _value(path, shape, rng) for path, shape in shapes.items()}
        weights.save(folder, name, values, {"config": manifest_configs.describe(name, config)})
    words = {word: n for n, word in enumerate(["<pad>", "<unk>", "a", "poster", "cat", "runs", "snow", "in", "the"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    for name in ("clip", "image_reward"):
        fast.save_pretrained(folder / f"tokenizer_{name}")


def _value(path: str, shape: jax.ShapeDtypeStruct, rng: np.random.Generator) -> np.ndarray:
    if path.endswith(("scale", "var")):
        return np.ones(shape.shape, np.float32)
    fan = np.prod(shape.shape[:-1]) if len(shape.shape) > 1 else 10
    return (rng.normal(size=shape.shape) * fan**-0.5).astype(np.float32)


def faces(path: pathlib.Path, files: list[str]) -> None:
    rng = np.random.default_rng(0)
    names = {hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest() for file in files}
    ordered = sorted(names)
    np.savez(path, **{f"{net}/{name}": rng.normal(size=(1, 8)) for net in ("arcface", "adaface") for name in ordered})


def texts(path: pathlib.Path, files: list[str]) -> None:
    names = (hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest() for file in files)
    path.write_text(json.dumps({name: ["SALE", "now"] for name in names}))
