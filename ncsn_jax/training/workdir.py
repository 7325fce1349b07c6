"""A run's directory: whose it is, what may change when it goes on, and the way back to its model."""

import contextlib
import functools
import operator
import os
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

from ncsn_jax import data, hosts
from ncsn_jax.config import Config, changes, parse
from ncsn_jax.config import load as load_config
from ncsn_jax.determinism import pinned
from ncsn_jax.errors import UserError
from ncsn_jax.files import write_whole
from ncsn_jax.locking import lock_name, only_writer
from ncsn_jax.paths import expanded
from ncsn_jax.streams import stream
from ncsn_jax.training.checkpoints import FOR_BUCKETS, Checkpoints, DamagedError
from ncsn_jax.training.record import Record, shapes
from ncsn_jax.training.state import TrainState, adam, first_state, initial_params
from ncsn_jax.typing import PRNGKey

LEFT_BY_A_START = ("checkpoints", "config.json.partial", lock_name())
"""What may stand in a directory without a config: whose checkpoints they are, their records tell."""
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
"""The settings, or their prefixes, that decide nothing about the parameters a run ends with."""


def optimizer(config: Config) -> optax.GradientTransformation:
    """The optimizer that the config asks for."""
    names = ("learning_rate", "schedule", "num_steps", "warmup_steps")
    names += ("beta1", "beta2", "epsilon", "gradient_clip")
    return adam(**{name: getattr(config.training, name) for name in names})


def initial_state(config: Config) -> TrainState:
    """The state before the first step, on one device."""
    _, draw = _beginning(config)  # pyright: ignore[reportArgumentType]
    return first_state(draw(_initial_key(config)), optimizer(config))


def abstract_state(config: Config) -> TrainState:
    """The shapes and dtypes of the run's state; computes nothing.

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
    """The first state's shapes and dtypes, and what draws its parameters: all of one tracing."""
    key = jax.eval_shape(lambda: _initial_key(config))
    params, draw = initial_params(key, config.network(), data.describe(config.data).shape)
    return jax.eval_shape(functools.partial(first_state, optimizer=optimizer(config)), params), draw


def _initial_key(config: Config) -> PRNGKey:
    return stream(config.seed, "initialization")


@contextlib.contextmanager
def opened(workdir: Path, config: Config) -> Iterator[None]:
    """Holds the directory for this config's run, which no other process may train meanwhile.

    The first process does it; every process must ask. `claim` then makes the directory the run's.

    Raises:
      UserError: if it can't be (see `check`), or another process trains there.
    """
    with contextlib.ExitStack() as stack:

        def hold_it() -> None:
            check(workdir, config)
            stack.enter_context(only_writer(workdir))
            check(workdir, config)  # another process may have come and gone

        hosts.by_first(hold_it)
        yield


def check(workdir: Path, config: Config) -> None:
    """Makes sure that the directory can hold this run; writes nothing.

    Raises:
      UserError: if it can't be written, holds another config's run, or things that are no run's.
    """
    path = workdir / "config.json"
    if path.exists():
        require_same(str(workdir), load_config(path), config)
        trained = checkpoint_steps(workdir, config)
        if trained and trained[-1] > config.training.num_steps:
            raise UserError(
                f"{workdir} is trained to step {trained[-1]}, more than "
                f"config.training.num_steps={config.training.num_steps}: ask for more, or choose another "
                "--workdir"
            )
    elif workdir.is_dir() and any(p.name not in LEFT_BY_A_START for p in workdir.iterdir()):
        raise UserError(f"{workdir} is not empty and holds no run (no config.json): choose another --workdir")
    # A link to nowhere is there, too.
    existing = next(p for p in (workdir, *workdir.absolute().parents) if os.path.lexists(p))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{workdir} can't be written ({existing} is not a writable directory)")


def require_same(place: str, trained: Config, config: Config) -> list[str]:
    """Makes sure that a run can go on with a config.

    Returns:
      What changes that may, such as "training.log_every=50, not 100".

    Raises:
      UserError: if what must not change does; it names each.
    """
    may_change, refused = [], []
    for name, (old, new) in changes(trained, config).items():
        if name.startswith(MAY_CHANGE) or (
            name == "training.num_steps" and config.training.schedule == "constant"
        ):
            may_change.append(f"{name}={new!r}, not {old!r}")
        else:
            refused.append(f"{name}={old!r}, not {new!r}")
    if refused:
        raise UserError(
            f"{place} holds a run with {', '.join(refused)}: go on with its settings, or choose another "
            "--workdir"
        )
    return may_change


def checkpoint_dir(workdir: Path, config: Config) -> epath.Path:
    """Where a run's checkpoints lie."""
    return epath.Path(config.training.checkpoint_dir or workdir / "checkpoints")


def checkpoint_steps(workdir: Path, config: Config) -> list[int]:
    """The steps of a run's checkpoints, ascending; one process may ask, without the others.

    Raises:
      UserError: if they lie in a bucket that can't be read.
    """
    directory = checkpoint_dir(workdir, config)
    try:
        found = ocp.path.step.standard_name_format().find_all(directory) if directory.exists() else ()
    except ImportError as error:
        raise UserError(f"{directory}: {error}; {FOR_BUCKETS}") from error
    return sorted(checkpoint.step for checkpoint in found)


