# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Fit a scorer to the choices of people between a run's images, for use as a reward.

    uso-app --preferences runs/policy            people choose the better of two images
    uso-prefer runs/policy --to preference.json  fits a scorer to the choices
    ... weights={"preference:preference.json": 1.0}   in a stage with a policy or a reward

A fifth of the requests is held out. The accuracy is the share of their pairs on which the scorer agrees with the
people; beside it stands that of each reward alone, and 0.5 is chance.
"""

import argparse
import pathlib
from collections.abc import Sequence

from uso_jax.common import atomic_files
from uso_jax.common.errors import InputError, exit_cleanly


@exit_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    """Fit and write the scorer. User errors end with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("workdir", type=pathlib.Path, metavar="WORKDIR", help="of the run whose images were judged")
    add("--to", type=pathlib.Path, required=True, metavar="FILE", help="scorer to write; it must not exist")
    add("--weights", default="mini", metavar="DIR", help="directory with the run's reward networks (default: mini)")
    add(
        "--rewards",
        nargs="+",
        default=(),
        metavar="NAME",
        help="what the scorer is built from, such as csd_style dino_content (default: all that the weights allow)",
    )
    args = parser.parse_args(argv)
    if args.to.exists():
        raise InputError(f"{args.to} exists; choose another --to, or remove it")
    with atomic_files.explained(args.to, "choose another --to"):
        atomic_files.probe(args.to)
    from uso_jax.training import preference_fit  # slow to import, which --help does not need

    fitted = preference_fit.fit(args.workdir, args.weights, args.rewards)
    if fitted.damaged:
        print(f"{len(fitted.damaged)} lines are skipped: {fitted.damaged[0]}")
    if fitted.lost:
        print(f"{fitted.lost} verdicts are skipped: their images are no longer in {args.workdir / 'rollouts'}")
    scorer = fitted.scorer
    scorer.write(args.to)
    used, held = scorer.pairs
    print(f"Fitted to {used} pairs and measured on {held} others; {fitted.undecided} of all are without a decision.\n")
    print(f"{'agrees with people on held-out pairs':<40}{scorer.accuracy:>6.3f}")
    for name, accuracy in fitted.single.items():
        print(f"{name + ' alone':<40}{accuracy:>6.3f}")
    if scorer.accuracy <= max(0.5, *fitted.single.values()):
        print("\nThe scorer is no better than a reward alone: judge more pairs before you train with it.")
    print(f'\nWritten: {args.to}. In a stage: weights={{"preference:{args.to}": 1.0}}')
