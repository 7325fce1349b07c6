"""The notice of preemption: SIGTERM, or the cluster's own."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

STATUS = 143
"""The exit status of a preempted process that has saved its state: 128 + SIGTERM, as in a shell."""


class Notice:
    """A context that tells whether to save and end training, and restores SIGTERM's handler afterwards.

    With several processes, jax's coordination service catches the signal in any of them, and names a step
    that no process has made yet; all processes end there. A single process catches the signal itself, from
    `arm` on: before the first step, there is nothing to save.
    """

    def __init__(self) -> None:
        self._before = signal.getsignal(signal.SIGTERM)
        self._has_come = False
        self._wakeup: int | None = None
        self._leave: Callable[[], None] | None = None
        self._lock = threading.Lock()

    def arm(self) -> None:
        """Catch SIGTERM from now on, instead of ending the process at once."""
        is_main = threading.current_thread() is threading.main_thread()
        if self._wakeup is None and is_main and jax.process_count() == 1:
            signals, self._wakeup = os.pipe()
            os.set_blocking(self._wakeup, False)
            signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(signals,), daemon=True).start()
            signal.signal(signal.SIGTERM, self._take)

    def has_come(self) -> bool:
        """Return whether this process has received the notice; with several, `is_due` decides when to end."""
        return self._has_come

    def is_due(self, step: int) -> bool:
        """Return whether to end at this step; every process must call this after every step."""
        return self._has_come or (
            jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)
        )

    @contextlib.contextmanager
    def leaving_by(self, leave: Callable[[], None]) -> Iterator[None]:
        """Inside this context, let the notice call a function at once and end the process with `STATUS`.

        A signal handler would wait for a running compilation, and the machine may be gone before that ends.
        """
        with self._lock:
            self._leave = leave
        try:
            yield
        finally:
            with self._lock:  # if `leave` is running, this waits for the process to end
                self._leave = None

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._has_come = True

    def _watch(self, signals: int) -> None:
        """Read the signals in a thread, which also works while another thread compiles."""
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
