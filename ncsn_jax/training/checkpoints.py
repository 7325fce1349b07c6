"""Checkpoints of a run, saved by Orbax: arrays, and a record that shows whether they are intact."""

import contextlib
import itertools
import os
import re
from collections.abc import Sequence
from os import PathLike
from typing import Any, cast

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jax.sharding import Sharding
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN, PreservationPolicy

from ncsn_jax.runtime import processes
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.runtime.paths import FOR_BUCKETS, absolute
from ncsn_jax.training.manifest import Record, checksums, is_whole
from ncsn_jax.training.state import Averages, TrainState

STATE, RECORD = "state", "record"


class DamagedError(Exception):
    """Damage to a checkpoint since it was written, with the reason."""


class DamagedCheckpointError(UserError):
    """Damage to a requested checkpoint; the message names the checkpoint."""


def steps_in(directory: epath.Path) -> list[int]:
    """Return the steps of the checkpoints in a directory, ascending; a single process may call this.

    Raises:
      UserError: if they are in a bucket that can't be read.
    """
    try:
        found = ocp.path.step.standard_name_format().find_all(directory) if directory.exists() else ()
    except ImportError as error:
        raise UserError(f"{directory}: {error}; {FOR_BUCKETS}") from error
    return sorted(checkpoint.step for checkpoint in found)


def read_record(directory: epath.Path, step: int) -> tuple[str, Record]:
    """Return the path of a checkpoint, and its record.

    Raises:
      DamagedCheckpointError: if the record is damaged.
    """
    with Checkpoints(directory) as checkpoints:
        place = f"{checkpoints.directory}/{step}"
        try:
            return place, checkpoints.read_record(step)
        except DamagedError as error:
            raise DamagedCheckpointError(f"{place} is damaged: {error}") from error


