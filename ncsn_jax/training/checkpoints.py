"""A run's checkpoints, by Orbax."""

from pathlib import Path
from typing import cast

import orbax.checkpoint as ocp

from ncsn_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of a run: saved in the background, the newest few kept.

    Args:
      directory: where they lie.
      keep: how many are kept; None deletes nothing, and makes no directory.
    """

    def __init__(self, directory: Path, *, keep: int | None = None):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=keep is not None)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    @property
    def steps(self) -> list[int]:
        """The steps there are, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState) -> None:
        """Starts to save the state, unless its step is there already."""
        if step not in self.steps:
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of a step, with the shapes, dtypes and sharding of another, possibly abstract one."""
        return cast(TrainState, self._manager.restore(step, args=ocp.args.StandardRestore(like)))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()  # waits for the save in the background
