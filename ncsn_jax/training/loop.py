"""The training loop: steps, with logging, callbacks and saves between them."""

import contextlib
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Any

import jax
from etils import epath
from tqdm import tqdm

from ncsn_jax.data import Batch, fingerprint, given_batches, training_batches
from ncsn_jax.runtime import processes
from ncsn_jax.runtime.determinism import pinned
from ncsn_jax.runtime.errors import ArgumentError, PreemptedError, UserError
from ncsn_jax.runtime.paths import expanded
from ncsn_jax.runtime.streams import stream
from ncsn_jax.training import description
from ncsn_jax.training import workdir as workdirs
from ncsn_jax.training.callbacks import Callback, LeftError, Log, held_out_losses
from ncsn_jax.training.checkpoints import Checkpoints
from ncsn_jax.training.experiment import Experiment
from ncsn_jax.training.logging import MetricsWriter, NoMetrics, StepLog, kept_lines
from ncsn_jax.training.manifest import run_facts, versions
from ncsn_jax.training.parallel import PmapStep, pmap_step, replicate, replicated
from ncsn_jax.training.preemption import Notice
from ncsn_jax.training.resume import restored
from ncsn_jax.training.retrying_saver import Saver
from ncsn_jax.training.snapshots import KEEP_ALL, snapshots_in
from ncsn_jax.training.state import Averages, TrainState
from ncsn_jax.typing import PRNGKey


@pinned()
def train(
    experiment: Experiment, workdir: str | PathLike[str], *, callbacks: Sequence[Callback] = ()
) -> TrainState:
    """Train a score network in a directory, or resume its training there.

    The directory gets `config.json`, `checkpoints/`, `metrics.jsonl` and `tensorboard/`. If it holds
    checkpoints of this run, training resumes from the newest intact one, and ends with the same bits as an
    uninterrupted run.

    If there are several processes (see `ncsn_jax.runtime.processes`), each must call this. All of them
    write the checkpoints together; the first one writes everything else to its own `workdir`.

    Args:
      experiment: the network, the objective, the optimizer, the data and the settings; the same in every
        process.
      workdir: the run's directory; created if missing.
      callbacks: pairs `(every, run)`, in this order after the held-out loss. `run(step, state, log)` is
        called in every process after each `every`-th step and after the last; scalars that it returns in a
        dictionary are logged, and `log` takes pictures (`ncsn_jax.training.callbacks.Log`). The next step
        reuses the state's memory: `jax.device_get` makes a lasting copy. Callbacks run before the save of
        their step; an error in one ends the run, and the last checkpoint stays. SIGTERM may end the process
        inside a callback, which then runs again when the run resumes.

    Returns:
      The last state.

    Raises:
      UserError: if the settings don't fit the machine, the data or the directory, which then stays untouched;
        or if more steps aren't finite, or more saves fail, than the settings allow, in which case the last
        good checkpoint stays.
      PreemptedError: if the process is told to end (SIGTERM, or the cluster's notice) after the first step;
        the state is saved.
    """
    workdir = Path(expanded(workdir))
    described, settings = experiment.described, experiment.settings
    processes.require_equal(_agreed(experiment))
    processes.together(lambda: _check_batches(experiment))
    processes.together(experiment.abstract_state)
    if experiment.test is not None:
        callbacks = [*held_out_losses(experiment), *callbacks]
    with workdirs.opened(workdir, settings, described):
        return _train(experiment, workdir, callbacks)


def _agreed(experiment: Experiment) -> dict[str, Any]:
    """Return the settings and versions on which all processes must agree."""
    identity = {"identity": experiment.identity, "settings": experiment.settings.model_dump()}
    return description.flatten(identity) | {f"version of {name}": v for name, v in versions().items()}


def require_divisible(batch_size: int) -> None:
    """Check that the devices can share a batch.

    Raises:
      ArgumentError: if they can't.
    """
    devices = jax.device_count()
    if batch_size % devices:
        raise ArgumentError(
            f"batch_size={batch_size} is not divisible by {devices} devices; use a multiple of {devices}"
        )


