"""Snapshots of the two averages by power functions, and averages of other lengths made of them."""

from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from ncsn_jax.runtime import processes
from ncsn_jax.runtime.errors import ArgumentError
from ncsn_jax.training.checkpoints import Checkpoints, DamagedError
from ncsn_jax.training.manifest import Record
from ncsn_jax.training.power_averages import Profile, synthesis
from ncsn_jax.training.state import AVERAGES
from ncsn_jax.training.step import is_frozen

KEEP_ALL = 10**9
"""Number of snapshots to keep: they are never deleted."""
REACH = 0.1
"""Largest residual of a synthesised average."""


class Source(NamedTuple):
    """A stored average: the checkpoints and the step of its arrays, its name among them, and its profile."""

    checkpoints: Checkpoints
    step: int
    record: Record
    name: str
    profile: Profile


def snapshots_in(checkpoints: epath.Path) -> epath.Path:
    """Return the directory of the snapshots, in the directory of a run's checkpoints."""
    return checkpoints / "averages"


def average_of_length(checkpoints: Checkpoints, record: Record, length: float) -> dict[str, Any]:
    """Return the average of a length, at the step of a checkpoint, from this and the snapshots before it.

    Its residual is printed. Damaged snapshots are left out.

    Args:
      checkpoints: the run's checkpoints.
      record: the record of the checkpoint.
      length: σ_rel.

    Raises:
      ArgumentError: if the run has no averages by power functions, or the length is out of their reach.
      DamagedError: if the checkpoint is damaged.
    """
    place = f"{checkpoints.directory}/{record['step']}"
    if not record.get("ema_lengths"):
        raise ArgumentError(
            f"ema_length={length}: {place} has no averages by power functions; accepted: None, or a run that "
            "was trained with ema_lengths"
        )
    with Checkpoints(snapshots_in(checkpoints.directory)) as snapshots:
        sources = _of_checkpoint(checkpoints, record) + _of_snapshots(snapshots, record)
        while True:
            try:
                return _average(place, sources, record["num_updates"], length)
            except _DamagedSnapshotError as error:
                step, reason = error.args
                processes.say(f"{snapshots.directory}/{step} is damaged ({reason}): it is left out")
                sources = [source for source in sources if source[:2] != (snapshots, step)]


class _DamagedSnapshotError(Exception):
    """Damage to the arrays of a snapshot: its step and the reason."""


def _of_checkpoint(checkpoints: Checkpoints, record: Record) -> list[Source]:
    return [
        Source(checkpoints, record["step"], record, name, Profile(record["num_updates"], length))
        for name, length in zip(AVERAGES, record["ema_lengths"], strict=True)
    ]


def _of_snapshots(snapshots: Checkpoints, record: Record) -> list[Source]:
    """Return the averages in the snapshots of the same run before the step of a checkpoint."""
    found = []
    for step in snapshots.steps:
        if step >= record["step"]:
            continue
        try:
            own = snapshots.read_record(step)
        except DamagedError as error:
            processes.say(f"{snapshots.directory}/{step} is damaged ({error}): it is left out")
            continue
        is_of_run = all(own[name] == record[name] for name in ("ema_lengths", "data", "inputs"))
        if is_of_run and own["num_updates"]:
            found += _of_checkpoint(snapshots, own)
    return found


def _average(place: str, sources: list[Source], num_updates: int, length: float) -> dict[str, Any]:
    try:
        coefficients, residual = synthesis(
            Profile(num_updates, length), [source.profile for source in sources]
        )
    except ValueError as error:
        raise ArgumentError(f"ema_{error}") from None
    if residual > REACH:
        raise ArgumentError(
            f"ema_length={length}: out of reach of the {len(sources)} averages stored up to {place} "
            f"(residual {residual:.0%}); accepted: a length closer to {sources[0].profile.length} or "
            f"{sources[1].profile.length}, or a run with a smaller ema_snapshot_every"
        )
    processes.say(
        f"{place}: ema_length={length} is made from {np.count_nonzero(coefficients)} of {len(sources)} "
        f"stored averages, with the residual {residual:.2%}"
    )
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like, total = None, None
    for source, coefficient in zip(sources, coefficients, strict=True):
        if coefficient == 0 and like is not None:
            continue
        try:
            params = source.checkpoints.restore_part(source.step, source.name, source.record, sharding)
        except DamagedError as error:
            if source.step == sources[0].step:
                raise
            raise _DamagedSnapshotError(source.step, str(error)) from error
        like = like or params
        scaled = jax.tree.map(lambda leaf, c=coefficient: c * np.asarray(leaf, np.float64), params)
        total = scaled if total is None else jax.tree.map(np.add, total, scaled)
    assert like is not None  # the checkpoint's own average

    def finished(path: Any, leaf: jax.Array, total: np.ndarray) -> jax.Array:
        return leaf if is_frozen(path) else jax.device_put(total.astype(leaf.dtype), sharding)

    return jax.tree_util.tree_map_with_path(finished, like, total)