class Checkpoints:
    """The checkpoints of a run, saved in the background; the newest few and the best few are kept.

    Args:
      directory: the directory of the checkpoints; may be a bucket, such as gs://bucket/run.
      keep: number of newest checkpoints to keep, at least one; None deletes nothing, and makes no directory.
      keep_best: number of checkpoints with the lowest held-out loss to keep, at any age.
    """

    def __init__(self, directory: str | PathLike, *, keep: int | None = None, keep_best: int = 0):
        self.directory = epath.Path(absolute(os.fspath(directory)))
        try:
            is_other = self.directory.exists() and not self.directory.is_dir()
        except ImportError as error:
            raise UserError(f"{self.directory}: {error}; {FOR_BUCKETS}") from error
        if is_other:
            raise UserError(f"{self.directory} is not a directory: move it away")
        policy = None if keep is None else AnyPreservationPolicy([LatestN(keep), _Best(self, keep_best)])
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            create=keep is not None,
            cleanup_tmp_directories=keep is not None,  # left by killed or failed saves
        )
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        try:
            return ocp.CheckpointManager(self.directory, options=self._options)
        except ImportError as error:
            raise UserError(f"{self.directory}: {error}; {FOR_BUCKETS}") from error

    def reopen(self) -> None:
        """Read the directory again, after a failed save or a renaming."""
        with contextlib.suppress(Exception):  # the failed save's error is already known
            self._manager.close()
        self._manager = self._open()

    @property
    def steps(self) -> list[int]:
        """The saved steps, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState | Averages, record: Record) -> None:
        """Start to save a state and its record, unless this step is already saved."""
        if step not in self.steps:
            items = {STATE: ocp.args.StandardSave(_parts(state)), RECORD: ocp.args.JsonSave(record)}
            # Forced, because Orbax would skip a step before the newest one, such as a missing snapshot.
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def wait(self) -> None:
        """Wait until the save in the background has finished; raise its error, if any."""
        self._manager.wait_until_finished()

    def is_saving(self) -> bool:
        """Return whether a state is being saved."""
        return self._manager.is_saving_in_progress()

    def read_record(self, step: int) -> Record:
        """Return the record of a step's checkpoint.

        Raises:
          DamagedError: if the record is damaged.
          UserError: if the checkpoint can't be read, or was written before records existed.
        """
        place = self.directory / str(step)
        _require_readable(place)
        if (place / "default").exists():
            raise UserError(
                f"{place} was written by an older version of ncsn_jax, without checksums: use that version, "
                "or choose another workdir"
            )
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(**{RECORD: ocp.args.JsonRestore()}))
            record = found[RECORD]
        except Exception as error:  # Orbax raises many types
            raise DamagedError(f"its record can't be read ({type(error).__name__})") from error
        if not is_whole(record):
            raise DamagedError("its record doesn't match its checksum")
        return cast(Record, record)

    def restore(self, step: int, like: TrainState, record: Record) -> TrainState:
        """Return the state of a step, with the shapes, dtypes and sharding of `like`, which may be abstract.

        Raises:
          DamagedError: if an array doesn't match the record.
        """
        args = ocp.args.Composite(**{STATE: ocp.args.StandardRestore(_parts(like))})
        try:
            state = type(like)(**self._manager.restore(step, args=args)[STATE])
        except Exception as error:  # Orbax raises many types
            raise DamagedError(f"its arrays can't be read ({type(error).__name__})") from error
        for found, expected in zip(checksums(state), record["leaves"], strict=True):
            if found != expected:
                raise DamagedError(f"the array {found[0]} doesn't match its checksum")
        return state

    def restore_part(self, step: int, name: str, record: Record, sharding: Sharding) -> dict[str, Any]:
        """Return one part of the state of a step, such as `params`: a nested dictionary of arrays.

        Raises:
          DamagedError: if an array doesn't match the record.
        """
        expected = {_keys(path): leaf for path, *leaf in record["leaves"] if path.startswith(f".{name}[")}
        like = traverse_util.unflatten_dict(
            {
                keys: jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=sharding)
                for keys, (shape, dtype, _) in expected.items()
            }
        )
        args = ocp.args.PyTreeRestore(
            {name: like},
            restore_args=ocp.checkpoint_utils.construct_restore_args({name: like}),
            partial_restore=True,
        )
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(**{STATE: args}))[STATE][name]
        except Exception as error:  # Orbax raises many types
            raise DamagedError(f"its arrays can't be read ({type(error).__name__})") from error
        for path, *leaf in checksums(found):
            if leaf != expected[_keys(path)]:
                raise DamagedError(f"the array .{name}{path} doesn't match its checksum")
        return cast(dict[str, Any], found)

    def set_aside(self, steps: Sequence[int]) -> list[str]:
        """Rename damaged checkpoints to `<step>.damaged-<n>`, which Orbax ignores; return the new names."""
        names = []
        for step in steps:
            taken = [path.name for path in self.directory.glob(f"{step}.damaged-*")]
            names.append(
                next(name for n in itertools.count(1) if (name := f"{step}.damaged-{n}") not in taken)
            )
        processes.wait_for_all("damaged checkpoints are named")
        for step, name in zip(steps, names, strict=True):
            if processes.is_first():
                (self.directory / str(step)).rename(self.directory / name)
        processes.wait_for_all("damaged checkpoints are set aside")
        self.reopen()
        return names

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()  # waits for the save in the background


def _parts(state: TrainState | Averages) -> dict[str, Any]:
    """Return the parts of a state by name, without missing ones, which older checkpoints don't know."""
    return {name: part for name, part in vars(state).items() if part is not None}


def _keys(path: str) -> tuple[str, ...]:
    """Return the keys in the path of an array, such as `.params['conv']['kernel']`."""
    return tuple(re.findall(r"\['([^']*)'\]", path))


class _Best(PreservationPolicy):
    """A policy that preserves the checkpoints with the lowest held-out loss.

    Orbax's own `BestN` reads the losses of all checkpoints at the start, where one damaged file would end
    the run.
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
        """Return the held-out loss of a step, or infinity if it is unknown."""
        if self._count == 0:
            return np.inf
        if step not in self._losses:
            try:
                loss = self._checkpoints.read_record(step)["test_loss"]
            except (DamagedError, UserError):
                loss = None
            self._losses[step] = loss if loss is not None and np.isfinite(loss) else np.inf
        return self._losses[step]


def _require_readable(place: epath.Path) -> None:
    """Check the permissions: an unreadable file is a user error, not damage."""

    def refuse(error: OSError) -> None:
        if isinstance(error, PermissionError):
            raise UserError(
                f"{error.filename} can't be read ({error.strerror}): fix its permissions"
            ) from error

    for directory, _, names in place.walk(on_error=refuse):
        for name in names:
            try:
                with (directory / name).open("rb") as file:
                    file.read(1)
            except PermissionError as error:
                refuse(error)
