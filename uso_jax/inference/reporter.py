# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a terminal or a log shows while a pipeline generates images."""

from uso_jax.common import progress


class Reporter:
    """Show the phases of a pipeline, and the steps of those that have some; pass it as `progress`."""

    def __init__(self) -> None:
        self._what, self._bar = "", None

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, what: str, step: int, total: int) -> None:
        """Show that `step` of `total` steps are done, in the phase `what`."""
        if what != self._what or self._bar is None:
            self.close()
            self._what, self._bar = what, progress.bar(desc=what, unit="step", initial=step, leave=False)
        elif step > self._bar.n:
            self._bar.total = total  # a phase without steps shows no total
            self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """End the display of the phase."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
