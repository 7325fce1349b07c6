"""The training loop: steps, and what is logged, evaluated, saved and drawn between them."""

import functools
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from ncsn_jax import data, sampling, viz
from ncsn_jax.config import Config
from ncsn_jax.errors import UserError
from ncsn_jax.models import as_score_fn
from ncsn_jax.plan import plan
from ncsn_jax.streams import stream
from ncsn_jax.suggest_noise import resolved
from ncsn_jax.training import workdir as run
from ncsn_jax.training.checkpoints import Checkpoints
from ncsn_jax.training.metrics import MetricsWriter, StepLog
from ncsn_jax.training.objective import objective
from ncsn_jax.training.parallel import pmap_evaluation, pmap_step, replicate, replicated
from ncsn_jax.training.state import TrainState
from ncsn_jax.training.step import evaluation_step, example_loss, train_step


def train_and_evaluate(config: Config, workdir: str | Path) -> TrainState:
    """Trains a score network, or goes on training it, in a directory.

    The directory gets `config.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/` and `samples/`. If it
    holds checkpoints of this run, training goes on from the newest, and ends bit for bit where it would
    have ended uninterrupted.

    Args:
      config: the run's settings.
      workdir: the run's directory; made if need be.

    Returns:
      The last state.

    Raises:
      UserError: if the settings don't fit the machine, the dataset or the directory, which is then
        untouched; or if the loss stops being finite, when the last good checkpoint stays.
    """
    workdir, settings = Path(workdir), config.training
    devices = jax.device_count()
    if settings.batch_size % devices:
        raise UserError(
            f"config.training.batch_size={settings.batch_size} is not divisible by "
            f"the number of devices, {devices}"
        )
    load_dataset = functools.cache(functools.partial(data.load, config.data))
    config = resolved(config, workdir, load_dataset)
    abstract = run.abstract_state(config)
    plan(config.sampling, config.model.noise_levels)  # refuses now what previews would refuse hours later
    run.check(workdir, config)
    dataset = load_dataset()
    if settings.batch_size > len(dataset.train):
        raise UserError(
            f"config.training.batch_size={settings.batch_size} is more than "
            f"the {len(dataset.train)} training examples of {config.data.name!r}"
        )
    run.claim(workdir, config)

    loss = functools.partial(
        example_loss,
        config.network(),
        objective(config.model.noise_levels, settings),
        data.preprocessing(config.data, dataset.info),
    )
    step_fn = pmap_step(
        functools.partial(
            train_step,
            loss=loss(flip=config.data.random_flip),
            optimizer=run.optimizer(config),
            ema_rate=settings.ema_rate,
        )
    )
    held_out_loss = _held_out_loss(loss(flip=False), dataset.test, config)
    train_key = stream(config.seed, "training")

    def due(step: int, every: int) -> bool:
        return step % every == 0 or step == settings.num_steps

    directory, keep, keep_best = workdir / "checkpoints", settings.keep_checkpoints, settings.keep_best
    with Checkpoints(directory, keep=keep, keep_best=keep_best) as checkpoints:
        state = _first_state(checkpoints, config, abstract)
        first_step = int(state.step)
        batches = data.training_batches(
            dataset.train,
            batch_size=settings.batch_size,
            seed=config.seed,
            first_step=first_step,
        )
        progress = tqdm(initial=first_step, total=settings.num_steps, unit="step", desc=str(workdir))
        with MetricsWriter(workdir, first_step) as metrics, progress:
            log = StepLog(metrics, progress, settings.batch_size)
            for step in range(first_step + 1, settings.num_steps + 1):
                state, values = step_fn(state, next(batches), train_key)
                log.add(step, values)

                if due(step, settings.log_every) or due(step, settings.checkpoint_every):
                    log.write()
                saved, test_loss = due(step, settings.checkpoint_every), None
                if due(step, settings.eval_every) or (saved and keep_best):
                    log.check()
                    with log.paused():
                        test_loss = held_out_loss(state.ema_params)
                        metrics.scalars(step, test_loss=test_loss)
                if due(step, settings.preview_every):
                    log.check()
                    with log.paused():
                        _preview(workdir, step, state, config, metrics)
                # Last: what a restored step has written is whole, and what is lost is made again.
                if saved:
                    metrics.flush()
                    checkpoints.save(step, state, test_loss=test_loss)
    return state


def _first_state(checkpoints: Checkpoints, config: Config, abstract: TrainState) -> TrainState:
    """The newest checkpoint's state, or the initial one, on all devices."""
    if not checkpoints.steps:
        return replicate(run.initial_state(config))
    sharding = replicated()
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract
    )
    return checkpoints.restore(checkpoints.steps[-1], like)


def _held_out_loss(loss, examples, config: Config):
    """The mean loss of parameters over the first test examples, with the same noise every time."""
    evaluate = pmap_evaluation(functools.partial(evaluation_step, loss=loss))
    key = stream(config.seed, "evaluation")
    settings = config.training

    def held_out_loss(params) -> float:
        batches = data.evaluation_batches(
            examples, count=settings.eval_examples, batch_size=settings.batch_size
        )
        sums = [evaluate(params, batch, key) for batch in batches]
        total, count = np.sum(jax.device_get(sums), axis=0)
        return float(total / count)

    return held_out_loss


def _preview(workdir: Path, step: int, state, config: Config, metrics: MetricsWriter) -> None:
    """Draws a picture of samples from the moving average."""
    score_fn = as_score_fn(config.network(), {"params": state.ema_params})
    shape, transform = data.describe(config.data).shape, data.TRANSFORMS[config.data.transform]
    count = config.training.preview_samples
    picture = sampling.preview(
        score_fn, shape, config.model.noise_levels, config.sampling, count, transform=transform
    )
    (workdir / "samples").mkdir(exist_ok=True)
    viz.save_png(workdir / "samples" / f"step_{step:08d}.png", picture)
    metrics.picture(step, "samples", picture)
