"""From an official PyTorch checkpoint to a run: config, parameters, moving average, optimizer state, step."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from ncsn_jax import data
from ncsn_jax.config import Config, MlpModel, NcsnModel, Ncsnv2Model
from ncsn_jax.errors import UserError
from ncsn_jax.interop import from_torch, load_torch_checkpoint
from ncsn_jax.interop.torch_names import params_from_torch, params_to_torch
from ncsn_jax.interop.torch_networks import levels_of
from ncsn_jax.models import NCSN
from ncsn_jax.models.layers import ConditionalInstanceNorm, VarianceNorm
from ncsn_jax.noise import geometric_sigmas
from ncsn_jax.training import workdir as run
from ncsn_jax.training.checkpoints import Checkpoints
from ncsn_jax.training.parallel import replicate
from ncsn_jax.training.state import TrainState


class OfficialRun(NamedTuple):
    """What a checkpoint of the official code holds.

    Attributes:
      model: the network, of default activation.
      params: its parameters, and those below, as parameter trees.
      sigmas: its noise levels, if the file has them.
      ema_params: the moving average of the parameters, if any.
      moments: Adam's first and second moments, if any.
      step: how many updates were made.
      optimizer: Adam's learning_rate, beta1, beta2 and epsilon, if any.
      dropped: why there are no moments; None if there are.
    """

    model: nn.Module
    params: Any
    sigmas: tuple[float, ...] | None
    ema_params: Any
    moments: tuple[Any, Any] | None
    step: int
    optimizer: dict[str, float]
    dropped: str | None


def read_checkpoint(path: str | Path) -> OfficialRun:
    """Reads `[model, optimizer]` or `[model, optimizer, epoch, step(, EMA)]`, or a bare state dict.

    Raises:
      UserError: if the file is none of these; one line says why.
    """
    try:
        return _official_run(load_torch_checkpoint(path))
    except ValueError as error:
        message = str(error)
        raise UserError(message if message.startswith(str(path)) else f"{path}: {message}") from error


def experiment_of(official: OfficialRun) -> tuple[str, ...]:
    """The file in `configs/`, and its argument, of the official experiment that has such a network."""
    channels = official.params["begin_conv"]["kernel"].shape[2]
    sigma_begin = official.sigmas[0] if official.sigmas else 0.0
    if channels == 1:
        return ("mnist",)
    if isinstance(official.model, NCSN):
        return ("cifar10", "ncsn")
    return {
        4: ("celeba" if sigma_begin > 70 else "cifar10", "ncsnv2"),
        5: ("lsun", "bedroom" if sigma_begin > 165 else "church"),
        6: ("ffhq",),
    }[official.model.depth]  # pyright: ignore[reportAttributeAccessIssue]


def imported_config(official: OfficialRun, config: Config) -> Config:
    """A config with the checkpoint's network, noise levels and optimizer in place of its own."""
    training = {**official.optimizer, "num_steps": max(config.training.num_steps, official.step)}
    if official.ema_params is not None and config.training.ema_rate == 0.0:
        training["ema_rate"] = 0.999  # the official one; 0 would forget the average at the next step
    return Config.model_validate(
        config.model_dump()
        | {
            "model": _model_settings(official, config.model).model_dump(),
            "training": config.training.model_dump() | training,
        }
    )


def import_run(official: OfficialRun, config: Config, workdir: Path) -> None:
    """Makes a directory the run that a checkpoint was taken from.

    Args:
      official: the checkpoint.
      config: the run's settings, of `imported_config`.
      workdir: the directory; must be empty or missing.

    Raises:
      UserError: if the directory isn't empty, or the network doesn't fit the config's dataset.
    """
    if (workdir / "config.json").exists():
        raise UserError(f"{workdir} holds a run already: choose another --workdir")
    run.check(workdir, config)
    channels = official.params["begin_conv"]["kernel"].shape[2]
    shape = data.describe(config.data).shape
    if len(shape) != 3 or shape[2] != channels:
        raise UserError(
            f"the checkpoint's network takes images of {channels} channels, and config.data.name="
            f"{config.data.name!r} has the shape {shape}: choose another --config"
        )
    run.abstract_state(config)  # refuses images that the network can't halve
    opt_state = run.optimizer(config).init(official.params)
    if official.moments is not None:
        mu, nu = official.moments
        opt_state = optax.tree.set(opt_state, mu=mu, nu=nu, count=jnp.asarray(official.step, jnp.int32))
    state = TrainState(
        step=jnp.asarray(official.step, jnp.int32),
        params=official.params,
        opt_state=opt_state,
        ema_params=official.params if official.ema_params is None else official.ema_params,
    )
    # The config comes last: a directory with a config and no checkpoint would train from the start.
    with Checkpoints(workdir / "checkpoints", keep=config.training.keep_checkpoints) as checkpoints:
        checkpoints.save(official.step, replicate(state))
    run.claim(workdir, config)


def report(official: OfficialRun, config: Config, workdir: Path) -> str:
    """What was imported, in two lines."""
    levels = config.model.noise_levels
    return "\n".join(
        [
            f"{workdir}: {type(official.model).__name__} of {len(jax.tree.leaves(official.params))} tensors, "
            f"{len(levels)} noise levels from {levels[0]:g} to {levels[-1]:g}, step {official.step}, "
            + ("no moving average, " if official.ema_params is None else "its moving average, ")
            + (f"a new optimizer state: {official.dropped}" if official.dropped else "Adam's state"),
            f"Images, batches and sampling are those of data.name={config.data.name!r}; see "
            f"{workdir / 'config.json'}",
        ]
    )


