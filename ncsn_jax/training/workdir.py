"""The directory of a run: its owner, the settings that may change on a resume, and the restored model."""

import contextlib
import functools
import json
import operator
import os
import sys
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import optax
import orbax.checkpoint as ocp
from etils import epath
from flax import linen as nn
from jax.sharding import Sharding

from ncsn_jax import data
from ncsn_jax.config import Config, changes, parse
from ncsn_jax.config import load as load_config
from ncsn_jax.runtime import processes
from ncsn_jax.runtime.determinism import pinned
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.runtime.files import write_whole
from ncsn_jax.runtime.locking import lock_name, only_writer
from ncsn_jax.runtime.paths import FOR_BUCKETS, expanded, is_url
from ncsn_jax.runtime.streams import stream
from ncsn_jax.training.checkpoints import (
    Checkpoints,
    DamagedCheckpointError,
    DamagedError,
)
from ncsn_jax.training.logging import kept_lines
from ncsn_jax.training.manifest import Record, shapes
from ncsn_jax.training.state import TrainState, adam, first_state, initial_params
from ncsn_jax.typing import PRNGKey

DIRECTORIES = ("checkpoints", "samples", "tensorboard")
"""Entries of a workdir that training writes into."""
LEFT_BY_A_START = ("checkpoints", "config.json.partial", lock_name())
"""Entries that an interrupted first start may leave. The checkpoints' records name their run."""
MAY_CHANGE = (
    "data.data_dir",
    "evaluation.",
    "restoration.",
    "sampling.",
    "training.checkpoint_dir",
    "training.checkpoint_every",
    "training.eval_every",
    "training.eval_examples",
    "training.keep_best",
    "training.keep_checkpoints",
    "training.log_every",
    "training.max_",
    "training.preview_",
)
"""Settings, or prefixes of settings, that don't affect the final parameters of a run."""


def optimizer(config: Config) -> optax.GradientTransformation:
    """Return the config's optimizer."""
    names = ("learning_rate", "schedule", "num_steps", "warmup_steps")
    names += ("beta1", "beta2", "epsilon", "gradient_clip")
    return adam(**{name: getattr(config.training, name) for name in names})


def initial_state(config: Config) -> TrainState:
    """Draw the state before the first step, on one device."""
    _, draw = _beginning(config)  # pyright: ignore[reportArgumentType]
    return first_state(draw(_initial_key(config)), optimizer(config))


def abstract_state(config: Config) -> TrainState:
    """Return the shapes and dtypes of the run's state; compute nothing.

    Raises:
      UserError: if the network can't take the dataset's examples.
    """
    try:
        return _beginning(config)[0]  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"config.model.name={config.model.name!r} can't take the examples of "
            f"config.data.name={config.data.name!r}: {' '.join(str(error).split())[:200]}"
        ) from error


@functools.cache
def _beginning(config: Config) -> tuple[TrainState, Callable[[PRNGKey], Any]]:
    """Return the first state's shapes and dtypes, and a function that draws its parameters; traces once."""
    key = jax.eval_shape(lambda: _initial_key(config))
    params, draw = initial_params(key, config.network(), data.describe(config.data).shape)
    return jax.eval_shape(functools.partial(first_state, optimizer=optimizer(config)), params), draw


def _initial_key(config: Config) -> PRNGKey:
    return stream(config.seed, "initialization")


@contextlib.contextmanager
def opened(workdir: Path, config: Config) -> Iterator[None]:
    """Lock the directory for this config's run, so that no other process trains there.

    The first process locks it; every process must call this. `claim` then writes the run's config.

    Raises:
      UserError: if the directory can't hold this run (see `check`), or another process trains there.
    """
    with contextlib.ExitStack() as stack:

        def hold_it() -> None:
            check(workdir, config)
            stack.enter_context(only_writer(workdir))
            check(workdir, config)  # another process may have written in between

        processes.by_first(hold_it)
        yield


def check(workdir: Path, config: Config) -> None:
    """Check that the directory can hold this run; write nothing.

    Raises:
      UserError: if it can't be written, holds another config's run, or holds files that belong to no run.
    """
    path = workdir / "config.json"
    if path.exists():
        require_same(str(workdir), load_config(path), config)
        trained = checkpoint_steps(workdir, config)
        if trained and trained[-1] > config.training.num_steps:
            raise UserError(
                f"{workdir} is trained to step {trained[-1]}, more than "
                f"config.training.num_steps={config.training.num_steps}: use a larger number, or choose "
                "another --workdir"
            )
    elif workdir.is_dir() and not all(map(_is_left_by_a_start, workdir.iterdir())):
        raise UserError(f"{workdir} is not empty and holds no run (no config.json): choose another --workdir")
    _require_writable(workdir)
    for name in DIRECTORIES:
        if (workdir / name).exists() and not (workdir / name).is_dir():
            raise UserError(f"{workdir / name} is not a directory: move it away")
    place = checkpoint_dir(workdir, config)
    checkpoint_steps(workdir, config)  # refuses a bucket that can't be read
    if not is_url(place):
        _require_writable(Path(place))
    if path.exists():
        _require_found(workdir, config)


