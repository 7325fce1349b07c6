"""Saves that may fail: training goes on, says so, and tries again."""

import os
import re
import time
from collections.abc import Callable

from ncsn_jax import hosts
from ncsn_jax.config import Training
from ncsn_jax.errors import UserError
from ncsn_jax.training.checkpoints import Checkpoints
from ncsn_jax.training.parallel import as_global
from ncsn_jax.training.record import Record, make_record
from ncsn_jax.training.state import TrainState

OS_ERROR = re.compile(r"os_error_code='(\d+)'")
"""How TensorStore's errors, all of one type, tell the operating system's."""
LONGEST_WAIT = 30.0
"""Seconds between two attempts to save the last state of a run."""


class Saver:
    """Saves states in the background and keeps account of the saves that fail.

    Args:
      checkpoints: where to.
      settings: `max_failed_saves`.
      facts: what the record of every checkpoint says (`run_facts`).
      write_metrics: writes what is to be on disk before a checkpoint is.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        settings: Training,
        facts: Record,
        write_metrics: Callable[[], None],
    ):
        self._checkpoints = checkpoints
        self._limit = settings.max_failed_saves
        self._facts = facts
        self._write_metrics = write_metrics
        self._pending: int | None = None
        self._failures = 0

    def is_behind(self) -> bool:
        """Whether the last save has failed, and is to be made up for; every process must ask."""
        if self._pending is not None and not hosts.any_of(self._checkpoints.is_saving()):
            self._settle()
        return self._failures > 0 and self._pending is None

    def save(self, step: int, state: TrainState, test_loss: float | None = None) -> None:
        """Starts to save a state, after the save before has ended.

        Raises:
          UserError: if more saves in a row have failed than the settings allow.
        """
        self._settle()
        self._pending = step
        error = None
        state = as_global(state)
        record = make_record(self._facts, step, state, test_loss)
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

    def finish(self, step: int, state: TrainState, test_loss: float | None = None) -> None:
        """Saves a state, waits until it is saved, and tries again, ever more slowly, where that fails.

        Raises:
          UserError: as `save`.
        """
        self.save(step, state, test_loss)
        self._settle()
        while self._failures:
            time.sleep(min(2.0**self._failures / 4, LONGEST_WAIT))
            self.save(step, state, test_loss)
            self._settle()

    def _settle(self) -> None:
        """Waits for the save in the background, and counts it."""
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

    def _take(self, error: Exception | None) -> None:
        """Counts a failure of any process, and reports it."""
        reason = next(filter(None, hosts.exchange(_reason(error) if error else "")), None)
        if reason is None:
            return
        step, self._pending = self._pending, None
        self._failures += 1
        self._checkpoints.reopen()
        place = self._checkpoints.directory
        if self._failures > self._limit:
            newest = self._checkpoints.steps[-1:]
            raise UserError(
                f"{place}: the state of step {step} can't be saved ({reason}), nor could those of the "
                f"{self._limit} attempts before, which is config.training.max_failed_saves; "
                + (
                    f"the newest checkpoint is of step {newest[0]}: "
                    if newest
                    else "there is no checkpoint: "
                )
                + "mend that, and start the same command again"
            ) from error
        hosts.say(
            f"{place}: the state of step {step} can't be saved ({reason}); training goes on and tries again, "
            f"attempt {self._failures} of {self._limit}"
        )


def _reason(error: Exception) -> str:
    """Why a save has failed, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    code = OS_ERROR.search(text)
    return os.strerror(int(code[1])) if code else f"{type(error).__name__}: {text[:200]}"
