# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A profile of a few steps of a run, for TensorBoard's profile plug-in or xprof."""

import pathlib
from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class ProfileConfig:
    """Which steps to profile."""

    start: int  # the first, counted over all stages from 1; 0: none
    steps: int

    def __post_init__(self):
        if self.start < 0 or (self.start and self.steps < 1):
            raise ValueError(f"profile: start {self.start} must not be negative, nor steps {self.steps} less than 1")


class ProfileWindow:
    """Records the steps that a configuration names; each process writes a file of its own."""

    def __init__(self, config: ProfileConfig, directory: pathlib.Path):
        self._config, self._directory, self._running = config, directory, False

    def before(self, step: int) -> None:
        """Begin with the first step of the window; a run resumed inside it begins there."""
        config = self._config
        if config.start and not self._running and config.start <= step < config.start + config.steps:
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def after(self, step: int, results: object) -> None:
        """End with the last step of the window, when the devices have done it."""
        if self._running and step >= self._config.start + self._config.steps - 1:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """End a window that the run leaves open."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
