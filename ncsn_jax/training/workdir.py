"""The directory of a run: its owner, and the checks before anything is written there."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from ncsn_jax.runtime import processes
from ncsn_jax.runtime.errors import ArgumentError, UserError
from ncsn_jax.runtime.locking import lock_name, only_writer
from ncsn_jax.runtime.paths import is_url
from ncsn_jax.training.checkpoints import steps_in
from ncsn_jax.training.description import CONFIG, Description, Json, read
from ncsn_jax.training.logging import kept_lines
from ncsn_jax.training.settings import RunSettings

DIRECTORIES = ("checkpoints", "samples", "tensorboard")
"""Entries of a workdir that training writes into."""
LEFT_BY_A_START = ("checkpoints", f"{CONFIG}.partial", lock_name())
"""Entries that an interrupted first start may leave. The checkpoints' records name their run."""


def checkpoint_dir(workdir: Path, given: str | None) -> epath.Path:
    """Return the directory of a run's checkpoints: the setting `checkpoint_dir`, or `checkpoints/`."""
    return epath.Path(given or workdir / "checkpoints")


@contextlib.contextmanager
def opened(workdir: Path, settings: RunSettings, description: Description) -> Iterator[None]:
    """Lock the directory for this run, so that no other process trains there.

    The first process locks it; every process must call this. `description.write` then claims the directory.

    Raises:
      UserError: if the directory can't hold this run (see `check`), or another process trains there.
    """
    with contextlib.ExitStack() as stack:

        def hold_it() -> None:
            check(workdir, settings, description)
            stack.enter_context(only_writer(workdir))
            check(workdir, settings, description)  # another process may have written in between

        processes.by_first(hold_it)
        yield


def check(workdir: Path, settings: RunSettings, description: Description) -> None:
    """Check that the directory can hold this run; write nothing.

    Raises:
      UserError: if it can't be written, holds another run, or holds files that belong to no run.
    """
    place, is_run = checkpoint_dir(workdir, settings.checkpoint_dir), (workdir / CONFIG).exists()
    if is_run:
        description.require_same(str(workdir), _settings_of(workdir, description))
        trained = steps_in(place)
        if trained and trained[-1] > settings.num_steps:
            raise ArgumentError(
                f"num_steps={settings.num_steps}: {workdir} is trained to step {trained[-1]}; use a larger "
                "number, or choose another workdir"
            )
    elif workdir.is_dir() and not all(map(_is_left_by_a_start, workdir.iterdir())):
        raise UserError(f"{workdir} is not empty and holds no run (no {CONFIG}): choose another workdir")
    _require_writable(workdir)
    for name in DIRECTORIES:
        if (workdir / name).exists() and not (workdir / name).is_dir():
            raise UserError(f"{workdir / name} is not a directory: move it away")
    steps_in(place)  # refuses a bucket that can't be read
    if not is_url(place):
        _require_writable(Path(place))
    if is_run:
        _require_found(workdir, place, description)


def _settings_of(workdir: Path, description: Description) -> Json:
    """Return the settings of the run in the directory, by name."""
    stored = read(workdir)
    try:
        return description.settings_of(stored)
    except UserError as error:
        raise UserError(f"{workdir / CONFIG} is not this program's config: {error}") from None


def _is_left_by_a_start(path: Path) -> bool:
    return path.name in LEFT_BY_A_START or path.suffix == ".lock"


def _require_writable(place: Path) -> None:
    """Refuse a directory that can't be made or written."""
    # A dangling link counts as existing.
    existing = next(p for p in (place, *place.absolute().parents) if os.path.lexists(p))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{place} can't be written ({existing} is not a writable directory)")


def _require_found(workdir: Path, place: epath.Path, description: Description) -> None:
    """Refuse to start over if the run's checkpoints are in another place, or must have existed."""
    if steps_in(place):
        return
    stored = _settings_of(workdir, description)
    before = checkpoint_dir(workdir, stored[f"{description.group}.checkpoint_dir"])
    if before != place and steps_in(before):
        raise ArgumentError(
            f"checkpoint_dir={str(place)!r} holds no checkpoint, and {before} does: use that one, or copy "
            "its checkpoints"
        )
    logged = max((line["step"] for line in map(json.loads, kept_lines(workdir, sys.maxsize))), default=0)
    if logged >= 2 * stored[f"{description.group}.checkpoint_every"]:
        raise UserError(
            f"{place} holds no checkpoint, and {workdir}/metrics.jsonl reaches step {logged}: restore "
            "the checkpoints, or move metrics.jsonl away to train from the start"
        )
