# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Judge a model by a public benchmark: uso-evaluate STAGE BENCHMARK --to DIR ...

    prepare    the benchmark's data to DIR/items.jsonl
    generate   items to images in DIR/MODEL/images
    score      images, whoever made them, to DIR/MODEL/summary.json, summary.csv and items.csv
    report     all models that were scored, to DIR/report.html, report.json and report.csv
    table      score and report several models in one command, with images of other programs under their own names

BENCHMARK is one of uso_bench, dreambench, omnicontext, multiid, mico, sconeeval, innocomposer, viton_hd, fashion130k,
triplets, dreambenchpp, or mini. Every stage goes on where it was stopped. Exit codes: 2 for a mistake, 3 if something
is missing or could not be judged; what, stands in the summary.
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from uso_jax.commands.adapter_flags import add_adapter_flags, given_adapters
from uso_jax.commands.option_flags import add_option_flags, given_options
from uso_jax.commands.weights_flags import add_products_flag
from uso_jax.common import locks, untrusted
from uso_jax.common.errors import InputError, exit_cleanly
from uso_jax.evaluation import benchmark as benchmarks
from uso_jax.evaluation import generation
from uso_jax.evaluation import items as item
from uso_jax.evaluation.metrics.base import Tools
from uso_jax.evaluation.metrics.encoders import Networks
from uso_jax.evaluation.naming import Naming
from uso_jax.evaluation.protocol import Wording
from uso_jax.inference.options import GenerationOptions

INCOMPLETE = 3


@exit_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    """Run one stage; mistakes of the user end with exit code 2."""
    args = _parser().parse_args(argv)
    args.benchmark = benchmarks.by_name(args.benchmark)
    args.to = pathlib.Path(args.to)
    _check_name("--model", getattr(args, "model", "x"))
    stages = {"prepare": _prepare, "generate": _generate, "score": _score, "report": _report, "table": _table}
    stage = stages[args.stage]
    # Models are independent: each has a folder, and so a lock.
    with locks.hold(args.to / getattr(args, "model", "")):
        code = stage(args)
    sys.exit(code)


def _prepare(args: argparse.Namespace) -> int:
    options = {}
    for text in args.option:
        name, sign, value = text.partition("=")
        if not sign:
            raise InputError(f"--option {text!r} must be NAME=VALUE")
        options[name] = value
    data = pathlib.Path(args.data)
    if not data.exists() and not args.benchmark.draws:
        raise InputError(f"--data {args.data} does not exist; {args.benchmark.title} needs {args.benchmark.data}")
    found = benchmarks.resized(args.benchmark.items(data, options), args.size, args.limit)
    path = item.write_items(args.to, found)
    print(f"Wrote {path}: {len(found)} items, {sum(one.num_images for one in found)} images.")
    return 0


def _generate(args: argparse.Namespace) -> int:
    items = item.read_items(args.to, args.benchmark.name)
    options = GenerationOptions(**given_options(args))
    folder = args.to / args.model / "images"
    made, had = generation.generate_images(
        items,
        folder,
        args.weights,
        options,
        batch_size=args.batch_size,
        verify=args.verify,
        quantize_activations=args.quantize_activations,
        **given_adapters(args),
    )
    print(f"{folder}: {made} images made, {had} were finished.")
    return 0


def _check_name(flag: str, name: str) -> None:
    if re.search(r"[/\\]|^\.|^$", name):
        raise InputError(f"{flag} {name!r} names a folder in --to, so it has no slash and no leading dot")


def _score(args: argparse.Namespace) -> int:
    return _score_model(args, args.model, args.images, item.read_items(args.to, args.benchmark.name), _networks(args))


