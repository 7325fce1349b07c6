"""The variables of a trained network, read from its checkpoints alone."""

import operator
from typing import Any

import jax
from etils import epath

from ncsn_jax.runtime import processes
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.training.checkpoints import Checkpoints, DamagedCheckpointError, DamagedError
from ncsn_jax.training.manifest import Record
from ncsn_jax.training.resume import no_intact_checkpoint
from ncsn_jax.training.snapshots import average_of_length


def restored_variables(
    directory: epath.Path, *, step: int | None = None, ema: bool = True, ema_length: float | None = None
) -> tuple[dict[str, Any], Record]:
    """Return the variables of a checkpoint, on this process's first device, and its record.

    Args:
      directory: the directory of the checkpoints.
      step: the step of the checkpoint; None for the newest intact one.
      ema: whether to return the moving average of the parameters, instead of the parameters themselves.
      ema_length: the length σ_rel of an average by a power function, made of the stored ones; None is the
        first average.

    Raises:
      DamagedCheckpointError: if the checkpoint of the step is damaged.
      UserError: if there is no intact checkpoint, or none of that step; if the step is not an int; or if the
        length is out of reach.
    """
    name = "ema_params" if ema else "params"
    if ema_length is not None and not ema:
        raise UserError(f"ema=False, ema_length={ema_length}: accepted: a length with ema=True, or None")
    with Checkpoints(directory) as checkpoints:
        variables, record = _restored(checkpoints, step, name)
        if ema_length is None:
            return variables, record
        try:
            return {"params": average_of_length(checkpoints, record, ema_length)}, record
        except DamagedError as error:
            place = f"{checkpoints.directory}/{record['step']}"
            raise DamagedCheckpointError(f"{place} is damaged: {error}") from error


def _restored(checkpoints: Checkpoints, step: int | None, name: str) -> tuple[dict[str, Any], Record]:
    place, steps = checkpoints.directory, checkpoints.steps
    if step is None or not steps:
        return _newest(checkpoints, name)
    try:
        step = operator.index(step)
    except TypeError:
        raise UserError(f"step={step!r}: accepted: an int, one of {steps}") from None
    if step not in steps:
        raise UserError(f"{place} holds no checkpoint of step {step}; accepted: {steps}")
    try:
        return _variables(checkpoints, step, name)
    except DamagedError as error:
        raise DamagedCheckpointError(f"{place}/{step} is damaged: {error}") from error


def _newest(checkpoints: Checkpoints, name: str) -> tuple[dict[str, Any], Record]:
    directory = checkpoints.directory
    damaged: dict[int, str] = {}
    for step in reversed(checkpoints.steps):
        try:
            found = _variables(checkpoints, step, name)
        except DamagedError as error:
            if not (directory / str(step)).exists():  # deleted by a training process
                checkpoints.reopen()
                return _newest(checkpoints, name)
            damaged[step] = str(error)
            continue
        for number, reason in damaged.items():
            processes.say(f"{directory}/{number} is damaged ({reason}): using an older checkpoint")
        return found
    if damaged:
        raise UserError(no_intact_checkpoint(directory, damaged))
    raise UserError(f"{directory} holds no checkpoint yet: continue training")


def _variables(checkpoints: Checkpoints, step: int, name: str) -> tuple[dict[str, Any], Record]:
    record = checkpoints.read_record(step)
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return {"params": checkpoints.restore_part(step, name, record, sharding)}, record
