"""The trained network of a run: its module and its variables."""

from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ncsn_jax.app.build import described, network
from ncsn_jax.app.config import Config, Sampling, parse
from ncsn_jax.app.flags import flagged
from ncsn_jax.app.imports import is_import_path
from ncsn_jax.models import as_score_fn
from ncsn_jax.models.score_fn import NetworkScore
from ncsn_jax.runtime.determinism import pinned
from ncsn_jax.runtime.errors import ArgumentError, UserError
from ncsn_jax.runtime.paths import expanded
from ncsn_jax.training import description
from ncsn_jax.training.manifest import Record
from ncsn_jax.training.state import fitting_params
from ncsn_jax.training.variables import restored_variables
from ncsn_jax.training.workdir import checkpoint_dir


def load_run(workdir: Path) -> Config:
    """Return the config of the run in a directory.

    Raises:
      UserError: if the directory holds no run, or one that Python code made.
    """
    content = description.read(workdir)
    if description.is_by_identity(content):
        raise UserError(
            f"{workdir} holds a run that Python code made, without a config; "
            "ncsn_jax.training.restore(workdir, model=...) returns its network"
        )
    try:
        return parse(content)
    except UserError as error:
        raise UserError(f"{workdir / description.CONFIG} is not this program's config: {error}") from None


@pinned()
def restore(
    workdir: str | PathLike[str],
    *,
    step: int | None = None,
    ema: bool = True,
    ema_length: float | None = None,
    model: nn.Module | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Restore a trained model: `ncsn_jax.training.restore`."""
    workdir = Path(expanded(workdir))
    content, config = description.read(workdir), None
    if description.is_by_identity(content):
        if model is None:
            raise UserError(
                f"{workdir} holds a run that Python code made: pass its network, restore(workdir, model=...)"
            )
        given = content["settings"].get("checkpoint_dir")
    else:
        config = load_run(workdir)
        given = config.training.checkpoint_dir
        if model is None:
            if is_import_path(config.model.name):
                raise UserError(
                    f"{workdir} holds a network of {config.model.name!r}, and restore imports nothing that a "
                    "run names: pass the network, restore(workdir, model=...)"
                )
            model = network(config)
    place = checkpoint_dir(workdir, given)
    variables, record = restored_variables(place, step=step, ema=ema, ema_length=ema_length)
    if config is not None:
        require_same_run(f"{place}/{record['step']}", record, config)
    _require_fit(model, variables, record)
    return model, variables


def restored_score(workdir: Path, config: Config) -> NetworkScore:
    """Return the score of the newest checkpoint in a run's directory, computed as the config says."""
    place = checkpoint_dir(workdir, config.training.checkpoint_dir)
    with flagged("config.sampling.", Sampling):
        variables, record = restored_variables(place, ema_length=config.sampling.ema_length)
    require_same_run(f"{place}/{record['step']}", record, load_run(workdir))
    model = network(config)
    with flagged("config."):
        _require_fit(model, variables, record)
    return as_score_fn(model, variables)


def require_same_run(place: str, record: Record, config: Config) -> None:
    """Check that a checkpoint was trained by a config, except for settings that may change.

    Args:
      place: the path of the checkpoint.
      record: its record.
      config: the config of the run's directory.

    Raises:
      UserError: if other settings differ.
    """
    own = described(config)
    own.require_same(place, own.settings_of_record(place, record))


def _require_fit(model: nn.Module, variables: dict[str, Any], record: Record) -> None:
    """Check that the network takes these variables, if the record tells the shape of its inputs."""
    inputs = record.get("inputs") or (record["data"] or {}).get("shape")
    if not isinstance(inputs, list):
        return
    expected, _ = fitting_params(model, jax.ShapeDtypeStruct(tuple(inputs), jnp.float32))
    if jax.tree.map(jnp.shape, expected) != jax.tree.map(jnp.shape, variables["params"]):
        raise ArgumentError(
            f"model={type(model).__name__} has {len(jax.tree.leaves(expected))} arrays, and the checkpoint "
            f"{len(jax.tree.leaves(variables))}, or of other shapes; accepted: the network that was trained"
        )