def _table(args: argparse.Namespace) -> int:
    """Score every model of --models, then write the report of these."""
    items, models = item.read_items(args.to, args.benchmark.name), {}
    for text in args.models:
        name, sign, images = text.partition("=")
        _check_name("--models", name)
        if name in models or (sign and not images):
            raise InputError(f"--models {text!r}: pass each model once, as NAME, NAME=FOLDER or NAME=PATTERN")
        models[name] = images
        folder, naming = Naming.split(images or str(args.to / name / "images"))
        if not pathlib.Path(folder).is_dir():
            raise InputError(f"--models {text!r}: {folder} is not a folder of images")
        naming.check(items, f"--models {name}")
    networks, codes = _networks(args), []
    for name, images in models.items():
        print(f"{name}:")
        with locks.hold(args.to / name):
            codes.append(_score_model(args, name, images, items, networks))
    args.models = list(models)
    return max(*codes, _report(args))


def _score_model(args: argparse.Namespace, model: str, where: str | None, items: list, networks: Any) -> int:
    """Score a model's images; `where` is their folder or pattern, by default DIR/MODEL/images."""
    from uso_jax.evaluation import gallery, scoring, summary
    from uso_jax.evaluation.score_log import ScoreLog

    metrics = scoring.choose_metrics(args.benchmark, args.metrics.split(",") if args.metrics else None)
    folder = args.to / model
    given = gather(args, folder, networks)
    source, naming = Naming.split(where or str(folder / "images"))
    naming.check(items, f"--model {model}")
    images = pathlib.Path(source).absolute()
    found = gallery.find_images(images, items, any_size=args.any_size, naming=naming)
    log = ScoreLog(folder / "scores.jsonl")
    scores = scoring.score_images(metrics, items, found, log, given, batch_size=args.batch_size)
    told = summary.summarise(args.benchmark, model, items, found, scores, compat=args.compat)
    told |= {"images": untrusted.printable(images), "naming": naming.pattern}
    told["judge"] = judge_record(given)
    summary.write_summary(folder, told, args.benchmark, items, scores)
    for name, cell in told["table"].items():
        interval = f"  [{cell['low']:.3f}, {cell['high']:.3f}]" if "low" in cell else ""
        print(f"{name:24} {cell['value']:8.3f}{interval}{_beside(told['other'], name)}")
    for name in told["other"]["table"].keys() - told["table"].keys():
        print(f"{name:24} {'none':>8}{_beside(told['other'], name)}")
    return _complete(told, folder)


def _beside(other: dict, name: str) -> str:
    """Return the value of the other rule as text, where it differs."""
    if name not in other["table"]:
        return ""
    return f"  {other['mode']}: {cell['value']:.3f}" if (cell := other["table"][name]) else f"  {other['mode']}: none"


def _complete(told: dict, folder: pathlib.Path) -> int:
    images = told["pictures"]
    print(f"{images['scored']} of {images['requested']} images; {folder / 'summary.json'}")
    if told["complete"]:
        return 0
    failed = sum(bool(one["metric"]) for one in told["problems"])
    print(
        f"incomplete: {images['missing_or_bad']} missing or bad, {images['extra']} extra, {failed} not judged;"
        " each is listed there",
        file=sys.stderr,
    )
    return INCOMPLETE


