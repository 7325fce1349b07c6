"""Training a score network, and restoring a trained one."""

from ncsn_jax.training.loop import train_and_evaluate
from ncsn_jax.training.state import TrainState, adam, create_state
from ncsn_jax.training.step import evaluation_step, example_loss, train_step
from ncsn_jax.training.workdir import restore

__all__ = [
    "TrainState",
    "adam",
    "create_state",
    "evaluation_step",
    "example_loss",
    "restore",
    "train_and_evaluate",
    "train_step",
]