def claim(workdir: Path, config: Config) -> None:
    """Makes the directory this config's run: the first write, after every check."""
    workdir.mkdir(parents=True, exist_ok=True)
    text = config.model_dump_json(indent=2) + "\n"
    write_whole(workdir / "config.json", lambda file: file.write(text.encode()))


def load_run(workdir: Path) -> Config:
    """The config of the run in a directory.

    Raises:
      UserError: if there is none.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir} holds no run (no config.json): train one there first")
    return load_config(path)


def newest_sound_state(
    checkpoints: Checkpoints, config: Config, sharding: Sharding
) -> tuple[TrainState, Record, dict[int, str]] | None:
    """The state of the newest checkpoint that is whole.

    Args:
      checkpoints: the run's.
      config: the run's settings.
      sharding: where the state is to lie.

    Returns:
      The state, its record, and which newer checkpoints are damaged, and why; None if there is no checkpoint.

    Raises:
      UserError: if none is whole, or the newest whole one is of another run.
    """
    damaged: dict[int, str] = {}
    for step in reversed(checkpoints.steps):
        try:
            return *sound_state(checkpoints, step, config, sharding), damaged
        except DamagedError as error:
            if not (checkpoints.directory / str(step)).exists():  # a process that trains has deleted it
                checkpoints.reopen()
                return newest_sound_state(checkpoints, config, sharding)
            damaged[step] = str(error)
    if damaged:
        found = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
        raise UserError(
            f"{checkpoints.directory}: no checkpoint is whole ({found}): bring one back from a copy, or "
            "choose another --workdir"
        )
    return None


def sound_state(
    checkpoints: Checkpoints, step: int, config: Config, sharding: Sharding
) -> tuple[TrainState, Record]:
    """The state of a checkpoint, and its record.

    Raises:
      DamagedError: if it isn't as it was written.
      UserError: if it is of another run.
    """
    place = f"{checkpoints.directory}/{step}"
    record = checkpoints.read_record(step)
    try:
        trained = parse(record["config"])
    except UserError as error:
        raise UserError(f"{place} is of another version of this program: {error}") from error
    require_same(place, trained, config)
    abstract = abstract_state(config)
    if [leaf[:3] for leaf in record["leaves"]] != shapes(abstract):
        raise UserError(
            f"{place} holds other arrays than this version's network has: go on with the version that wrote "
            f"it ({record['versions']})"
        )
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract
    )
    return checkpoints.restore(step, like, record), record


def require_same_data(place: str, record: Record, facts: Record) -> None:
    """Makes sure that the data are those that a checkpoint was trained on.

    Args:
      place: the checkpoint.
      record: what it says of itself; an imported one knows no data.
      facts: `run_facts` of this process.

    Raises:
      UserError: if they are others.
    """
    trained, found = record["data"], facts["data"]
    if trained not in (None, found):
        raise UserError(
            f"{place} was trained on {trained} of config.data.name={facts['config']['data']['name']!r}, and "
            f"there is {found} now: bring back the files as they were, or choose another --workdir"
        )


def require_same_numerics(place: str, record: Record, facts: Record) -> None:
    """Makes sure that jax's own settings are those that a checkpoint was made with.

    Args:
      place: the checkpoint.
      record: what it says of itself; an older one knows none of them.
      facts: `run_facts` of this process.

    Raises:
      UserError: if they are others.
    """
    for name, new in facts["jax"].items():
        old = record.get("jax", {}).get(name, new)
        if old != new:
            raise UserError(
                f"{place} was trained with {name}={old!r}, found {new!r}: set {name.upper()} as it was, or "
                "choose another --workdir"
            )


def read_record(workdir: Path, config: Config, step: int) -> tuple[str, Record]:
    """The place of a checkpoint, and what it says of itself.

    Raises:
      UserError: if it is damaged.
    """
    with Checkpoints(checkpoint_dir(workdir, config)) as checkpoints:
        place = f"{checkpoints.directory}/{step}"
        try:
            return place, checkpoints.read_record(step)
        except DamagedError as error:
            raise UserError(f"{place} is damaged: {error}") from error


@pinned()
def restore(
    workdir: str | PathLike[str], *, step: int | None = None, ema: bool = True
) -> tuple[nn.Module, dict[str, Any]]:
    """A trained model.

    Args:
      workdir: the directory of a run.
      step: which checkpoint; the newest that is whole if None.
      ema: whether to take the moving average of the parameters, or else the parameters themselves.

    Returns:
      The network and its variables, ready for `as_score_fn` or `model.apply`.

    Raises:
      UserError: if there is no run, no checkpoint that is whole, or none of that step; or the step is no int.
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
                raise UserError(f"{directory} holds no checkpoint yet: train on")
            state, _, damaged = found
            for number, reason in damaged.items():
                hosts.say(f"{directory}/{number} is damaged ({reason}): the one before it is taken")
        elif step in steps:
            try:
                state, _ = sound_state(checkpoints, step, config, on_device)
            except DamagedError as error:
                raise UserError(f"{directory}/{step} is damaged: {error}") from error
        else:
            raise UserError(f"{directory} holds no checkpoint of step {step}, but of {steps}")
    return config.network(), {"params": state.ema_params if ema else state.params}