def _official_run(checkpoint: Any) -> OfficialRun:
    if isinstance(checkpoint, Mapping):
        checkpoint = [checkpoint]
    if not isinstance(checkpoint, list) or len(checkpoint) not in (1, 2, 4, 5):
        found = f"a list of {len(checkpoint)}" if isinstance(checkpoint, list) else type(checkpoint).__name__
        raise ValueError(
            "an official checkpoint is a list [model, optimizer] or [model, optimizer, epoch, step(, EMA)], "
            f"or a state dict: found {found}"
        )
    state_dict, optimizer, _, step, shadow = [*checkpoint, *[None] * (5 - len(checkpoint))]
    model, variables = from_torch(state_dict)
    params, sigmas = _single_precision(variables["params"]), levels_of(variables)
    ema_params = None
    if shadow is not None:
        ema_model, ema_variables = from_torch(shadow, sigmas=sigmas)
        if ema_model != model:
            raise ValueError("its moving average is of another network than its model")
        ema_params = _single_precision(ema_variables["params"])
    adam_step, settings, moments, dropped = _adam(optimizer, params)
    if step is not None and (type(step) is not int or not 0 <= step < 2**31):
        raise ValueError(f"its fourth element, the step, must be an integer, found {str(step)[:50]}")
    return OfficialRun(
        model, params, sigmas, ema_params, moments, adam_step if step is None else step, settings, dropped
    )


def _adam(optimizer: Any, params: Any) -> tuple[int, dict[str, float], tuple[Any, Any] | None, str | None]:
    """The step, the settings and the moments of a `torch.optim.Adam`, and why there are none."""
    if optimizer is None:
        return 0, {}, None, "the file has none"
    try:
        (group,), state = optimizer["param_groups"], optimizer["state"]
        ids = list(group["params"])
        beta1, beta2 = group["betas"]
        settings = {
            "learning_rate": float(group["lr"]),
            "beta1": float(beta1),
            "beta2": float(beta2),
            "epsilon": float(group["eps"]),
        }
        for name in ("weight_decay", "amsgrad", "maximize"):
            if group.get(name):
                return 0, {}, None, f"it was made with {name}={group[name]}"
        if not state:
            return 0, settings, None, "it has made no step"
        states = [state[i] for i in ids]
        steps = {int(s["step"]) for s in states}
        moments = [[np.asarray(s[name]) for s in states] for name in ("exp_avg", "exp_avg_sq")]
    except (KeyError, TypeError, ValueError, AttributeError):
        return 0, {}, None, "it isn't Adam's"
    names = params_to_torch(params)
    if len(steps) != 1 or not 0 <= min(steps) < 2**31:
        raise ValueError(f"its optimizer has made {sorted(steps)[:4]} steps; one number was expected")
    if any([m.shape for m in moment] != [p.shape for p in names.values()] for moment in moments):
        raise ValueError("its optimizer's moments don't have the shapes of its model's parameters")
    mu, nu = (
        _single_precision(params_from_torch(dict(zip(names, moment, strict=True)))) for moment in moments
    )
    return steps.pop(), settings, (mu, nu), None


def _single_precision(params: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)


def _model_settings(official: OfficialRun, given: NcsnModel | Ncsnv2Model | MlpModel):
    """The settings that build the checkpoint's network; what it can't tell is as given."""
    model: Any = official.model
    norms = {VarianceNorm: "variance_norm", ConditionalInstanceNorm: "instance_norm"}
    settings = {
        "num_filters": model.num_filters,
        "depth": model.depth,
        "norm": norms.get(model.norm, "instance_norm_plus"),
        "act": given.act if not isinstance(given, MlpModel) else "elu",
    }
    kind = NcsnModel if isinstance(model, NCSN) else Ncsnv2Model
    if official.sigmas is not None:
        return kind(**settings, **_levels(official.sigmas))
    is_chosen = given.sigmas != "auto"
    if isinstance(model, NCSN) and not (is_chosen and len(given.noise_levels) == len(model.sigmas)):
        return kind(**settings, **_levels(model.sigmas))
    if not is_chosen:
        raise UserError(
            "the checkpoint has no noise levels, and config.model.sigmas='auto' would choose others"
        )
    names = ("sigmas", "sigma_begin", "sigma_end", "num_scales")
    return kind(**settings, **{name: getattr(given, name) for name in names})


def _levels(sigmas: tuple[float, ...]) -> dict[str, Any]:
    """The settings of noise levels: geometric ones by their ends, others one by one."""
    # The shortest decimal that rounds to the same single-precision number: 0.01, not 0.009999999776.
    begin, end = (float(str(np.float32(sigma))) for sigma in (sigmas[0], sigmas[-1]))
    ends = {"sigma_begin": begin, "sigma_end": end, "num_scales": len(sigmas)}
    if begin > end > 0 and np.array_equal(
        geometric_sigmas(begin, end, len(sigmas)), np.asarray(sigmas, np.float32)
    ):
        return ends
    return ends | {"sigmas": sigmas}
