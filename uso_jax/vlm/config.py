# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The section of a configuration that says which vision-language model is asked, and how."""

from dataclasses import dataclass


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
