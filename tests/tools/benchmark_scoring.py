# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Speed of scoring: CLIP-I, DINO and CSD of made images, here and with the torch networks, in one run.

    python tests/tools/benchmark_scoring.py [--images 1000] [--size 512] [--batch_size 32]

Networks have the released sizes (CLIP ViT-B/32, DINO ViT-S/16, CSD ViT-L/14) and random numbers, the same on both
sides, so cosines are compared too. Both read the same PNGs; the torch side is what a script with transformers does:
image processor, model, one network after the other. Seconds are of the clock and of the processor, of which the latter
do not depend on what else the machine does. A ratio above 1 means that this project is faster.
"""

from uso_jax.hardware.malloc import keep_memory

if __name__ == "__main__":
    keep_memory()  # for both sides, as evaluate.py has it; before anything slow is imported

import argparse
import pathlib
import tempfile
import time

import numpy as np
import torch
import transformers
from image_encoders import numbers, openai_names, tensors
from PIL import Image

from convert.tables import clip as clip_tables
from convert.tables import dino as dino_tables
from convert.tables.clip import CSD as CSD_TABLE
from uso_jax import params, weights
from uso_jax.evaluation import gallery, scoring
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.metrics.base import Metric, Tools
from uso_jax.evaluation.metrics.encoders import Networks
from uso_jax.evaluation.score_log import ScoreLog
from uso_jax.models.clip import CLIP, Clip
from uso_jax.models.csd import CSD, Csd
from uso_jax.models.dino import DINO, Dino
from uso_jax.weights import manifest_configs
from uso_jax.weights.tables.table import to_flax

METRICS = (
    Metric("clip_i", "cosine", "clip", "content"),
    Metric("dino", "cosine", "dino", "content"),
    Metric("csd", "cosine", "csd_style", "style"),
)
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")


def torch_networks():
    """Make the three networks with transformers' initial numbers, and CSD's two matrices."""
    torch.manual_seed(0)
    clip = CLIP["B/32"]
    named = lambda config, names=_SIZES: {name: getattr(config, name) for name in names}
    text = named(clip.text, (*_SIZES[:4], "vocab_size", "max_position_embeddings"))
    both = transformers.CLIPConfig(vision_config=named(clip.vision), text_config=text, projection_dim=512)
    dino = transformers.ViTModel(transformers.ViTConfig(**named(DINO["dino_vits16"]), layer_norm_eps=1e-6), False)
    tower = transformers.CLIPConfig(vision_config=named(CSD), text_config=text, projection_dim=CSD.projection_dim)
    csd = transformers.CLIPModel(tower)
    matrices = torch.randn(2, CSD.hidden_size, CSD.projection_dim) * CSD.hidden_size**-0.5
    return transformers.CLIPModel(both).eval(), dino.eval(), csd.eval(), matrices


def save(folder: pathlib.Path, clip, dino, csd, matrices) -> None:
    """Write the same numbers as a weights directory."""
    csd_state = {k.replace("visual.", "backbone."): v for k, v in openai_names(numbers(tensors(csd))).items()}
    csd_state = {k: v for k, v in csd_state.items() if k.startswith("backbone.") and k != "backbone.proj"}
    csd_state |= {"last_layer_style": matrices[0].numpy(), "last_layer_content": matrices[1].numpy()}
    parts = {
        "clip_model": (Clip, CLIP["B/32"], clip_tables.CLIP, numbers(tensors(clip))),
        "dino": (Dino, DINO["dino_vits16"], dino_tables.VIT, numbers(tensors(dino))),
        "csd": (Csd, CSD, CSD_TABLE, csd_state),
    }
    for name, (make, config, rows, state) in parts.items():
        shapes = params.shapes(lambda rngs, make=make, config=config: make(config, rngs=rngs))
        weights.save(
            folder, name, to_flax(rows, shapes, state.items()), {"config": manifest_configs.describe(name, config)}
        )


def with_torch(networks, pixels: list[str], references: list[str], batch: int) -> dict[str, np.ndarray]:
    """Score as a script with transformers does."""
    clip, dino, csd, matrices = networks
    unit = lambda x: torch.nn.functional.normalize(x, dim=1)
    to_clip = transformers.CLIPImageProcessorPil()
    to_dino = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 256}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    embed = {
        "clip_i": (to_clip, lambda x: clip.visual_projection(clip.vision_model(pixel_values=x).pooler_output)),
        "dino": (to_dino, lambda x: dino(pixel_values=x).last_hidden_state[:, 0]),
        "csd": (to_clip, lambda x: csd.vision_model(pixel_values=x).pooler_output @ matrices[0]),
    }
    found = {}
    with torch.inference_mode():
        for name, (processor, network) in embed.items():

            def vectors(paths, processor=processor, network=network):
                out = []
                for start in range(0, len(paths), batch):
                    images = [Image.open(path).convert("RGB") for path in paths[start : start + batch]]
                    out.append(unit(network(processor(images, return_tensors="pt")["pixel_values"])))
                return torch.cat(out)

            kept = dict(zip(distinct := sorted(set(references)), vectors(distinct), strict=True))
            wanted = torch.stack([kept[path] for path in references])
            found[name] = (vectors(pixels) * wanted).sum(1).numpy()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=32)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, rng = pathlib.Path(name), np.random.default_rng(0)
        (folder / "images").mkdir()
        draw = lambda: Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).resize((args.size, args.size))
        references = []
        for number in range(max(1, min(50, args.images // 4))):
            references.append(str(folder / f"reference{number}.png"))
            draw().save(references[-1])
        shown = [references[number % len(references)] for number in range(args.images)]
        items = [
            EvalItem(str(number), "uso_bench", content_refs=(path,), style_refs=(path,), width=0, height=0)
            for number, path in enumerate(shown)
        ]
        for one in items:
            draw().save(folder / "images" / f"{one.key}_0.png")
        networks = torch_networks()
        save(folder / "weights", *networks)
        seconds, found = {}, {}

        start = _clocks()
        gallery_ = gallery.find_images(folder / "images", items)
        tools = Tools(networks=Networks(folder / "weights", batch_size=args.batch_size))
        log = ScoreLog(folder / "scores.jsonl")
        scores = scoring.score_images(METRICS, items, gallery_, log, tools, batch_size=args.batch_size)
        seconds["here"] = _clocks() - start
        for metric in METRICS:
            found[metric.name] = np.array([scores.figures[one.key, 0][metric.name] for one in items])

        start = _clocks()
        paths = [str(folder / "images" / f"{one.key}_0.png") for one in items]
        wanted = with_torch(networks, paths, shown, args.batch_size)
        seconds["torch"] = _clocks() - start
    for name, values in wanted.items():
        print(f"{name}: largest difference of cosines {np.abs(values - found[name]).max():.1e}")
    print(f"{args.images} images of {args.size} pixels; here with checks of files, compilation and log")
    for number, name in enumerate(("clock", "processor")):
        here, there = (seconds[side][number] for side in ("here", "torch"))
        print(f"{name:10} here {here:.1f} s, torch {there:.1f} s, ratio {there / here:.2f}")


def _clocks() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


if __name__ == "__main__":
    main()
