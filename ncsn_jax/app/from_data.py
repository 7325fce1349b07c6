"""Settings that the data decide when a run begins: `auto`, and the facts of arrays and of conditions."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ncsn_jax import data
from ncsn_jax.app.config import Config, Sampling
from ncsn_jax.app.suggest_noise import for_config, training_blocks
from ncsn_jax.app.trained import load_run
from ncsn_jax.runtime.errors import UserError


def resolved(config: Config, workdir: Path, load_dataset: Callable[[], data.Dataset]) -> Config:
    """Return the config with numbers for "auto" and facts of the data: the workdir's, or else measured ones.

    Args:
      config: the run's settings.
      workdir: the run's directory.
      load_dataset: a function that loads the config's dataset; called only if necessary.

    Raises:
      UserError: if the data aren't available, or don't decide the numbers.
    """
    has_no_facts = config.data.name == data.ARRAYS and config.data.shape is None
    has_no_std = config.reads_data_std and config.model.data_std == "auto"
    has_no_levels = config.model.sigmas == "auto"
    has_no_conditions = config.data.condition != "none" and not config.data.conditions
    if not (has_no_facts or has_no_std or has_no_levels or has_no_conditions):
        return config
    run = load_run(workdir) if (workdir / "config.json").exists() else None
    if has_no_conditions:
        known = run.data.conditions if run else _facts_of_conditions(load_dataset())
        config = config.model_copy(update={"data": config.data.model_copy(update={"conditions": known})})
    if has_no_facts:
        facts = load_dataset().facts if run is None else data.facts_of(run.data)
        assert facts is not None  # true of arrays
        settings = config.data.model_copy(update=facts._asdict())
        config = config.model_copy(update={"data": settings})
    if has_no_std:
        std = "auto" if run is None else run.model.data_std
        std = _data_std(config, load_dataset()) if std == "auto" else std
        config = config.model_copy(update={"model": config.model.model_copy(update={"data_std": std})})
    return _with_levels(config, run, load_dataset) if has_no_levels else config


def _facts_of_conditions(dataset: data.Dataset) -> Mapping[str, data.ConditionFacts]:
    """Return the facts of the conditions that a dataset has."""
    assert dataset.train_conditions is not None
    return dataset.train_conditions.facts


def _data_std(config: Config, dataset: data.Dataset) -> float:
    """Return the standard deviation of all elements of the training examples, to six digits."""
    count, total, squares = 0, 0.0, 0.0
    for x in training_blocks(dataset):
        count, total = count + x.size, total + x.sum(dtype=np.float64)
        squares += np.square(x, dtype=np.float64).sum()
    std = math.sqrt(max(squares / count - (total / count) ** 2, 0.0))
    if not 0 < std < np.inf:
        raise UserError(
            f"config.data.name={config.data.name!r}: its training examples have a standard deviation of {std}"
            "; accepted: a positive number"
        )
    return float(f"{std:.6g}")


def _with_levels(config: Config, run: Config | None, load_dataset: Callable[[], data.Dataset]) -> Config:
    """Return the config with noise levels; a `sampling.step_size` other than the default is kept."""
    if run is not None:
        levels: dict[str, Any] = {n: getattr(run.model, n) for n in ("sigmas", "sigma_begin", "num_scales")}
        step_size = run.sampling.step_size
    else:
        suggestion = for_config(config, load_dataset())
        levels = {
            "sigmas": "geometric",
            "sigma_begin": suggestion.sigma_begin,
            "num_scales": suggestion.num_scales,
        }
        step_size = suggestion.step_size
    sampling = config.sampling
    if sampling.step_size == Sampling().step_size:
        sampling = sampling.model_copy(update={"step_size": step_size})
    return config.model_copy(update={"model": config.model.model_copy(update=levels), "sampling": sampling})
