"""Training a score network, and restoring a trained one.

The names below are imported at first use, so that the modules `step`, `state`, `objective`, `optimizers` and
`parallel` need nothing but jax, flax and optax.
"""

import importlib
from os import PathLike
from typing import TYPE_CHECKING, Any

from flax import linen as nn

from ncsn_jax.extras import require_app

if TYPE_CHECKING:
    from ncsn_jax.training.experiment import Experiment
    from ncsn_jax.training.loop import train
    from ncsn_jax.training.objective import (
        LogNormal,
        Objective,
        classification_objective,
        denoising_objective,
        sliced_objective,
    )
    from ncsn_jax.training.optimizers import adam
    from ncsn_jax.training.settings import Settings
    from ncsn_jax.training.state import TrainState, create_state
    from ncsn_jax.training.step import evaluation_step, example_loss, train_step

__all__ = [
    "Experiment",
    "LogNormal",
    "Objective",
    "Settings",
    "TrainState",
    "adam",
    "classification_objective",
    "create_state",
    "denoising_objective",
    "evaluation_step",
    "example_loss",
    "restore",
    "sliced_objective",
    "train",
    "train_and_evaluate",
    "train_step",
]

OF_APP = {"Experiment": "experiment", "Settings": "settings", "train": "loop"}
OF_CORE = {
    "LogNormal": "objective",
    "Objective": "objective",
    "TrainState": "state",
    "adam": "optimizers",
    "classification_objective": "objective",
    "create_state": "state",
    "denoising_objective": "objective",
    "evaluation_step": "step",
    "example_loss": "step",
    "sliced_objective": "objective",
    "train_step": "step",
}
"""Modules of the public names."""


def __getattr__(name: str) -> Any:
    if name in OF_APP:
        require_app(f"ncsn_jax.training.{name}")
    elif name not in OF_CORE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{(OF_APP | OF_CORE)[name]}")
    return vars(module)[name]


def train_and_evaluate(config: Any, workdir: str | PathLike[str]) -> "TrainState":
    """Train the network of a config in a directory, or resume its training there.

    It is `train(build(config), workdir)`, with pictures of samples between the steps
    (`ncsn_jax.app.train.train_and_evaluate`).

    Args:
      config: the run's settings, the same in every process except `data.data_dir`; either a `Config` or the
        `ConfigDict` that a file of `configs/` returns.
      workdir: the run's directory; created if missing.

    Returns:
      The last state.

    Raises:
      UserError: as in `train`.
      PreemptedError: as in `train`.
    """
    from ncsn_jax.app.train import train_and_evaluate

    return train_and_evaluate(config, workdir)


def restore(
    workdir: str | PathLike[str],
    *,
    step: int | None = None,
    ema: bool = True,
    ema_length: float | None = None,
    model: nn.Module | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Restore a trained model.

    Args:
      workdir: the directory of a run.
      step: the step of the checkpoint; None for the newest intact one.
      ema: whether to return the moving average of the parameters, instead of the parameters themselves; of
        two averages by power functions, the first.
      ema_length: the length σ_rel of an average by a power function, relative to the updates made. It is made
        of the run's two averages and of their snapshots, and its residual is printed (Karras et al. 2024,
        arXiv:2312.02696, section 3.2). None is the run's own average.
      model: the network, if it isn't one of this package; None builds the network of the run's config, and
        imports nothing that the config names.

    Returns:
      The network and its variables, ready for `as_score_fn` or `model.apply`.

    Raises:
      UserError: if there is no run, no intact checkpoint, or no checkpoint of that step; if the step is not
        an int; if the run has no averages by power functions, or the length is out of their reach; or if the
        model is missing, or doesn't fit the checkpoint.
    """
    from ncsn_jax.app.trained import restore

    return restore(workdir, step=step, ema=ema, ema_length=ema_length, model=model)