def _report(args: argparse.Namespace) -> int:
    from uso_jax.evaluation.report import html

    told = html.read_summaries(args.to, args.models)
    path = html.write_report(args.to, args.benchmark, item.read_items(args.to, args.benchmark.name), told)
    print(f"Wrote {path}")
    if incomplete := [one["model"] for one in told if not one["complete"]]:
        print(f"incomplete: {', '.join(incomplete)}", file=sys.stderr)
        return INCOMPLETE
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    by_name = {}
    for name in ("prepare", "generate", "score", "report", "table"):
        by_name[name] = stages.add_parser(name)
        by_name[name].add_argument("benchmark", metavar="BENCHMARK", help="its name, such as uso_bench or mini")
        by_name[name].add_argument("--to", required=True, metavar="DIR", help="folder of this benchmark's results")
    for name in ("generate", "score"):
        by_name[name].add_argument("--model", default="uso", help="name of what is judged (default: %(default)s)")
    for name in ("generate", "score", "table"):
        by_name[name].add_argument("--batch_size", type=_count, default=32, metavar="N", help="(default: %(default)s)")
    add = by_name["prepare"].add_argument
    add("--data", required=True, metavar="PATH", help="where the benchmark's own files are")
    add("--option", action="append", default=[], metavar="NAME=VALUE", help="of the benchmark, see docs/evaluate.md")
    add("--size", type=int, metavar="PIXELS", help="long side of images in place of the benchmark's; 0 takes any")
    add("--limit", type=_count, metavar="N", help="items of each subset (default: all)")
    add = by_name["generate"].add_argument
    add("--weights", default="mini", metavar="DIR", help='weights directory, or "mini" (default)')
    add("--verify", action="store_true", help="compare every file of the weights with its SHA-256 before loading them")
    add_adapter_flags(by_name["generate"])
    add_products_flag(by_name["generate"])
    add_option_flags(by_name["generate"], ["num_steps", "guidance"])
    by_name["score"].add_argument(
        "--images", metavar="WHERE", help="folder or pattern of another model's images (default: DIR/MODEL/images)"
    )
    by_name["table"].add_argument(
        "--models", nargs="+", required=True, metavar="NAME=WHERE",
        help="models, with the folder of their images or a pattern of their names (default: DIR/NAME/images)",
    )  # fmt: skip
    for name in ("score", "table"):
        _add_score_flags(by_name[name].add_argument)
    by_name["report"].add_argument("--models", nargs="+", metavar="NAME", help="default: all that were scored")
    return parser


def _add_score_flags(add: Callable) -> None:
    add("--metrics", metavar="A,B", help="default: all of the benchmark")
    add("--metric_weights", metavar="DIR", help='weights directory with the metrics\' networks, or "mini"')
    add("--compat", action="store_true", help="the published scripts' quirks too")
    add("--any_size", action="store_true", help="take images of another size than the items'")
    add("--judge", metavar="SPEC", help="MODEL@URL of an endpoint, fake, or replay: kept answers")
    add("--key_over_http", action="store_true", help="send the judge's key to another machine without encryption")
    add("--judge_prompts", metavar="DIR", help="published texts, or JSON of own texts, see docs/protocols.md")
    add("--faces", metavar="NPZ", help="face embeddings of all images, see docs/evaluate.md")
    add("--texts", metavar="JSON", help="what a text reader saw in each image, see docs/evaluate.md")


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _networks(args: argparse.Namespace) -> Networks | None:
    return Networks(args.metric_weights, batch_size=args.batch_size) if args.metric_weights else None


def gather(args: argparse.Namespace, folder: pathlib.Path, networks: Networks | None) -> Tools:
    """Open what was named; the judge's replies are kept in FOLDER/judge.jsonl.

    Raises:
      InputError: a file is missing or of another form.
    """
    from uso_jax.evaluation.metrics import faces, ocr
    from uso_jax.vlm import judges

    return Tools(
        networks=networks,
        vlm=judges.open_judge(args.judge, folder / "judge.jsonl", key_over_http=args.key_over_http)
        if args.judge
        else None,
        faces=faces.Embeddings.read(args.faces) if args.faces else None,
        reader=ocr.Reader.read(args.texts) if args.texts else None,
        prompts=_wording(args) if args.judge_prompts else None,
        compat=args.compat,
    )


def judge_record(tools: Tools) -> dict[str, Any] | None:
    """Say which judge answered, and from when its answers are."""
    return None if tools.vlm is None else tools.vlm.record()


def _wording(args: argparse.Namespace) -> Wording:
    if args.benchmark.judge is None:
        raise InputError(f"--judge_prompts: {args.benchmark.name} has no judge; leave it out")
    found = map(benchmarks.by_name, benchmarks.MODULES)
    known = {one.name: one.judge for one in found if one.judge}
    return Wording.read(pathlib.Path(args.judge_prompts), args.benchmark.judge, known)