def _check_batches(experiment: Experiment) -> None:
    """Check that the batches can be made, and shared by the devices."""
    batch_size = experiment.settings.batch_size
    require_divisible(batch_size)
    if experiment.train is not None and batch_size > len(experiment.train):
        raise ArgumentError(
            f"batch_size={batch_size} is more than the {len(experiment.train)} training examples; use at "
            "most that"
        )
    if experiment.settings.keep_best and experiment.test is None:
        raise ArgumentError(
            f"keep_best={experiment.settings.keep_best}: found no test examples, whose loss decides which "
            "checkpoints are best"
        )
    if experiment.test is not None and not len(experiment.test):
        raise UserError("test has no examples; accepted: at least one, or test=None")


def _train(experiment: Experiment, workdir: Path, callbacks: Sequence[Callback]) -> TrainState:
    settings, described = experiment.settings, experiment.described
    data = None if experiment.train is None else fingerprint(experiment.train, experiment.test)
    facts = run_facts(described.content, data, _inputs(experiment), settings.ema_lengths)
    processes.require_equal({"data": facts["data"]} | facts["jax"])
    step_fn = pmap_step(
        loss=experiment.loss(training=True),
        optimizer=experiment.optimizer,
        ema_rate=settings.ema_rate,
        ema_warmup=settings.ema_warmup,
        ema_lengths=settings.ema_lengths,
    )
    train_key = stream(settings.seed, "training")

    def due(step: int, every: int | None) -> bool:
        return step > 0 and every is not None and (step % every == 0 or step == settings.num_steps)

    with contextlib.ExitStack() as stack:
        directory = workdirs.checkpoint_dir(workdir, settings.checkpoint_dir)
        _require_shared(directory)
        found = restored(directory, experiment.abstract_state(), described, facts)
        first_step = 0 if found is None else int(found.state.step)
        processes.by_first(lambda: kept_lines(workdir, first_step))
        processes.by_first(lambda: description.write(workdir, described))
        checkpoints = stack.enter_context(
            Checkpoints(directory, keep=settings.keep_checkpoints, keep_best=settings.keep_best)
        )
        batches = _batches(experiment, first_step)
        if found is None:
            processes.say(f"{workdir}: starts a run")
            state, batches = _initial_state(experiment, step_fn, batches, train_key)
        else:
            names = checkpoints.set_aside(list(found.damaged))
            for name, (step, reason) in zip(names, found.damaged.items(), strict=True):
                processes.say(f"{checkpoints.directory}/{step} is damaged ({reason}); renamed to {name}")
            with_what = f", with {', '.join(found.changed)}" if found.changed else ""
            processes.say(f"{workdir}: resumes from step {first_step}{with_what}")
            state = found.state
        metrics = stack.enter_context(
            MetricsWriter(workdir, first_step) if processes.is_first() else NoMetrics()
        )
        notice = stack.enter_context(Notice())
        of_run = (settings.max_failed_saves, facts, metrics.sync, notice.has_come)
        saver = Saver(checkpoints, *of_run)
        snapshots, snapshot_every = None, settings.ema_snapshot_every
        if snapshot_every is not None:
            place = Checkpoints(snapshots_in(directory), keep=KEEP_ALL)
            snapshots = Saver(stack.enter_context(place), math.inf, *of_run[1:], what="the averages")
        progress = stack.enter_context(
            tqdm(
                initial=first_step,
                total=settings.num_steps,
                unit="step",
                desc=str(workdir),
                disable=not processes.is_first(),
            )
        )
        log = StepLog(metrics, progress, settings, int(state.num_skipped))
        callback_log = Log(workdir, metrics, notice.has_come)
        # A process that was told to end may have saved this step before all of its callbacks had run.
        num_run = len(callbacks) if found is None else found.record.get("callbacks", len(callbacks))

        for step in range(first_step, settings.num_steps + 1):
            is_restored = step == first_step
            if not is_restored:
                state, values = step_fn(state, next(batches), train_key)
                num_run = 0
                log.add(step, values)
                notice.arm()
                if due(step, settings.checkpoint_every):
                    saver.settle()  # a line of the second checkpoint's step shows that the first one existed
                if due(step, settings.log_every) or due(step, settings.checkpoint_every):
                    log.write()

            test_loss = None
            for every, run in callbacks[num_run:]:
                if due(step, every):
                    if notice.has_come():
                        break
                    log.check()
                    leave = functools.partial(_leave, log, saver, snapshots, step, state, num_run, test_loss)
                    try:
                        with log.paused(), notice.leaving_by(leave):
                            returned = run(step, state, callback_log) or {}
                    except LeftError:
                        break
                    scalars = {name: float(value) for name, value in returned.items()}
                    if scalars:
                        metrics.scalars(step, **scalars)
                        test_loss = scalars.get("test_loss", test_loss)
                num_run += 1
            if snapshots is not None and (
                due(step, snapshot_every) or (due(step, settings.log_every) and snapshots.is_behind())
            ):
                saver.settle()  # Orbax's barriers allow one save at a time
                averages = Averages(state.ema_params, state.second_ema_params)
                snapshots.save(step, averages, num_updates=_num_updates(state))
            if is_restored:
                continue

            is_over = notice.is_due(step)
            # The save comes last: a saved step has all its output, and an unsaved one is repeated.
            if (
                is_over
                or due(step, settings.checkpoint_every)
                or (due(step, settings.log_every) and saver.is_behind())
            ):
                log.write()
                if snapshots is not None:
                    snapshots.settle()  # a run that resumes from this checkpoint won't make them again
                is_last = is_over or step == settings.num_steps
                save = saver.finish if is_last else saver.save
                save(step, state, test_loss=test_loss, callbacks=num_run, num_updates=_num_updates(state))
            if is_over:
                raise PreemptedError(_saved(step))
    return state


