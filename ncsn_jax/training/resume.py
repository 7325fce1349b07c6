"""The state from which a run resumes, if its checkpoint belongs to the run."""

from typing import NamedTuple

import jax
from etils import epath
from jax.sharding import Sharding

from ncsn_jax.runtime.errors import UserError
from ncsn_jax.training.checkpoints import Checkpoints, DamagedError
from ncsn_jax.training.description import Description, Json
from ncsn_jax.training.manifest import Record, shapes
from ncsn_jax.training.parallel import as_local, replicated
from ncsn_jax.training.state import TrainState


class Restored(NamedTuple):
    """The starting point of a resumed run.

    Attributes:
      state: the state of the newest intact checkpoint, on all devices.
      record: its record.
      damaged: the steps of newer checkpoints, and how they are damaged.
      changed: allowed changes of settings, topology and versions since the checkpoint.
    """

    state: TrainState
    record: Record
    damaged: dict[int, str]
    changed: list[str]


def restored(
    directory: epath.Path, abstract: TrainState, description: Description, facts: Record
) -> Restored | None:
    """Return the state to resume from, or None if there is no checkpoint; write nothing.

    Args:
      directory: the directory of the checkpoints.
      abstract: the shapes and types of the run's state.
      description: the run's description.
      facts: the run's `run_facts`.

    Raises:
      UserError: if the run can't resume: no checkpoint is intact, or the settings, the data or jax's own
        settings differ.
    """
    with Checkpoints(directory) as checkpoints:
        found = _newest_sound_state(checkpoints, abstract, description, replicated(jax.devices()))
    if found is None:
        return None
    state, record, damaged, changed = found
    place = f"{directory}/{record['step']}"
    require_same_data(place, record, facts["data"])
    _require_same_numerics(place, record, facts)
    for group in ("topology", "versions"):
        changed += [
            f"{name} {new} (was {old})"
            for name, new in facts[group].items()
            if (old := record[group].get(name)) != new
        ]
    return Restored(as_local(state), record, damaged, changed)


def _newest_sound_state(
    checkpoints: Checkpoints, abstract: TrainState, description: Description, sharding: Sharding
) -> tuple[TrainState, Record, dict[int, str], list[str]] | None:
    """Return the state of the newest intact checkpoint; see `Restored` for the results."""
    damaged: dict[int, str] = {}
    for step in reversed(checkpoints.steps):
        place = f"{checkpoints.directory}/{step}"
        try:
            record = checkpoints.read_record(step)
            changed = description.require_same(place, description.settings_of_record(place, record))
            if [leaf[:3] for leaf in record["leaves"]] != shapes(abstract):
                raise UserError(
                    f"{place} holds arrays that don't fit this version's network: use the version that wrote "
                    f"it ({record['versions']})"
                )
            like = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract
            )
            return checkpoints.restore(step, like, record), record, damaged, changed
        except DamagedError as error:
            damaged[step] = str(error)
    if damaged:
        raise UserError(no_intact_checkpoint(checkpoints.directory, damaged))
    return None


def no_intact_checkpoint(directory: epath.Path, damaged: dict[int, str]) -> str:
    """Return the message about a directory whose checkpoints are all damaged."""
    found = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
    return (
        f"{directory}: no checkpoint is intact ({found}): restore one from a backup, or choose another "
        "workdir"
    )


def require_same_data(place: str, record: Record, found: Json | None) -> None:
    """Check that a checkpoint was trained on these data.

    Args:
      place: the path of the checkpoint.
      record: its record; without data if the checkpoint was imported.
      found: the fingerprint of the data; None if they are unknown.

    Raises:
      UserError: if the data differ.
    """
    trained = record["data"]
    if trained is not None and found is not None and trained != found:
        raise UserError(
            f"{place} was trained on {trained}, but the data are {found} now: restore the original files, or "
            "choose another workdir"
        )


def _require_same_numerics(place: str, record: Record, facts: Record) -> None:
    """Check that a checkpoint was trained with the same settings of jax; an older record lacks them."""
    for name, new in facts["jax"].items():
        old = record.get("jax", {}).get(name, new)
        if old != new:
            raise UserError(
                f"{place} was trained with {name}={old!r}, found {new!r}: set {name.upper()} as before, or "
                "choose another workdir"
            )
