# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Optional dependencies: what `pip install "uso_jax[EXTRA]"` adds, and the check before work that needs it starts."""

import importlib.util

from uso_jax.common.errors import InputError

EXTRAS = {  # names to import; tests/test_packaging.py holds them against pyproject.toml
    "data": ("defusedxml", "resvg_py"),
    "eval": ("httpx", "jinja2", "rapidfuzz", "tenacity"),
    "curation": ("httpx", "imagehash", "tenacity"),
    "app": ("gradio",),
    "serve": ("fastapi", "python_multipart", "uvicorn"),
    "gguf": ("gguf",),
}


def require(extra: str) -> None:
    """Raise an `InputError` with the command to install an extra if one of its packages is missing."""
    missing = [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f'this needs {", ".join(missing)}; install with: pip install "uso_jax[{extra}]"')
