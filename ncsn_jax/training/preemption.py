"""The notice that the machine is wanted back: SIGTERM, or what the cluster sends."""

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Notice:
    """Whether training is to be saved and ended; a context that leaves SIGTERM as it was.

    Of several processes, jax's coordination service catches the signal in any of them, and names a step that
    none has made yet, at which all end. A process alone catches it itself once it is `armed`: there is
    nothing to save before the first step.
    """

    def __init__(self) -> None:
        self._before = signal.getsignal(signal.SIGTERM)
        self._has_come = False

    def arm(self) -> None:
        """From now on a signal doesn't end the process."""
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._take)

    def has_come(self) -> bool:
        """Whether this process has the notice; of several, `is_due` tells when all end."""
        return self._has_come

    def is_due(self, step: int) -> bool:
        """Whether to end at this step; every process must ask after every step."""
        return self._has_come or (
            jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)
        )

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._has_come = True

    def __enter__(self) -> "Notice":
        return self

    def __exit__(self, *_) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)
