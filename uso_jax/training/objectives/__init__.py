# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a stage minimises, by name.

An objective is a module with up to four functions; drawing is apart from the loss, so that the loss is a pure function
of numbers: gradient accumulation only cuts the draws, and a held-out loss uses the same draws every time.

    components(stage) -> names                               of the weights components it reads
    draw(rng, system, stage) -> Draws                        everything random in one step, by example
    loss(params, system, stage, batch, draws) -> scalar      in float32
    sample(params, system, stage, batch, settings) -> uint8  images [b, h, w, 3] for the sample grid; may be absent
"""

import importlib
from types import ModuleType

from uso_jax.training.stage import OBJECTIVE_NAMES

OBJECTIVES: dict[str, ModuleType] = {name: importlib.import_module(f"{__name__}.{name}") for name in OBJECTIVE_NAMES}
