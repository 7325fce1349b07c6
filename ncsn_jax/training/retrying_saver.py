"""Saves that may fail: training continues, logs the failure, and retries."""

import os
import re
import time
from collections.abc import Callable
from typing import Any

from ncsn_jax.runtime import processes
from ncsn_jax.runtime.errors import PreemptedError, UserError
from ncsn_jax.training.checkpoints import Checkpoints
from ncsn_jax.training.manifest import Record, make_record
from ncsn_jax.training.parallel import as_global
from ncsn_jax.training.state import Averages, TrainState

OS_ERROR = re.compile(r"os_error_code='(\d+)'")
"""The operating system's error code in TensorStore's errors, which are all of one type."""
FEW_RETRIES = 5
"""Number of failures, within about 8 s, after which a preempted run ends without its last state."""
LONGEST_WAIT = 30.0
"""The longest pause in seconds between two attempts to save the last state of a run."""


class Saver:
    """A saver of states in the background, which counts failed saves.

    Args:
      checkpoints: the run's checkpoints.
      max_failed_saves: the largest number of failures in a row; infinity for no limit.
      facts: the run's `run_facts`, for the records.
      write_metrics: a function that writes the metrics, which must reach the disk before a checkpoint does.
      is_preempted: a function that returns whether the process was told to end; retries then stop early.
      what: the name of the saved arrays, in messages.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        max_failed_saves: int | float,
        facts: Record,
        write_metrics: Callable[[], None],
        is_preempted: Callable[[], bool] = lambda: False,
        what: str = "the state",
    ):
        self._checkpoints = checkpoints
        self._limit = max_failed_saves
        self._facts = facts
        self._write_metrics = write_metrics
        self._is_preempted = is_preempted
        self._what = what
        self._pending: int | None = None
        self._failures = 0

    def is_behind(self) -> bool:
        """Return whether the last save failed and must be retried; every process must call this."""
        if self._pending is not None and not processes.any_of(self._checkpoints.is_saving()):
            self.settle()
        return self._failures > 0 and self._pending is None

    def settle(self) -> None:
        """Wait for the save in the background, and count its outcome; every process must call this.

        Raises:
          UserError: as in `save`.
        """
        if self._pending is None:
            return
        error = None
        try:
            self._checkpoints.wait()
        except Exception as caught:  # Orbax raises many types
            error = caught
        self._take(error)
        if self._pending is not None:
            self._pending, self._failures = None, 0

    def save(self, step: int, state: TrainState | Averages, **facts: Any) -> None:
        """Start to save a state, after the previous save has ended.

        Args:
          step: the step.
          state: the state.
          **facts: further facts for the record, such as `test_loss` (see `make_record`).

        Raises:
          UserError: if more saves in a row have failed than the settings allow.
        """
        self.settle()
        self._pending = step
        error = None
        state = as_global(state)
        record = make_record(self._facts, step, state, **facts)
        try:
            self._write_metrics()
            self._checkpoints.save(step, state, record)
        except OSError as caught:
            error = caught
        except ValueError as caught:
            if not OS_ERROR.search(str(caught)):
                raise
            error = caught
        self._take(error)

    def finish(self, step: int, state: TrainState | Averages, **facts: Any) -> None:
        """Save a state and wait for it; retry failures, with growing pauses.

        Raises:
          UserError: as in `save`.
        """
        self.save(step, state, **facts)
        self.settle()
        while self._failures:
            if self._failures >= FEW_RETRIES and processes.any_of(self._is_preempted()):
                place = self._checkpoints.directory
                raise PreemptedError(f"preempted: the state of step {step} couldn't be saved in {place}")
            time.sleep(min(2.0**self._failures / 4, LONGEST_WAIT))
            self.save(step, state, **facts)
            self.settle()

    def _take(self, error: Exception | None) -> None:
        """Count a failure in any process, and report it."""
        reason = next(filter(None, processes.exchange(_reason(error) if error else "")), None)
        if reason is None:
            return
        step, self._pending = self._pending, None
        self._failures += 1
        self._checkpoints.reopen()
        place = self._checkpoints.directory
        if self._failures > self._limit:
            newest = self._checkpoints.steps[-1:]
            raise UserError(
                f"{place}: {self._what} of step {step} can't be saved ({reason}), failure {self._failures} "
                f"in a row with max_failed_saves={self._limit}; "
                + (
                    f"the newest checkpoint is of step {newest[0]}; "
                    if newest
                    else "there is no checkpoint; "
                )
                + "fix this, then rerun"
            ) from error
        processes.say(
            f"{place}: {self._what} of step {step} can't be saved ({reason}); training continues and will "
            f"retry (failure {self._failures} of at most {self._limit})"
        )


def _reason(error: Exception) -> str:
    """Return the reason of a failed save, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    code = OS_ERROR.search(text)
    return os.strerror(int(code[1])) if code else f"{type(error).__name__}: {text[:200]}"
