"""The numbers of a run: `metrics.jsonl` and TensorBoard events."""

import contextlib
import json
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import masked_crc32c
from tqdm import tqdm

from ncsn_jax.runtime import processes
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.runtime.files import AppendedFile, write_whole
from ncsn_jax.training.settings import RunSettings

METRICS, EVENTS = "metrics.jsonl", "tensorboard"
MEANS = ("loss", "gradient_norm")
"""The values that a line averages over the steps since the previous line."""


class MetricsWriter:
    """A writer of scalars and pictures of training steps; a resumed run continues from the restored step.

    If the disk is full, the data wait in memory until there is space.

    Args:
      workdir: the run's directory; it gets `metrics.jsonl` and `tensorboard/`.
      first_step: the step that training starts or resumes from. Lines of later steps are dropped, because
        those steps are repeated.
    """

    def __init__(self, workdir: Path, first_step: int):
        path, events = workdir / METRICS, workdir / EVENTS
        kept = kept_lines(workdir, first_step)
        write_whole(path, lambda file: file.write("".join(kept).encode()))
        # A callback of the first step may run again, if it had run before a process ended.
        self._first_step = first_step
        self._known = {tuple(sorted(line)) for line in map(json.loads, kept) if line["step"] == first_step}
        events.mkdir(exist_ok=True)
        self._lines = AppendedFile(path)
        self._events = AppendedFile(events / f"events.out.tfevents.{time.time_ns()}")
        self._is_full = False
        self._lock = threading.RLock()  # the notice of preemption is handled by a thread
        for fields in ({}, {"session_log": SessionLog(status=SessionLog.START)}):
            self._add_event(first_step + 1, file_version="brain.Event:2", **fields)

    def scalars(self, step: int, **values: float) -> None:
        """Add a line to `metrics.jsonl` and a point to each curve, unless the first step has such a line."""
        if step == self._first_step and tuple(sorted({"step", *values})) in self._known:
            return
        with self._lock:
            self._lines.append((json.dumps({"step": step, **values}) + "\n").encode())
            for name, value in values.items():
                self._add_event(step, summary=summary.scalar(name, value))
            self._try_to_write()

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w c"]) -> None:
        """Add a picture to the TensorBoard events."""
        with self._lock:
            self._add_event(step, summary=summary.image(name, image, dataformats="HWC"))
            self._try_to_write()

    def sync(self) -> None:
        """Write everything to the disk; raise an OSError if the disk doesn't take it."""
        with self._lock:
            self._lines.sync()
            self._events.sync()

    def _add_event(self, step: int, **fields: Any) -> None:
        data = Event(wall_time=time.time(), step=step, **fields).SerializeToString()
        length = struct.pack("<Q", len(data))
        for part in (length, data):  # TFRecord: a checksum follows each part
            self._events.append(part + struct.pack("<I", masked_crc32c(part)))

    def _try_to_write(self) -> None:
        try:
            self._lines.write()
            self._events.write()
            self._is_full = False
        except OSError as error:
            if not self._is_full:
                processes.say(f"metrics can't be written ({error.strerror}); they wait in memory")
            self._is_full = True

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_) -> None:
        self._lines.close()
        self._events.close()


class NoMetrics:
    """A metrics writer that writes nothing, for every process except the first."""

    def scalars(self, step: int, **values: float) -> None:
        """Do nothing."""

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w c"]) -> None:
        """Do nothing."""

    def sync(self) -> None:
        """Do nothing."""

    def __enter__(self) -> "NoMetrics":
        return self

    def __exit__(self, *_) -> None:
        pass


