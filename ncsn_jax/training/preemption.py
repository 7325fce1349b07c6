"""The notice that the machine is wanted back: SIGTERM, or what the cluster sends."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

STATUS = 143
"""The exit status of a process that has saved its state and ended: 128 + SIGTERM, as a shell has it."""


class Notice:
    """Whether training is to be saved and ended; a context that leaves SIGTERM as it was.

    Of several processes, jax's coordination service catches the signal in any of them, and names a step that
    none has made yet, at which all end. A process alone catches it itself once it is `armed`: there is
    nothing to save before the first step.
    """

    def __init__(self) -> None:
        self._before = signal.getsignal(signal.SIGTERM)
        self._has_come = False
        self._wakeup: int | None = None
        self._leave: Callable[[], None] | None = None
        self._lock = threading.Lock()

    def arm(self) -> None:
        """From now on a signal doesn't end the process."""
        is_main = threading.current_thread() is threading.main_thread()
        if self._wakeup is None and is_main and jax.process_count() == 1:
            signals, self._wakeup = os.pipe()
            os.set_blocking(self._wakeup, False)
            signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(signals,), daemon=True).start()
            signal.signal(signal.SIGTERM, self._take)

    def has_come(self) -> bool:
        """Whether this process has the notice; of several, `is_due` tells when all end."""
        return self._has_come

    def is_due(self, step: int) -> bool:
        """Whether to end at this step; every process must ask after every step."""
        return self._has_come or (
            jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)
        )

    @contextlib.contextmanager
    def leaving_by(self, leave: Callable[[], None]) -> Iterator[None]:
        """Inside, the notice calls a function at once, and ends the process with `STATUS`.

        The handler of a signal would wait for a compilation, which may take longer than the machine stays.
        """
        with self._lock:
            self._leave = leave
        try:
            yield
        finally:
            with self._lock:  # waits for the end, if it has come
                self._leave = None

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._has_come = True

    def _watch(self, signals: int) -> None:
        """Reads the signals, which come while other threads compile, too."""
        while received := os.read(signals, 1):
            with self._lock:
                if received[0] == signal.SIGTERM and self._leave is not None:
                    self._leave()
                    os._exit(STATUS)
        os.close(signals)

    def __enter__(self) -> "Notice":
        return self

    def __exit__(self, *_) -> None:
        if self._wakeup is not None:
            signal.set_wakeup_fd(-1)
            os.close(self._wakeup)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)
