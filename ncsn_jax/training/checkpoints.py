"""A run's checkpoints, by Orbax: arrays and the record that tells whether they are whole."""

import contextlib
import itertools
from collections.abc import Sequence
from os import PathLike
from typing import cast

import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN, PreservationPolicy

from ncsn_jax import hosts
from ncsn_jax.errors import UserError
from ncsn_jax.training.record import Record, checksums, is_whole
from ncsn_jax.training.state import TrainState

STATE, RECORD = "state", "record"
FOR_BUCKETS = "pip install -e '.[gcs]' for gs://"


class DamagedError(Exception):
    """A checkpoint isn't as it was written; says why."""


class Checkpoints:
    """The checkpoints of a run: saved in the background, the newest few kept, and the best few beside them.

    Args:
      directory: where they lie; may be a bucket, such as gs://bucket/run.
      keep: how many of the newest are kept, at least one; None deletes nothing, and makes no directory.
      keep_best: how many are kept for their held-out loss, however old they are.
    """

    def __init__(self, directory: str | PathLike, *, keep: int | None = None, keep_best: int = 0):
        self.directory = epath.Path(directory).absolute()
        if self.directory.exists() and not self.directory.is_dir():
            raise UserError(f"{self.directory} is not a directory: move it away")
        policy = None if keep is None else AnyPreservationPolicy([LatestN(keep), _Best(self, keep_best)])
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            create=keep is not None,
            cleanup_tmp_directories=keep is not None,  # what a killed or failed save has left
        )
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        try:
            return ocp.CheckpointManager(self.directory, options=self._options)
        except ImportError as error:
            raise UserError(f"{self.directory}: {error}; {FOR_BUCKETS}") from error

    def reopen(self) -> None:
        """Begins anew with what is there, after a save has failed or a directory was renamed."""
        with contextlib.suppress(Exception):  # of the save that has failed, which is known
            self._manager.close()
        self._manager = self._open()

    @property
    def steps(self) -> list[int]:
        """The steps there are, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, record: Record) -> None:
        """Starts to save a state with its record, unless its step is there already."""
        if step not in self.steps:
            items = {STATE: ocp.args.StandardSave(state), RECORD: ocp.args.JsonSave(record)}
            self._manager.save(step, args=ocp.args.Composite(**items))

    def wait(self) -> None:
        """Returns when nothing is being saved; raises what the save raised."""
        self._manager.wait_until_finished()

    def is_saving(self) -> bool:
        """Whether a state is being saved."""
        return self._manager.is_saving_in_progress()

    def read_record(self, step: int) -> Record:
        """What the checkpoint of a step says of itself.

        Raises:
          DamagedError: if it isn't as it was written.
          UserError: if it can't be read, or was written before there were records.
        """
        place = self.directory / str(step)
        _require_readable(place)
        if (place / "default").exists():
            raise UserError(
                f"{place} was written by an older version of ncsn_jax, without checksums: go on with that "
                "version, or choose another --workdir"
            )
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(**{RECORD: ocp.args.JsonRestore()}))
            record = found[RECORD]
        except Exception as error:  # of many types
            raise DamagedError(f"its record can't be read ({type(error).__name__})") from error
        if not is_whole(record):
            raise DamagedError("its record isn't as it was written")
        return cast(Record, record)

    def restore(self, step: int, like: TrainState, record: Record) -> TrainState:
        """The state of a step, with the shapes, dtypes and sharding of another, possibly abstract one.

        Raises:
          DamagedError: if an array isn't what the record says.
        """
        args = ocp.args.Composite(**{STATE: ocp.args.StandardRestore(like)})
        try:
            state = self._manager.restore(step, args=args)[STATE]
        except Exception as error:  # of many types
            raise DamagedError(f"its arrays can't be read ({type(error).__name__})") from error
        for found, expected in zip(checksums(state), record["leaves"], strict=True):
            if found != expected:
                raise DamagedError(f"the array {found[0]} isn't as it was written")
        return cast(TrainState, state)

    def set_aside(self, steps: Sequence[int]) -> list[str]:
        """Renames damaged checkpoints to `<step>.damaged-<n>`, out of Orbax's sight; returns the names."""
        names = []
        for step in steps:
            taken = [path.name for path in self.directory.glob(f"{step}.damaged-*")]
            names.append(
                next(name for n in itertools.count(1) if (name := f"{step}.damaged-{n}") not in taken)
            )
        hosts.wait_for_all("damaged checkpoints are named")
        for step, name in zip(steps, names, strict=True):
            if hosts.is_first():
                (self.directory / str(step)).rename(self.directory / name)
        hosts.wait_for_all("damaged checkpoints are set aside")
        self.reopen()
        return names

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()  # waits for the save in the background


class _Best(PreservationPolicy):
    """Preserves the checkpoints with the least held-out loss.

    Orbax's own `BestN` reads the losses of all checkpoints at the start, where one damaged file would end
    everything.
    """

    def __init__(self, checkpoints: Checkpoints, count: int):
        self._checkpoints = checkpoints
        self._count = count
        self._losses: dict[int, float] = {}

    def should_preserve(self, checkpoints, *, context) -> Sequence[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        best = sorted(steps, key=self._loss)[: self._count]
        return [step in best and self._loss(step) < np.inf for step in steps]

    def _loss(self, step: int) -> float:
        """The held-out loss; infinite where none is known."""
        if self._count == 0:
            return np.inf
        if step not in self._losses:
            try:
                loss = self._checkpoints.read_record(step)["test_loss"]
            except (DamagedError, UserError):
                loss = None
            self._losses[step] = np.inf if loss is None else loss
        return self._losses[step]


def _require_readable(place: epath.Path) -> None:
    """What may not be read isn't damaged."""

    def refuse(error: OSError) -> None:
        if isinstance(error, PermissionError):
            raise UserError(
                f"{error.filename} can't be read ({error.strerror}): mend its permissions"
            ) from error

    for directory, _, names in place.walk(on_error=refuse):
        for name in names:
            try:
                with (directory / name).open("rb") as file:
                    file.read(1)
            except PermissionError as error:
                refuse(error)