class StepLog:
    """A collector of the steps' values, which become means, a speed and a progress bar.

    Args:
      metrics: the writer of the means.
      progress: the bar, one unit per step.
      settings: `batch_size` and `max_skipped_steps`.
      num_skipped: number of steps skipped so far.
    """

    def __init__(
        self, metrics: MetricsWriter | NoMetrics, progress: tqdm, settings: RunSettings, num_skipped: int
    ):
        self._metrics = metrics
        self._progress = progress
        self._batch_size = settings.batch_size
        self._max_skipped = settings.max_skipped_steps
        self._num_skipped = num_skipped
        self._checked = 0
        self._pending: dict[int, dict[str, jax.Array]] = {}
        self._timed_steps = 0
        self._started = time.monotonic()
        self._first = True

    def add(self, step: int, values: dict[str, jax.Array]) -> None:
        """Add the values of a step, which may still be running.

        This waits for the previous step; at the first step, for that step itself.
        """
        waiting_for = values if self._first else list(self._pending.values())[-1:]
        jax.block_until_ready(waiting_for)
        self._pending[step] = values
        self._progress.update()
        if self._first:  # mostly compilation, so not part of the speed
            seconds = time.monotonic() - self._started
            self._metrics.scalars(step, first_step_seconds=seconds)
            self._started, self._first = time.monotonic(), False
        else:
            self._timed_steps += 1

    def check(self) -> None:
        """Report each step whose loss or gradient isn't finite, once.

        Raises:
          UserError: if there are more such steps than the settings allow; the message names the last one.
        """
        unchecked = {step: values for step, values in self._pending.items() if step > self._checked}
        self._checked = max(self._pending, default=self._checked)
        for step, values in jax.device_get(unchecked).items():
            total = int(values["num_skipped"])
            if total == self._num_skipped:
                continue
            self._num_skipped = total
            self._metrics.scalars(step, skipped_steps=float(total))
            found = (
                f"the loss of step {step} is {values['loss']:g}, and its gradient norm "
                f"{values['gradient_norm']:g}"
            )
            if total > self._max_skipped:
                raise UserError(
                    f"{found}: stopped, because max_skipped_steps={self._max_skipped}; a rerun "
                    "resumes from the last checkpoint and repeats this step. A larger max_skipped_steps "
                    "skips such steps; in a new workdir, a smaller learning rate, a clipped gradient or a "
                    "warm-up may help"
                )
            processes.say(f"{found}: step skipped, {total} of at most {self._max_skipped}")

    def write(self) -> None:
        """Write the means of the finite steps since the last call, and the speed."""
        self.check()
        if not self._pending:
            return
        step = max(self._pending)
        pending = jax.device_get(list(self._pending.values()))
        rows = np.array([[values[name] for name in MEANS] for values in pending])
        finite = rows[np.isfinite(rows).all(axis=1)]
        means: dict[str, float] = {}
        if len(finite):
            means |= zip(MEANS, finite.mean(axis=0).tolist(), strict=True)
        if self._timed_steps:
            seconds = time.monotonic() - self._started
            means["examples_per_second"] = self._timed_steps * self._batch_size / seconds
        self._metrics.scalars(step, **means)
        self._progress.set_postfix({name: f"{value:.4g}" for name, value in means.items()})
        self._pending, self._timed_steps, self._started = {}, 0, time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time inside this context from the speed of training."""
        jax.block_until_ready(list(self._pending.values())[-1:])
        began = time.monotonic()
        yield
        self._started += time.monotonic() - began


def kept_lines(workdir: Path, first_step: int) -> list[str]:
    """Return the lines of `metrics.jsonl` up to a step; write nothing.

    Raises:
      UserError: if metrics can't be written there: `metrics.jsonl` belongs to another program, or
        `tensorboard` is not a directory.
    """
    path, events = workdir / METRICS, workdir / EVENTS
    if events.exists() and not events.is_dir():
        raise UserError(f"{events} is not a directory: move it away")
    return [line for line in _lines(path) if _step(path, line) <= first_step]


def _lines(path: Path) -> list[str]:
    """Return the complete lines of the file; a killed process may leave an incomplete one."""
    if not path.exists():
        return []
    text = path.read_text(errors="backslashreplace")
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _step(path: Path, line: str) -> int:
    """Return the step of a line."""
    try:
        return int(json.loads(line)["step"])
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{path} is not this program's: found {line[:40].strip()!r}; move it away, then rerun"
        ) from error
