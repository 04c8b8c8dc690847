# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Plot a reward and its judges over the images and the time that runs spent on them.

    python tests/tools/plot_rewards.py curves.webp "ReFL=runs/refl-*" "DiffusionNFT=runs/nft-*" --images 7520

Every run is a stage with a reward or a policy that ends after `--images` images. Time is that of the stage, in seconds,
without judging and saving.
"""

import argparse
import glob
import json
import pathlib

from matplotlib.figure import Figure
from PIL import Image

from uso_jax.evaluation.report.charts import COLOURS

FIGURES = {"csd_style": "CSD", "judge_style": "judge: style", "judge_content": "judge: content"}


def history(folder: pathlib.Path) -> tuple[list[dict], int, float]:
    """Return what held-out images were worth, the steps of the stage, and the least seconds of a step."""
    stage = json.loads((folder / "summary.json").read_text())["stages"][-1]
    lines = [json.loads(line) for line in (folder / "speed.jsonl").read_text().splitlines()]
    return stage["reward"], stage["steps"], min(line["step_seconds"] for line in lines)


def main() -> None:
    """Read runs and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("rows", nargs="+", metavar="NAME=GLOB")
    parser.add_argument("--images", type=int, required=True)
    args = parser.parse_args()
    figure = Figure(figsize=(8.4, 5.2), layout="constrained")
    plots = figure.subplots(2, len(FIGURES), sharey="col")
    for colour, row in zip(COLOURS, args.rows, strict=False):
        name, pattern = row.split("=")
        for folder in map(pathlib.Path, sorted(glob.glob(pattern))):
            told, steps, seconds = history(folder)
            for line, scale in zip(plots, (args.images / steps, seconds), strict=True):
                for plot, key in zip(line, FIGURES, strict=True):
                    x, y = [entry["step"] * scale for entry in told], [entry[f"heldout_{key}"] for entry in told]
                    plot.plot(x, y, color=colour, label=name, marker=".", linewidth=1)
    for line, unit in zip(plots, ("images", "seconds on one core"), strict=True):
        for plot, title in zip(line, FIGURES.values(), strict=True):
            plot.set_title(title, fontsize=9)
            plot.set_xlabel(unit, fontsize=8)
            plot.tick_params(labelsize=7)
            plot.grid(alpha=0.25)
    handles = dict(zip(*reversed(plots[0][0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=len(handles), fontsize=8, frameon=False)
    drawn = args.file.with_suffix(".png")
    figure.savefig(drawn, dpi=110)
    if drawn != args.file:
        Image.open(drawn).convert("RGB").save(args.file, lossless=True)
        drawn.unlink()


if __name__ == "__main__":
    main()