def _is_left_by_a_start(path: Path) -> bool:
    return path.name in LEFT_BY_A_START or path.suffix == ".lock"


def _require_writable(place: Path) -> None:
    """Refuse a directory that can't be made or written."""
    # A dangling link counts as existing.
    existing = next(p for p in (place, *place.absolute().parents) if os.path.lexists(p))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{place} can't be written ({existing} is not a writable directory)")


def _require_found(workdir: Path, config: Config) -> None:
    """Refuse to start over if the run's checkpoints are in another place, or must have existed."""
    if checkpoint_steps(workdir, config):
        return
    place, kept = checkpoint_dir(workdir, config), load_config(workdir / "config.json")
    before = checkpoint_dir(workdir, kept)
    if before != place and checkpoint_steps(workdir, kept):
        raise UserError(
            f"config.training.checkpoint_dir={str(place)!r} holds no checkpoint, and {before} does: use that "
            "one, or copy its checkpoints"
        )
    logged = max((line["step"] for line in map(json.loads, kept_lines(workdir, sys.maxsize))), default=0)
    if logged >= 2 * kept.training.checkpoint_every:
        raise UserError(
            f"{place} holds no checkpoint, and {workdir}/metrics.jsonl reaches step {logged}: restore "
            "the checkpoints, or move metrics.jsonl away to train from the start"
        )


def require_same(place: str, trained: Config, config: Config) -> list[str]:
    """Check that a run can resume with a config.

    Returns:
      The allowed changes, such as "training.log_every=50 (was 100)".

    Raises:
      UserError: if settings that must not change differ; the message names each.
    """
    may_change, refused = [], []
    for name, (old, new) in changes(trained, config).items():
        if name.startswith(MAY_CHANGE) or (
            name == "training.num_steps" and config.training.schedule == "constant"
        ):
            may_change.append(f"{name}={new!r} (was {old!r})")
        else:
            refused.append(f"{name}={old!r}, not {new!r}")
    if refused:
        raise UserError(
            f"{place} holds a run with {', '.join(refused)}: use its settings, or choose another --workdir"
        )
    return may_change


def checkpoint_dir(workdir: Path, config: Config) -> epath.Path:
    """Return the directory of a run's checkpoints."""
    return epath.Path(config.training.checkpoint_dir or workdir / "checkpoints")


def checkpoint_steps(workdir: Path, config: Config) -> list[int]:
    """Return the steps of a run's checkpoints, ascending; a single process may call this.

    Raises:
      UserError: if they are in a bucket that can't be read.
    """
    directory = checkpoint_dir(workdir, config)
    try:
        found = ocp.path.step.standard_name_format().find_all(directory) if directory.exists() else ()
    except ImportError as error:
        raise UserError(f"{directory}: {error}; {FOR_BUCKETS}") from error
    return sorted(checkpoint.step for checkpoint in found)


def claim(workdir: Path, config: Config) -> None:
    """Write the config, which claims the directory for this run: the first write, after every check."""
    workdir.mkdir(parents=True, exist_ok=True)
    text = config.model_dump_json(indent=2) + "\n"
    write_whole(workdir / "config.json", lambda file: file.write(text.encode()))


