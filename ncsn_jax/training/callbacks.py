"""Callbacks: functions that training calls between its steps, and the held-out loss, which is the first."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8

from ncsn_jax.data import evaluation_batches
from ncsn_jax.runtime.streams import stream
from ncsn_jax.training.experiment import Experiment
from ncsn_jax.training.logging import MetricsWriter, NoMetrics
from ncsn_jax.training.parallel import pmap_evaluation
from ncsn_jax.training.state import TrainState
from ncsn_jax.training.step import evaluation_step


class Log:
    """Log of a callback, for pictures and for a notice of preemption.

    Attributes:
      workdir: the run's directory; the first process alone writes there.
    """

    def __init__(self, workdir: Path, metrics: MetricsWriter | NoMetrics, is_preempted: Callable[[], bool]):
        self.workdir = workdir
        self._metrics = metrics
        self._is_preempted = is_preempted

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w c"]) -> None:
        """Add a picture to the TensorBoard events."""
        self._metrics.picture(step, name, image)

    def leave_if_preempted(self) -> None:
        """End a long callback if the process was told to end; a resumed run calls it again for this step."""
        if self._is_preempted():
            raise LeftError


class LeftError(Exception):
    """The end of a callback in a process that was told to end."""


Callback = tuple[int, Callable[[int, TrainState, Log], Mapping[str, float] | None]]
"""A pair (every, run): `run(step, state, log)` is called in every process after each `every`-th step and
after the last; the scalars that it returns are logged."""


def held_out_losses(experiment: Experiment) -> list[Callback]:
    """Return the callbacks that log `test_loss`: the mean loss of the first test examples, with fixed noise.

    They evaluate the moving average of the parameters every `eval_every` steps, and with `keep_best` at every
    checkpoint, too.
    """
    settings = experiment.settings
    evaluate = pmap_evaluation(functools.partial(evaluation_step, loss=experiment.loss(training=False)))
    key = stream(settings.seed, "evaluation")

    def run(step: int, state: TrainState, log: Log) -> dict[str, float]:
        batches = evaluation_batches(
            experiment.test, count=settings.eval_examples, batch_size=settings.batch_size
        )
        sums = []
        for batch in batches:
            log.leave_if_preempted()
            sums.append(jax.device_get(evaluate(state.ema_params, batch, key)))
        total, count = np.sum(sums, axis=0)
        return {"test_loss": float(total / count)}

    def between(step: int, state: TrainState, log: Log) -> dict[str, float]:
        is_evaluated = step % settings.eval_every == 0 or step == settings.num_steps
        return {} if is_evaluated else run(step, state, log)

    at_checkpoints = [(settings.checkpoint_every, between)] if settings.keep_best else []
    return [(settings.eval_every, run), *at_checkpoints]
