"""A run's checkpoints, by Orbax."""

from pathlib import Path
from typing import cast

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from ncsn_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of a run: saved in the background, the newest few kept, and the best few beside them.

    Args:
      directory: where they lie.
      keep: how many of the newest are kept, at least one; None deletes nothing, and makes no directory.
      keep_best: how many are kept for their held-out loss, however old they are.
    """

    def __init__(self, directory: Path, *, keep: int | None = None, keep_best: int = 0):
        best = BestN(
            get_metric_fn=_held_out_loss,
            reverse=True,  # it keeps the last ones of its order
            n=keep_best,
            keep_checkpoints_without_metrics=False,
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=_held_out_loss,  # without it, no metrics are written
            best_mode="min",
            preservation_policy=None if keep is None else AnyPreservationPolicy([LatestN(keep), best]),
            create=keep is not None,
        )
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    @property
    def steps(self) -> list[int]:
        """The steps there are, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, *, test_loss: float | None = None) -> None:
        """Starts to save the state, and what it is kept for, unless its step is there already."""
        if step not in self.steps:
            metrics = None if test_loss is None else {"test_loss": test_loss}
            self._manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of a step, with the shapes, dtypes and sharding of another, possibly abstract one."""
        return cast(TrainState, self._manager.restore(step, args=ocp.args.StandardRestore(like)))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()  # waits for the save in the background


def _held_out_loss(metrics: dict[str, float]) -> float:
    return metrics["test_loss"]
