# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The losses that a stage can minimise, by name.

An objective is a module with up to four functions. Drawing is separate from the loss, so that the loss is a pure
function: gradient accumulation only splits the draws, and a held-out loss uses the same draws on every call.

    components(stage) -> names                               of the weights components it reads
    draw(rng, system, stage) -> Draws                        everything random in one step, per example
    loss(params, system, stage, batch, draws) -> scalar      in float32; `teacher=` where a stage has one
    sample(params, system, stage, batch, settings) -> uint8  images [b, h, w, 3] for the sample grid; may be absent
"""

from types import ModuleType

from uso_jax.training.objectives import (
    awm,
    classification,
    descriptors,
    distillation,
    flow_matching,
    grpo,
    guidance,
    image_text,
    nft,
    reconstruction,
    words,
)

OBJECTIVES: dict[str, ModuleType] = {
    "flow_matching": flow_matching,
    "guidance": guidance,
    "distillation": distillation,
    "reconstruction": reconstruction,
    "image_text": image_text,
    "descriptors": descriptors,
    "classification": classification,
    "words": words,
}

# The losses of a stage with a policy (uso_jax.training.policy). Such a module has, besides `draw`:
#     roll_out(params, system, stage, inputs, rng) -> tokens of images, and arrays that the loss reads of them
#     loss(params, old, anchor, system, stage, batch, draws) -> scalar and figures
POLICIES: dict[str, ModuleType] = {"nft": nft, "awm": awm, "grpo": grpo}
