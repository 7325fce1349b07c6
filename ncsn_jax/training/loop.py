"""The training loop: steps, with logging, evaluation, saves and previews between them."""

import contextlib
import functools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from ncsn_jax import data, sampling
from ncsn_jax.config import Config, flatten, parse
from ncsn_jax.models import as_score_fn
from ncsn_jax.plan import plan
from ncsn_jax.runtime import processes, viz
from ncsn_jax.runtime.determinism import pinned
from ncsn_jax.runtime.errors import PreemptedError, UserError
from ncsn_jax.runtime.paths import expanded
from ncsn_jax.runtime.streams import stream
from ncsn_jax.suggest_noise import resolved
from ncsn_jax.training import workdir as run
from ncsn_jax.training.checkpoints import Checkpoints
from ncsn_jax.training.logging import MetricsWriter, NoMetrics, StepLog, kept_lines
from ncsn_jax.training.manifest import Record, run_facts, versions
from ncsn_jax.training.objective import objective
from ncsn_jax.training.parallel import (
    PmapStep,
    as_local,
    pmap_evaluation,
    pmap_step,
    replicate,
    replicated,
)
from ncsn_jax.training.preemption import Notice
from ncsn_jax.training.retrying_saver import Saver
from ncsn_jax.training.state import TrainState
from ncsn_jax.training.step import evaluation_step, example_loss
from ncsn_jax.typing import PRNGKey


@pinned()
def train_and_evaluate(config: Config | ConfigDict, workdir: str | PathLike[str]) -> TrainState:
    """Train a score network in a directory, or resume its training there.

    The directory gets `config.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/` and `samples/`. If it
    holds checkpoints of this run, training resumes from the newest intact one, and ends with the same bits
    as an uninterrupted run.

    If there are several processes (see `ncsn_jax.runtime.processes`), each must call this. All of them
    write the checkpoints together; the first one writes everything else to its own `workdir`.

    Args:
      config: the run's settings, the same in every process except `data.data_dir`; either a `Config` or the
        `ConfigDict` that a file of `configs/` returns.
      workdir: the run's directory; created if missing.

    Returns:
      The last state.

    Raises:
      UserError: if the settings don't fit the machine, the dataset or the directory, which then stays
        untouched; or if more steps aren't finite, or more saves fail, than the settings allow, in which case
        the last good checkpoint stays.
      PreemptedError: if the process is told to end (SIGTERM, or the cluster's notice) after the first step;
        the state is saved.
    """
    config = config if isinstance(config, Config) else parse(config)
    workdir = Path(expanded(workdir))
    processes.require_equal(_agreed(config))
    load_dataset = functools.cache(functools.partial(data.load, config.data))
    config = _with_levels_of_first(config, workdir, load_dataset)

    def checked_dataset() -> data.Dataset:
        return _checked_dataset(config, load_dataset)

    processes.by_first(checked_dataset)  # one process prepares it for all that see its disk
    dataset = processes.together(checked_dataset)
    with run.opened(workdir, config):
        return _train(config, workdir, dataset)


def _agreed(config: Config) -> dict[str, Any]:
    """Return the settings and versions on which all processes must agree."""
    of_config = {f"config.{name}": value for name, value in flatten(config.model_dump()).items()}
    of_config.pop("config.data.data_dir")
    return of_config | {f"version of {name}": version for name, version in versions().items()}


def _with_levels_of_first(config: Config, workdir: Path, load_dataset: Callable[[], data.Dataset]) -> Config:
    """Return the config with noise levels resolved by the first process, which owns the workdir."""

    def resolve() -> str:
        chosen = resolved(config, workdir, load_dataset)
        run.abstract_state(chosen)
        run.check(workdir, chosen)
        return chosen.model_dump_json()

    chosen = parse(json.loads(processes.from_first(resolve)))
    return chosen.model_copy(update={"data": config.data})  # data_dir may differ between hosts


def _checked_dataset(config: Config, load_dataset: Callable[[], data.Dataset]) -> data.Dataset:
    """Load the dataset, if the settings fit it and the machine."""
    batch_size, devices = config.training.batch_size, jax.device_count()
    if batch_size % devices:
        raise UserError(
            f"config.training.batch_size={batch_size} is not divisible by {devices} devices; "
            f"use a multiple of {devices}"
        )
    plan(config.sampling, config.model.noise_levels)  # fails now, not at the first preview
    dataset = load_dataset()
    if batch_size > len(dataset.train):
        raise UserError(
            f"config.training.batch_size={batch_size} is more than the {len(dataset.train)} training "
            f"examples of {config.data.name!r}; use at most that"
        )
    return dataset