def _inputs(experiment: Experiment) -> list[int] | None:
    """Return the shape of the network's x, for the record; None if the network takes a condition, too."""
    x, condition = experiment.inputs
    return list(x.shape) if condition is None else None


def _num_updates(state: TrainState) -> int:
    return int(state.step) - int(state.num_skipped)


def _leave(
    log: StepLog,
    saver: Saver,
    snapshots: Saver | None,
    step: int,
    state: TrainState,
    num_run: int,
    test_loss: float | None,
) -> None:
    """Save a state in the middle of a callback."""
    log.write()
    if snapshots is not None:
        snapshots.settle()
    saver.finish(step, state, test_loss=test_loss, callbacks=num_run, num_updates=_num_updates(state))
    processes.say(_saved(step))


def _saved(step: int) -> str:
    return f"preempted: saved at step {step}; rerun to resume"


def _batches(experiment: Experiment, first_step: int) -> Iterator[Batch]:
    """Return the batches from a step on."""
    settings = experiment.settings
    if experiment.batches is None:
        return training_batches(
            experiment.train, batch_size=settings.batch_size, seed=settings.seed, first_step=first_step
        )
    return given_batches(experiment.batches(first_step), batch_size=settings.batch_size)


def _initial_state(
    experiment: Experiment, step_fn: PmapStep, batches: Iterator[Batch], key: PRNGKey
) -> tuple[TrainState, Iterator[Batch]]:
    """Draw the first state, on all devices, while XLA compiles the step; return it and the batches."""
    first = next(batches)
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated()),
        experiment.abstract_state(),
    )
    with ThreadPoolExecutor() as executor:
        for program in step_fn.lowered(like, first, key):
            executor.submit(program.compile)  # so that the first step finds it compiled
        return replicate(experiment.initial_state()), itertools.chain([first], batches)


def _require_shared(directory: epath.Path) -> None:
    """Check that all processes see the directory of the checkpoints; create it if missing."""
    if jax.process_count() == 1:
        return
    mark = directory / "seen.partial"

    def write() -> None:
        directory.mkdir(parents=True, exist_ok=True)
        mark.write_text("")

    def look() -> None:
        if not mark.exists():
            raise UserError(
                f"{directory} is not visible to all processes: use a shared place, such as "
                "`checkpoint_dir=gs://bucket/run`"
            )

    processes.by_first(write)
    try:
        processes.together(look)
    finally:
        if processes.is_first():
            mark.unlink()
