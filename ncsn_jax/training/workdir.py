"""A run's directory: whose it is, what may change when it goes on, and the way back to its model."""

import functools
import os
from pathlib import Path
from typing import Any

import jax
import optax
from flax import linen as nn

from ncsn_jax import data
from ncsn_jax.config import Config, changes
from ncsn_jax.config import load as load_config
from ncsn_jax.errors import UserError
from ncsn_jax.streams import stream
from ncsn_jax.training.checkpoints import Checkpoints
from ncsn_jax.training.state import TrainState, adam, create_state

PARTIAL = "config.json.partial"
MAY_CHANGE = (
    "data.data_dir",
    "evaluation.",
    "restoration.",
    "sampling.",
    "training.checkpoint_every",
    "training.eval_every",
    "training.eval_examples",
    "training.keep_best",
    "training.keep_checkpoints",
    "training.log_every",
    "training.preview_",
)
"""The settings, or their prefixes, that decide nothing about the parameters a run ends with."""


def optimizer(config: Config) -> optax.GradientTransformation:
    """The optimizer that the config asks for."""
    names = ("learning_rate", "schedule", "num_steps", "warmup_steps")
    names += ("beta1", "beta2", "epsilon", "gradient_clip")
    return adam(**{name: getattr(config.training, name) for name in names})


def initial_state(config: Config) -> TrainState:
    """The state before the first step, on one device."""
    return _create(config)(stream(config.seed, "initialization"))


def abstract_state(config: Config) -> TrainState:
    """The shapes and dtypes of the run's state; computes nothing.

    Raises:
      UserError: if the network can't take the dataset's examples.
    """
    try:
        return jax.eval_shape(_create(config), stream(config.seed, "initialization"))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"config.model.name={config.model.name!r} can't take the examples of "
            f"config.data.name={config.data.name!r}: {' '.join(str(error).split())[:200]}"
        ) from error


def _create(config: Config):
    return functools.partial(
        create_state,
        model=config.network(),
        shape=data.describe(config.data).shape,
        optimizer=optimizer(config),
    )


def check(workdir: Path, config: Config) -> None:
    """Makes sure that the directory can hold this run; writes nothing.

    Raises:
      UserError: if it can't be written, holds another config's run, or things that are no run's.
    """
    path = workdir / "config.json"
    if path.exists():
        refused = {
            name: values
            for name, values in changes(load_config(path), config).items()
            if not name.startswith(MAY_CHANGE)
            and not (name == "training.num_steps" and config.training.schedule == "constant")
        }
        if refused:
            found = ", ".join(f"{name}={old!r}, not {new!r}" for name, (old, new) in refused.items())
            raise UserError(
                f"{workdir} holds a run with {found}: go on with its settings, or choose another --workdir"
            )
        trained = checkpoint_steps(workdir)
        if trained and trained[-1] > config.training.num_steps:
            raise UserError(
                f"{workdir} is trained to step {trained[-1]}, more than "
                f"config.training.num_steps={config.training.num_steps}: ask for more, or choose another "
                "--workdir"
            )
    elif workdir.is_dir() and any(p.name != PARTIAL for p in workdir.iterdir()):
        raise UserError(f"{workdir} is not empty and holds no run (no config.json): choose another --workdir")
    existing = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{workdir} can't be written ({existing} is not a writable directory)")


def checkpoint_steps(workdir: Path) -> list[int]:
    """The steps of a run's checkpoints, ascending."""
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.steps


def claim(workdir: Path, config: Config) -> None:
    """Makes the directory this config's run."""
    workdir.mkdir(parents=True, exist_ok=True)
    partial = workdir / PARTIAL
    partial.write_text(config.model_dump_json(indent=2) + "\n")
    partial.rename(workdir / "config.json")


def load_run(workdir: Path) -> Config:
    """The config of the run in a directory.

    Raises:
      UserError: if there is none.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir} holds no run (no config.json): train one there first")
    return load_config(path)


def restore(
    workdir: str | Path, *, step: int | None = None, ema: bool = True
) -> tuple[nn.Module, dict[str, Any]]:
    """A trained model.

    Args:
      workdir: the directory of a run.
      step: which checkpoint; the newest if None.
      ema: whether to take the moving average of the parameters, or else the parameters themselves.

    Returns:
      The network and its variables, ready for `as_score_fn` or `model.apply`.

    Raises:
      UserError: if there is no run, no checkpoint, or none of that step.
    """
    workdir = Path(workdir)
    config = load_run(workdir)
    directory = workdir / "checkpoints"
    with Checkpoints(directory) as checkpoints:
        steps = checkpoints.steps
        if not steps:
            raise UserError(f"{directory} holds no checkpoint yet: train on")
        if step is None:
            step = steps[-1]
        elif step not in steps:
            raise UserError(f"{directory} holds no checkpoint of step {step}, but of {steps}")
        on_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on_device),
            abstract_state(config),
        )
        state = checkpoints.restore(step, like)
    return config.network(), {"params": state.ema_params if ema else state.params}