def load_run(workdir: Path) -> Config:
    """Return the config of the run in a directory.

    Raises:
      UserError: if the directory holds no run.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir} holds no run (no config.json): train one there first")
    return load_config(path)


def newest_sound_state(
    checkpoints: Checkpoints, config: Config, sharding: Sharding
) -> tuple[TrainState, Record, dict[int, str]] | None:
    """Return the state of the newest intact checkpoint.

    Args:
      checkpoints: the run's checkpoints.
      config: the run's settings.
      sharding: the sharding of the restored state.

    Returns:
      The state, its record, and the steps of newer, damaged checkpoints with the reasons; None if there is
      no checkpoint.

    Raises:
      UserError: if no checkpoint is intact, or the newest intact one belongs to another run.
    """
    damaged: dict[int, str] = {}
    for step in reversed(checkpoints.steps):
        try:
            return *sound_state(checkpoints, step, config, sharding), damaged
        except DamagedError as error:
            if not (checkpoints.directory / str(step)).exists():  # deleted by a training process
                checkpoints.reopen()
                return newest_sound_state(checkpoints, config, sharding)
            damaged[step] = str(error)
    if damaged:
        found = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
        raise UserError(
            f"{checkpoints.directory}: no checkpoint is intact ({found}): restore one from a backup, or "
            "choose another --workdir"
        )
    return None


def sound_state(
    checkpoints: Checkpoints, step: int, config: Config, sharding: Sharding
) -> tuple[TrainState, Record]:
    """Return the state of a checkpoint, and its record.

    Raises:
      DamagedError: if the checkpoint is damaged.
      UserError: if the checkpoint belongs to another run.
    """
    place = f"{checkpoints.directory}/{step}"
    record = checkpoints.read_record(step)
    try:
        trained = parse(record["config"])
    except UserError as error:
        raise UserError(f"{place} was written by a different version of this program: {error}") from error
    require_same(place, trained, config)
    abstract = abstract_state(config)
    if [leaf[:3] for leaf in record["leaves"]] != shapes(abstract):
        raise UserError(
            f"{place} holds arrays that don't fit this version's network: use the version that wrote it "
            f"({record['versions']})"
        )
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract
    )
    return checkpoints.restore(step, like, record), record


def require_same_data(place: str, record: Record, facts: Record) -> None:
    """Check that a checkpoint was trained on these data.

    Args:
      place: the path of the checkpoint.
      record: its record; without data if the checkpoint was imported.
      facts: `run_facts` of this process.

    Raises:
      UserError: if the data differ.
    """
    trained, found = record["data"], facts["data"]
    if trained not in (None, found):
        raise UserError(
            f"{place} was trained on {trained} of config.data.name={facts['config']['data']['name']!r}, but "
            f"the data are {found} now: restore the original files, or choose another --workdir"
        )


def require_same_numerics(place: str, record: Record, facts: Record) -> None:
    """Check that a checkpoint was trained with the same settings of jax.

    Args:
      place: the path of the checkpoint.
      record: its record; an older one lacks these settings.
      facts: `run_facts` of this process.

    Raises:
      UserError: if the settings differ.
    """
    for name, new in facts["jax"].items():
        old = record.get("jax", {}).get(name, new)
        if old != new:
            raise UserError(
                f"{place} was trained with {name}={old!r}, found {new!r}: set {name.upper()} as before, or "
                "choose another --workdir"
            )


def read_record(workdir: Path, config: Config, step: int) -> tuple[str, Record]:
    """Return the path of a checkpoint, and its record.

    Raises:
      UserError: if the record is damaged.
    """
    with Checkpoints(checkpoint_dir(workdir, config)) as checkpoints:
        place = f"{checkpoints.directory}/{step}"
        try:
            return place, checkpoints.read_record(step)
        except DamagedError as error:
            raise DamagedCheckpointError(f"{place} is damaged: {error}") from error


@pinned()
def restore(
    workdir: str | PathLike[str], *, step: int | None = None, ema: bool = True
) -> tuple[nn.Module, dict[str, Any]]:
    """Restore a trained model.

    Args:
      workdir: the directory of a run.
      step: the step of the checkpoint; None for the newest intact one.
      ema: whether to return the moving average of the parameters, instead of the parameters themselves.

    Returns:
      The network and its variables, ready for `as_score_fn` or `model.apply`.

    Raises:
      UserError: if there is no run, no intact checkpoint, or no checkpoint of that step; or if the step is
        not an int.
    """
    try:
        step = None if step is None else operator.index(step)
    except TypeError:
        raise UserError(f"step={step!r}: accepted: an int, or None for the newest checkpoint") from None
    workdir = Path(expanded(workdir))
    config = load_run(workdir)
    on_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with Checkpoints(checkpoint_dir(workdir, config)) as checkpoints:
        directory, steps = checkpoints.directory, checkpoints.steps
        if step is None or not steps:
            found = newest_sound_state(checkpoints, config, on_device)
            if found is None:
                raise UserError(f"{directory} holds no checkpoint yet: continue training")
            state, _, damaged = found
            for number, reason in damaged.items():
                processes.say(f"{directory}/{number} is damaged ({reason}): using an older checkpoint")
        elif step in steps:
            try:
                state, _ = sound_state(checkpoints, step, config, on_device)
            except DamagedError as error:
                raise DamagedCheckpointError(f"{directory}/{step} is damaged: {error}") from error
        else:
            raise UserError(f"{directory} holds no checkpoint of step {step}; accepted: {steps}")
    return config.network(), {"params": state.ema_params if ema else state.params}
