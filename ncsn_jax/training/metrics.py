"""The run's numbers: `metrics.jsonl` and TensorBoard events."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8
from tensorboardX import SummaryWriter
from tqdm import tqdm

from ncsn_jax.errors import UserError


class MetricsWriter:
    """Writes scalars and pictures of training steps; after a resume it goes on from the restored step.

    Args:
      workdir: the run's directory; it gets `metrics.jsonl` and `tensorboard/`.
      first_step: the step training goes on from. What an earlier process wrote of later steps is dropped:
        those steps are made again.
    """

    def __init__(self, workdir: Path, first_step: int):
        path = workdir / "metrics.jsonl"
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= first_step]
        partial = workdir / "metrics.jsonl.partial"
        partial.write_text("".join(kept))
        partial.rename(path)
        self._file = path.open("a", buffering=1)
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def scalars(self, step: int, **values: float) -> None:
        """Adds one line to `metrics.jsonl` and one point to each curve."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w c"]) -> None:
        """Adds a picture to the TensorBoard events."""
        self._events.add_image(name, image, step, dataformats="HWC")

    def flush(self) -> None:
        """Leaves nothing in buffers: the lines are written one by one, the events here."""
        self._events.flush()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        self._events.close()


class StepLog:
    """Collects what training steps return, and turns it into means, a speed and a progress bar.

    Args:
      metrics: where the means go.
      progress: the bar, one unit a step.
      batch_size: examples a step.
    """

    def __init__(self, metrics: MetricsWriter, progress: tqdm, batch_size: int):
        self._metrics = metrics
        self._progress = progress
        self._batch_size = batch_size
        self._pending: dict[int, dict[str, jax.Array]] = {}
        self._timed_steps = 0
        self._started = time.monotonic()
        self._first = True

    def add(self, step: int, values: dict[str, jax.Array]) -> None:
        """Takes the values of a step that may still be running; waits for the one before it, or the first."""
        waiting_for = values if self._first else list(self._pending.values())[-1:]
        jax.block_until_ready(waiting_for)
        self._pending[step] = values
        self._progress.update()
        if self._first:  # its time is the compiler's, and not part of the speed
            seconds = time.monotonic() - self._started
            self._metrics.scalars(step, first_step_seconds=seconds)
            self._started, self._first = time.monotonic(), False
        else:
            self._timed_steps += 1

    def check(self) -> None:
        """Makes sure that every step so far was finite.

        Raises:
          UserError: names the first step that wasn't.
        """
        for step, values in jax.device_get(self._pending).items():
            for name in ("loss", "gradient_norm"):
                if not np.isfinite(values[name]):
                    raise UserError(
                        f"the {name} of step {step} is {values[name]}: stopped; the last checkpoint is "
                        "from before it. In a new --workdir, a smaller training.learning_rate, "
                        "a training.gradient_clip or training.warmup_steps may help"
                    )

    def write(self) -> None:
        """Writes the means of the steps since the last call, and their speed."""
        self.check()
        step = max(self._pending)
        pending = jax.device_get(list(self._pending.values()))
        means = jax.tree.map(lambda *values: float(np.mean(values)), *pending)
        if self._timed_steps:
            seconds = time.monotonic() - self._started
            means["examples_per_second"] = self._timed_steps * self._batch_size / seconds
        self._metrics.scalars(step, **means)
        self._progress.set_postfix({name: f"{value:.4g}" for name, value in means.items()})
        self._pending, self._timed_steps, self._started = {}, 0, time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps what is done inside out of the speed of training."""
        jax.block_until_ready(list(self._pending.values())[-1:])
        began = time.monotonic()
        yield
        self._started += time.monotonic() - began


def _lines(path: Path) -> list[str]:
    """The whole lines of the file: a killed process may have left half of one."""
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
