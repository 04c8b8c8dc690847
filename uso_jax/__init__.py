# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""USO, unified style- and subject-driven image generation, in JAX.

The names in `__all__` are imported when they are first used, so that `import uso_jax` itself is fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uso_jax.common.config_flag import load_config
    from uso_jax.common.errors import InputError
    from uso_jax.inference.options import GenerationOptions
    from uso_jax.inference.pipeline import USOPipeline
    from uso_jax.models.flux import FluxConfig
    from uso_jax.models.uso import USO
    from uso_jax.models.uso_config import USOConfig
    from uso_jax.training.config import TrainConfig
    from uso_jax.training.fit import fit
    from uso_jax.training.stage import StageConfig
    from uso_jax.weights.pretrained import Pretrained

__version__ = "0.1.0.dev0"
__all__ = [
    "USO",
    "FluxConfig",
    "GenerationOptions",
    "InputError",
    "Pretrained",
    "StageConfig",
    "TrainConfig",
    "USOConfig",
    "USOPipeline",
    "fit",
    "load_config",
]

_MODULES = {
    "FluxConfig": "uso_jax.models.flux",
    "GenerationOptions": "uso_jax.inference.options",
    "InputError": "uso_jax.common.errors",
    "Pretrained": "uso_jax.weights.pretrained",
    "StageConfig": "uso_jax.training.stage",
    "TrainConfig": "uso_jax.training.config",
    "USO": "uso_jax.models.uso",
    "USOConfig": "uso_jax.models.uso_config",
    "USOPipeline": "uso_jax.inference.pipeline",
    "fit": "uso_jax.training.fit",
    "load_config": "uso_jax.common.config_flag",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
