# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One function per command, called by the installed `uso-*` commands and by scripts/*.py.

This module imports nothing slow. Commands that compute on the CPU first call `keep_memory`, which starts the process
again, and only then import their own module. All import it as `lasting`.
"""

import os

from uso_jax.common import extras
from uso_jax.common.errors import exit_cleanly
from uso_jax.common.garbage import lasting
from uso_jax.hardware.malloc import keep_memory


def train() -> None:
    """Run `uso-train`."""
    keep_memory()
    with lasting():
        from uso_jax.commands import train

    train.main()


def generate() -> None:
    """Run `uso-generate`."""
    keep_memory()
    with lasting():
        from uso_jax.commands import generate

    generate.main()


def app() -> None:
    """Run `uso-app`."""
    with lasting():
        from uso_jax.commands import app

    app.main()


def serve() -> None:
    """Run `uso-serve`."""
    keep_memory()
    with lasting():
        from uso_jax.commands import serve

    serve.main()


def style() -> None:
    """Run `uso-style`."""
    with lasting():
        from uso_jax.commands import style

    style.main()


def curate() -> None:
    """Run `uso-curate`."""
    keep_memory()
    with lasting():
        from uso_jax.commands import curate

    curate.main()


@exit_cleanly
def evaluate() -> None:
    """Run `uso-evaluate`."""
    extras.require("eval")
    keep_memory()
    with lasting():
        from uso_jax.commands import evaluate

    evaluate.main()


def plan() -> None:
    """Run `uso-plan`."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # a plan needs no accelerator and must not take one from a job
    with lasting():
        from uso_jax.commands import plan

    plan.main()


def compare() -> None:
    """Run `uso-compare`."""
    with lasting():
        from uso_jax.commands import compare

    compare.main()


def prefer() -> None:
    """Run `uso-prefer`."""
    keep_memory()
    with lasting():
        from uso_jax.commands import prefer

    prefer.main()


def doctor() -> None:
    """Run `uso-doctor`."""
    with lasting():
        from uso_jax.commands import doctor

    doctor.main()