def _train(config: Config, workdir: Path, dataset: data.Dataset) -> TrainState:
    settings = config.training
    facts = run_facts(config, data.fingerprint(dataset))
    processes.require_equal({"data": facts["data"]} | facts["jax"])
    loss = functools.partial(
        example_loss,
        config.network(),
        objective(config.model.noise_levels, settings),
        data.preprocessing(config.data, dataset.info),
    )
    step_fn = pmap_step(
        loss=loss(flip=config.data.random_flip), optimizer=run.optimizer(config), ema_rate=settings.ema_rate
    )
    held_out_loss = _held_out_loss(loss(flip=False), dataset.test, config)
    train_key = stream(config.seed, "training")

    def due(step: int, every: int) -> bool:
        return step > 0 and (step % every == 0 or step == settings.num_steps)

    with contextlib.ExitStack() as stack:
        directory = run.checkpoint_dir(workdir, config)
        _require_shared(directory)
        restored = _restored(directory, config, facts)
        first_step = 0 if restored is None else int(restored.state.step)
        processes.by_first(lambda: kept_lines(workdir, first_step))
        processes.by_first(lambda: run.claim(workdir, config))
        checkpoints = stack.enter_context(
            Checkpoints(directory, keep=settings.keep_checkpoints, keep_best=settings.keep_best)
        )
        batches_from = functools.partial(
            data.training_batches, dataset.train, batch_size=settings.batch_size, seed=config.seed
        )
        if restored is None:
            processes.say(f"{workdir}: starts a run on {config.data.name!r}")
            state = _initial_state(config, step_fn, next(batches_from(first_step=0)), train_key)
        else:
            names = checkpoints.set_aside(list(restored.damaged))
            for name, (step, reason) in zip(names, restored.damaged.items(), strict=True):
                processes.say(f"{checkpoints.directory}/{step} is damaged ({reason}); renamed to {name}")
            with_what = f", with {', '.join(restored.changed)}" if restored.changed else ""
            processes.say(f"{workdir}: resumes from step {first_step}{with_what}")
            state = restored.state
        metrics = stack.enter_context(
            MetricsWriter(workdir, first_step) if processes.is_first() else NoMetrics()
        )
        notice = stack.enter_context(Notice())
        saver = Saver(checkpoints, settings, facts, metrics.sync, notice.has_come)
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
        batches = batches_from(first_step=first_step)
        # An ended process may have saved this step without evaluating or drawing it.
        is_evaluated = not processes.any_of(not metrics.is_evaluated)
        is_drawn = not processes.any_of(
            processes.is_first() and not _preview_path(workdir, first_step).exists()
        )

        for step in range(first_step, settings.num_steps + 1):
            is_restored = step == first_step
            if not is_restored:
                state, values = step_fn(state, next(batches), train_key)
                log.add(step, values)
                notice.arm()
                if due(step, settings.log_every) or due(step, settings.checkpoint_every):
                    log.write()

            leave = functools.partial(_leave, log, saver, step, state)
            is_ranked = bool(settings.keep_best) and due(step, settings.checkpoint_every)
            test_loss = None
            if (due(step, settings.eval_every) or is_ranked) and not (is_restored and is_evaluated):
                log.check()
                with log.paused(), notice.leaving_by(leave):
                    test_loss = held_out_loss(state.ema_params, notice.has_come)
                if test_loss is not None:
                    metrics.scalars(step, test_loss=test_loss)
            if due(step, settings.preview_every) and not (is_restored and is_drawn):
                log.check()
                with log.paused(), notice.leaving_by(leave):
                    picture = _picture(state, config, notice.has_come)
                if picture is not None and processes.is_first():
                    _write_picture(workdir, step, picture, metrics)
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
                is_last = is_over or step == settings.num_steps
                (saver.finish if is_last else saver.save)(step, state, test_loss)
            if is_over:
                raise PreemptedError(_saved(step))
    return state


