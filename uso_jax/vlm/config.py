# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The section of a configuration that says which vision-language model is asked, and how."""

import os
import pathlib
from dataclasses import dataclass

from uso_jax.common.errors import InputError
from uso_jax.vlm.client import Vlm


@dataclass(frozen=True)
class VlmConfig:
    """A vision-language model that judges or captions."""

    model: str = ""  # name of the model at the endpoint
    base_url: str = ""  # OpenAI-compatible endpoint, such as http://localhost:8000/v1; "": cached answers only
    key_env: str = "OPENAI_API_KEY"  # environment variable with the endpoint's key
    key_over_http: bool = False  # send the key to another machine without encryption
    threads: int = 8  # questions at once
    timeout: float = 120.0  # seconds until a request counts as failed
    tries: int = 6  # requests before a question counts as failed
    takes: int = 3  # answers without the wanted form before a question counts as failed
    backoff: float = 1.0  # seconds before the second try; doubled for each further one
    max_tokens: int = 1400  # longest answer
    max_pixels: int = 1024 * 1024  # largest image that is sent
    max_failures: int = 50  # failed questions in a row before the program stops

    def open(self, folder: pathlib.Path, process: int, where: str) -> Vlm:
        """Return the client, with a cache file in `folder` for each process; without base_url it reads the cache only.

        `where` is the section of the configuration, for messages.

        Raises:
          InputError: `model` is empty.
        """
        names = ("key_over_http", "timeout", "tries", "takes", "backoff", "max_tokens", "max_pixels")
        options = {name: getattr(self, name) for name in names}
        if not self.model:
            raise InputError(f"this step asks a vision-language model: set {where}.model and .base_url.")
        caches = dict(cache=folder / f"answers_{process}.jsonl", replay=sorted(folder.glob("answers_*.jsonl")))
        return Vlm(self.model, self.base_url, api_key=os.environ.get(self.key_env), **caches, **options)
