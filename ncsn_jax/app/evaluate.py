"""Evaluation of the run that a config describes."""

import contextlib
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from etils import epath

from ncsn_jax.app.build import load_dataset, network
from ncsn_jax.app.conditions import asked_of
from ncsn_jax.app.config import Config
from ncsn_jax.app.flags import flagged
from ncsn_jax.app.methods import OF_CALLERS, recipe_of
from ncsn_jax.app.trained import load_run, require_same_run
from ncsn_jax.data import Data, Dataset
from ncsn_jax.evaluation import Evaluation, Features, Generator, loop
from ncsn_jax.evaluation.cached_parts import fingerprint
from ncsn_jax.evaluation.results import Subject
from ncsn_jax.runtime.determinism import pinned
from ncsn_jax.runtime.paths import expanded
from ncsn_jax.training.checkpoints import DamagedCheckpointError, read_record, steps_in
from ncsn_jax.training.workdir import checkpoint_dir


@pinned()
def evaluate(
    config: Config,
    workdir: str | PathLike[str],
    *,
    steps: Sequence[int] | None = None,
    images: str | None = None,
    features: Features | None = None,
) -> list[Subject]:
    """Measure a run's checkpoints, or given images, against the config's data.

    It is `ncsn_jax.evaluation.loop.evaluate` of the objects that the config describes: `evaluation` chooses
    the metrics, `sampling` the sampler.
    """
    workdir = Path(expanded(workdir))
    checkpoints = checkpoint_dir(workdir, config.training.checkpoint_dir)
    if images is None:
        _require_same_run(workdir, checkpoints, steps)
    dataset = load_dataset(config)
    with flagged("config.data.", Data), flagged("config.evaluation.", Evaluation):
        return loop.evaluate(
            workdir,
            dataset=dataset,
            settings=config.evaluation,
            generator=generator(config, dataset) if images is None else None,
            checkpoint_dir=checkpoints,
            steps=steps,
            images=images,
            features=features,
        )


def _require_same_run(workdir: Path, checkpoints: epath.Path, steps: Sequence[int] | None) -> None:
    """Check that the checkpoints belong to the directory's run; damaged ones are reported later."""
    for step in steps or steps_in(checkpoints):
        with contextlib.suppress(DamagedCheckpointError):
            require_same_run(*read_record(checkpoints, step), load_run(workdir))


def generator(config: Config, dataset: Dataset) -> Generator:
    """Return the config's network, and how it is sampled and measured."""
    sampling, asked = config.sampling, asked_of(config, lambda: dataset.train_conditions)
    conditioning: dict[str, Any] = {}
    if asked is not None:
        conditioning = sampling.model_dump(include={"guidance", "guidance_interval"})
        if sampling.condition is not None:
            conditioning["conditions"] = fingerprint(dict(asked.conditions.stored))
    return Generator(
        model=network(config),
        sigmas=config.model.noise_levels,
        recipe=recipe_of(sampling, config.model.noise_levels, dataset.info, asked and asked.of),
        batch_size=sampling.batch_size,
        power=config.training.power,
        rtol=sampling.rtol,
        atol=sampling.atol,
        seed=config.seed,
        model_identity=config.model.model_dump(),
        sampler_identity=sampling.model_dump(exclude=set(OF_CALLERS) - {"seed"}) | conditioning,
    )