def _leave(log: StepLog, saver: Saver, step: int, state: TrainState) -> None:
    """Save a state in the middle of its evaluation or preview."""
    log.write()
    saver.finish(step, state)
    processes.say(_saved(step))


def _saved(step: int) -> str:
    return f"preempted: saved at step {step}; rerun to resume"


def _initial_state(config: Config, step_fn: PmapStep, batch: data.Batch, key: PRNGKey) -> TrainState:
    """Draw the state before the first step, on all devices, while XLA compiles the step."""
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated()),
        run.abstract_state(config),
    )
    with ThreadPoolExecutor() as executor:
        for program in step_fn.lowered(like, batch, key):
            executor.submit(program.compile)  # so that the first step finds it compiled
        return replicate(run.initial_state(config))


class Restored(NamedTuple):
    """The starting point of a resumed run.

    Attributes:
      state: the state of the newest intact checkpoint, on all devices.
      damaged: the steps of newer checkpoints, and how they are damaged.
      changed: allowed changes of settings, topology and versions since the checkpoint.
    """

    state: TrainState
    damaged: dict[int, str]
    changed: list[str]


def _restored(directory: epath.Path, config: Config, facts: Record) -> Restored | None:
    """Return the state to resume from, or None if there is no checkpoint; write nothing.

    Raises:
      UserError: if the run can't resume: no checkpoint is intact, or the settings, the data or jax's own
        settings differ.
    """
    with Checkpoints(directory) as checkpoints:
        found = run.newest_sound_state(checkpoints, config, replicated(jax.devices()))
    if found is None:
        return None
    state, record, damaged = found
    place = f"{directory}/{record['step']}"
    run.require_same_data(place, record, facts)
    run.require_same_numerics(place, record, facts)
    changed = run.require_same(place, parse(record["config"]), config)
    for group in ("topology", "versions"):
        changed += [
            f"{name} {new} (was {old})"
            for name, new in facts[group].items()
            if (old := record[group].get(name)) != new
        ]
    return Restored(as_local(state), damaged, changed)


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
                "--config.training.checkpoint_dir=gs://bucket/run"
            )

    processes.by_first(write)
    try:
        processes.together(look)
    finally:
        if processes.is_first():
            mark.unlink()


def _held_out_loss(loss, examples, config: Config):
    """Return a function from parameters to their mean loss on the first test examples, with fixed noise."""
    evaluate = pmap_evaluation(functools.partial(evaluation_step, loss=loss))
    key = stream(config.seed, "evaluation")
    settings = config.training

    def held_out_loss(params, is_unwanted) -> float | None:
        """Return the loss, or None if `is_unwanted()` interrupts it."""
        batches = data.evaluation_batches(
            examples, count=settings.eval_examples, batch_size=settings.batch_size
        )
        sums = []
        for batch in batches:
            if is_unwanted():
                return None
            sums.append(jax.device_get(evaluate(params, batch, key)))
        total, count = np.sum(sums, axis=0)
        return float(total / count)

    return held_out_loss


def _picture(state: TrainState, config: Config, is_unwanted: Callable[[], bool]) -> np.ndarray | None:
    """Draw a picture of samples from the moving average; return None if `is_unwanted()` interrupts it.

    Every process draws it; otherwise the others would have to wait in a collective.
    """
    score_fn = as_score_fn(config.network(), {"params": jax.device_get(state.ema_params)})
    shape, transform = data.describe(config.data).shape, data.TRANSFORMS[config.data.transform]
    count = config.training.preview_samples
    return sampling.preview(
        score_fn,
        shape,
        config.model.noise_levels,
        config.sampling,
        count,
        transform=transform,
        is_unwanted=is_unwanted,
    )


def _write_picture(workdir: Path, step: int, picture: np.ndarray, metrics: MetricsWriter | NoMetrics) -> None:
    """Write a picture of samples to `samples/` and to the metrics."""
    path = _preview_path(workdir, step)
    try:
        path.parent.mkdir(exist_ok=True)
        viz.save_png(path, picture)
    except OSError as error:
        processes.say(f"{path} can't be written ({error.strerror or error}); training continues without it")
    metrics.picture(step, "samples", picture)


def _preview_path(workdir: Path, step: int) -> Path:
    return workdir / "samples" / f"step_{step:08d}.png"
