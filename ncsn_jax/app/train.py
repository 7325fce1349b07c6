"""Training of the network that a config describes, with pictures of samples between the steps."""

import functools
import json
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from ncsn_jax.app.build import build, described, load_dataset, settings_of_network
from ncsn_jax.app.conditions import asked_of
from ncsn_jax.app.config import Config, Training, parse
from ncsn_jax.app.flags import flagged
from ncsn_jax.app.from_data import resolved
from ncsn_jax.app.methods import recipe_of, sampler_of
from ncsn_jax.app.sample import preview
from ncsn_jax.data import Data, Dataset
from ncsn_jax.models import as_score_fn
from ncsn_jax.runtime import processes, viz
from ncsn_jax.runtime.determinism import pinned
from ncsn_jax.runtime.paths import expanded
from ncsn_jax.training.callbacks import Callback, Log
from ncsn_jax.training.description import flatten
from ncsn_jax.training.experiment import Experiment
from ncsn_jax.training.loop import require_divisible, train
from ncsn_jax.training.manifest import versions
from ncsn_jax.training.state import TrainState, fitting_params
from ncsn_jax.training.workdir import check


@pinned()
def train_and_evaluate(config: Config | ConfigDict, workdir: str | PathLike[str]) -> TrainState:
    """Train the network of a config: `ncsn_jax.training.train_and_evaluate`."""
    config = config if isinstance(config, Config) else parse(config)
    workdir = Path(expanded(workdir))
    processes.require_equal(_agreed(config))
    load = functools.cache(functools.partial(load_dataset, config))
    chosen = _resolved_by_first(config, workdir, load)
    if chosen.data != config.data:  # arrays are read with the facts that were measured
        load = functools.cache(functools.partial(load_dataset, chosen))
    config = chosen
    processes.by_first(load)  # one process prepares the data for all that see its disk
    dataset = processes.together(load)
    with settings_of_network(config), flagged("config.data.", Data), flagged("config.training.", Training):
        experiment = build(config, dataset)
        if config.data.condition == "none":  # its samples have no condition
            _require_unconditional(experiment)
        return train(experiment, workdir, callbacks=[previews(experiment.model, config, dataset)])


def _require_unconditional(experiment: Experiment) -> None:
    """Check that a network of conditional examples works without a condition, too: samples are drawn so."""
    x, condition = experiment.inputs
    if condition is not None:
        fitting_params(experiment.model, x)


def _agreed(config: Config) -> dict[str, Any]:
    """Return the settings on which all processes must agree before the data are loaded."""
    content = {f"config.{name}": value for name, value in flatten(config.model_dump()).items()}
    content.pop("config.data.data_dir")
    return content | {f"version of {name}": version for name, version in versions().items()}


def _resolved_by_first(config: Config, workdir: Path, load: Callable[[], Dataset]) -> Config:
    """Return the config with its `auto` settings resolved by the first process, which owns the workdir."""

    def resolve() -> str:
        chosen = resolved(config, workdir, load)
        sampler_of(chosen.sampling, chosen.model.noise_levels)  # fails now, not at the first preview
        with flagged("config.training.", Training):
            require_divisible(chosen.training.batch_size)
            check(workdir, chosen.training, described(chosen))  # before a long preparation of the data
        return chosen.model_dump_json()

    chosen = parse(json.loads(processes.from_first(resolve)))
    own = chosen.data.model_copy(update={"data_dir": config.data.data_dir})  # may differ between hosts
    return chosen.model_copy(update={"data": own})


def previews(model: nn.Module, config: Config, dataset: Dataset) -> Callback:
    """Return the callback that draws samples of the moving average, in `samples/` and TensorBoard.

    Every process draws them; otherwise the others would have to wait in a collective.
    """
    count = config.training.preview_samples
    asked = asked_of(config, lambda: dataset.train_conditions)
    recipe = recipe_of(config.sampling, config.model.noise_levels, dataset.info, asked and asked.of)
    channels = config.sampling.shown_channels

    def run(step: int, state: TrainState, log: Log) -> None:
        score_fn = as_score_fn(model, {"params": jax.device_get(state.ema_params)})
        picture = preview(score_fn, recipe, count, channels=channels, after_step=log.leave_if_preempted)
        if not processes.is_first():
            return
        path = log.workdir / "samples" / f"step_{step:08d}.png"
        try:
            path.parent.mkdir(exist_ok=True)
            viz.save_png(path, picture)
        except OSError as error:
            processes.say(
                f"{path} can't be written ({error.strerror or error}); training continues without it"
            )
        log.picture(step, "samples", picture)

    return config.training.preview_every, run
