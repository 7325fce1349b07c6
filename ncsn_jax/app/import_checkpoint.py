"""Import of official PyTorch checkpoints: config, parameters, moving average, optimizer state, step."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from ncsn_jax.app.build import dataset_info, described, network, optimizer, settings_of_network
from ncsn_jax.app.config import NCSN_NORMS, NCSNV2_NORMS, Config, RefineNetModel, parse
from ncsn_jax.app.flags import flagged
from ncsn_jax.interop import from_torch, load_torch_checkpoint
from ncsn_jax.interop.torch_names import params_from_torch, params_to_torch
from ncsn_jax.models import NCSN
from ncsn_jax.noise import geometric_sigmas
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.runtime.locking import only_writer
from ncsn_jax.training import description
from ncsn_jax.training.checkpoints import Checkpoints
from ncsn_jax.training.description import changes, flatten
from ncsn_jax.training.manifest import make_record, run_facts
from ncsn_jax.training.parallel import replicate
from ncsn_jax.training.state import first_state, fitting_params
from ncsn_jax.training.workdir import check, checkpoint_dir


class AdamState(NamedTuple):
    """The state of `torch.optim.Adam`: its number of steps, and its moments as parameter trees."""

    num_steps: int
    mu: Any
    nu: Any


class OfficialRun(NamedTuple):
    """The contents of a checkpoint of the official code.

    Attributes:
      model: the network, with the default activation.
      params: its parameters.
      sigmas: its noise levels, if the file has them.
      ema_params: the moving average of the parameters, if any.
      step: the number of updates made.
      optimizer: Adam's learning_rate, beta1, beta2 and epsilon, if known.
      adam: Adam's state, or the reason why it is missing.
    """

    model: nn.Module
    params: Any
    sigmas: tuple[float, ...] | None = None
    ema_params: Any = None
    step: int = 0
    optimizer: Mapping[str, float] = {}
    adam: AdamState | str = "the file holds no state"

    @property
    def channels(self) -> int:
        """The number of channels of the network's images."""
        return self.params["begin_conv"]["kernel"].shape[2]


def read_checkpoint(path: str | Path) -> OfficialRun:
    """Read `[model, optimizer]`, `[model, optimizer, epoch, step(, EMA)]`, or a bare state dict.

    Raises:
      UserError: if the file is none of these; one line says why.
    """
    try:
        return _official_run(load_torch_checkpoint(path))
    except ValueError as error:
        message = str(error)
        raise UserError(message if message.startswith(str(path)) else f"{path}: {message}") from error


def experiment_of(official: OfficialRun) -> tuple[str, ...]:
    """Return the file in `configs/`, and its argument, of the official experiment with this network.

    Raises:
      UserError: if the checkpoint doesn't determine the experiment.
    """
    if isinstance(official.model, NCSN):
        return ("mnist",) if official.channels == 1 else ("cifar10", "ncsn")
    if official.channels == 1:
        return ("mnist", "ncsnv2")
    if official.sigmas is None:
        raise UserError(
            "the checkpoint has an NCSNv2 but no noise levels, so the experiment is unknown: name it with "
            "--config, such as configs/cifar10.py:ncsnv2"
        )
    return {
        4: ("celeba" if official.sigmas[0] > 70 else "cifar10", "ncsnv2"),
        5: ("lsun", "bedroom" if official.sigmas[0] > 165 else "church"),
        6: ("ffhq",),
    }[official.model.depth]  # pyright: ignore[reportAttributeAccessIssue]


def imported_config(official: OfficialRun, given: Config) -> Config:
    """Return the given config with the checkpoint's network, noise levels and optimizer.

    Raises:
      UserError: if the result isn't a valid config.
    """
    training = {**official.optimizer, "num_steps": max(given.training.num_steps, official.step)}
    if official.ema_params is not None and given.training.ema_rate == 0.0:
        training["ema_rate"] = 0.999  # the official rate; 0 would discard the average at the next step
    settings = given.model_dump()
    settings["model"] = _model_settings(official, given)
    settings["training"] |= training
    return parse(settings)


def import_run(official: OfficialRun, settings: Config, workdir: Path) -> None:
    """Turn an official checkpoint into a run that training can resume.

    Args:
      official: the checkpoint.
      settings: the run's settings, from `imported_config`, with the network's settings unchanged.
      workdir: the run's directory; must be empty or missing.

    Raises:
      UserError: if the directory isn't empty, or the checkpoint, the settings and the dataset don't fit
        together; the directory then stays unchanged.
    """
    if (workdir / "config.json").exists():
        raise UserError(f"{workdir} holds a run already: choose another --workdir")
    own = described(settings)
    with flagged("config.training."):
        check(workdir, settings.training, own)
    shape = dataset_info(settings).shape
    if len(shape) != 3 or shape[2] != official.channels:
        raise UserError(
            f"the checkpoint's network takes images of {official.channels} channels, but config.data.name="
            f"{settings.data.name!r} has the shape {shape}: choose another --config"
        )
    if settings.model.sigmas == "auto":
        raise UserError("config.model.sigmas='auto': a trained network already has noise levels; omit this")
    if settings.training.num_steps < official.step:
        raise UserError(
            f"config.training.num_steps={settings.training.num_steps}: "
            f"the checkpoint is at step {official.step}; use at least that"
        )
    with settings_of_network(settings):
        expected, _ = fitting_params(network(settings), jax.ShapeDtypeStruct(shape, jnp.float32))
    if jax.tree.map(jnp.shape, expected) != jax.tree.map(jnp.shape, official.params):
        fitting = imported_config(official, settings)
        differing = [
            f"config.{name}={given!r}: the checkpoint's network has {has!r}"
            for name, (has, given) in changes(*(flatten(c.model_dump()) for c in (fitting, settings))).items()
            if name.startswith("model.")
        ]
        raise UserError("; ".join(differing))
    state = first_state(official.params, optimizer(settings.training))
    state = state.replace(step=jnp.asarray(official.step, jnp.int32))
    if official.ema_params is not None:
        state = state.replace(ema_params=official.ema_params)
    if isinstance(official.adam, AdamState):
        count = jnp.asarray(official.adam.num_steps, jnp.int32)
        moments = {"mu": official.adam.mu, "nu": official.adam.nu}
        state = state.replace(opt_state=optax.tree.set(state.opt_state, **moments, count=count))
    directory = checkpoint_dir(workdir, settings.training.checkpoint_dir)
    with only_writer(workdir):
        check(workdir, settings.training, own)
        # First the checkpoint, then the config: an import that is killed in between can be repeated.
        with Checkpoints(directory, keep=settings.training.keep_checkpoints) as checkpoints:
            if checkpoints.steps:
                raise UserError(f"{directory} holds checkpoints already: choose another --workdir")
            state = replicate(state)
            facts = run_facts(own.content, data=None)
            checkpoints.save(official.step, state, make_record(facts, official.step, state))
        description.write(workdir, own)


def report(official: OfficialRun, settings: Config, workdir: Path) -> str:
    """Return a two-line summary of the import."""
    levels = settings.model.noise_levels
    found = [
        f"{type(official.model).__name__} of {len(jax.tree.leaves(official.params))} tensors",
        f"step {official.step}",
        "no moving average" if official.ema_params is None else "its moving average",
        f"a new optimizer state ({official.adam})" if isinstance(official.adam, str) else "Adam's state",
        f"{len(levels)} noise levels from {levels[0]:g} to {levels[-1]:g}"
        + (" (from the config: the file has no levels)" if official.sigmas is None else ""),
    ]
    taken = f"Images, batches and sampling follow data.name={settings.data.name!r}"
    return f"{workdir}: {', '.join(found)}\n{taken}; see {workdir / 'config.json'}"


def _official_run(checkpoint: Any) -> OfficialRun:
    if isinstance(checkpoint, Mapping):
        checkpoint = [checkpoint]
    if not isinstance(checkpoint, list) or len(checkpoint) not in (1, 2, 4, 5):
        found = f"a list of {len(checkpoint)}" if isinstance(checkpoint, list) else type(checkpoint).__name__
        raise ValueError(
            f"found {found}; accepted: a list [model, optimizer] or [model, optimizer, epoch, step(, EMA)], "
            "or a state dict"
        )
    state_dict, optimizer, _, step, shadow = [*checkpoint, *[None] * (5 - len(checkpoint))]
    model, variables = from_torch(state_dict)
    params = _single_precision(variables["params"])
    levels = variables.get("buffers", {}).get("sigmas")
    sigmas = None if levels is None else tuple(map(float, levels))
    ema_params = None
    if shadow is not None:
        ema_model, ema_variables = from_torch(shadow, sigmas=sigmas)
        if ema_model != model:
            raise ValueError("its moving average belongs to a different network than its model")
        ema_params = _single_precision(ema_variables["params"])
    settings, adam = _adam(optimizer, params)
    if step is not None:
        step = _integer(step, "its fourth element, the step,")
    elif isinstance(adam, AdamState):
        step = adam.num_steps
    return OfficialRun(model, params, sigmas, ema_params, step or 0, settings, adam)


def _adam(optimizer: Any, params: Any) -> tuple[dict[str, float], AdamState | str]:
    """Return the settings and the state of a `torch.optim.Adam`, or the reason why there is no state."""
    if optimizer is None:
        return {}, "the file holds no state"
    try:
        (group,), state = optimizer["param_groups"], optimizer["state"]
        beta1, beta2 = group["betas"]
        numbers = [float(number) for number in (group["lr"], beta1, beta2, group["eps"])]
        ids = list(group["params"])
        found = [state[i] for i in ids if i in state]
        moments = [[np.asarray(s[name]) for s in found] for name in ("exp_avg", "exp_avg_sq")]
        counts = [s["step"] for s in found]
        foreign = [name for name in ("weight_decay", "amsgrad", "maximize") if group.get(name)]
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}, "it isn't an Adam state with one group"
    learning_rate, beta1, beta2, epsilon = numbers
    settings = dict(learning_rate=learning_rate, beta1=beta1, beta2=beta2, epsilon=epsilon)
    if foreign:
        return {}, f"it was made with {foreign[0]}={group[foreign[0]]}"
    if not found:
        return settings, "it has made no step"
    tensors = params_to_torch(params)
    if len(found) != len(tensors) or len(ids) != len(tensors):
        return settings, f"it has {len(found)} moments for {len(tensors)} parameters"
    steps = {_integer(count, "its optimizer's number of steps") for count in counts}
    if len(steps) != 1:
        raise ValueError(f"its optimizer has several step counts, {sorted(steps)[:4]}; accepted: one")
    if any([m.shape for m in moment] != [p.shape for p in tensors.values()] for moment in moments):
        raise ValueError("its optimizer's moments don't have the shapes of its model's parameters")
    mu, nu = (
        _single_precision(params_from_torch(dict(zip(tensors, moment, strict=True)))) for moment in moments
    )
    return settings, AdamState(steps.pop(), mu, nu)


def _integer(value: Any, name: str) -> int:
    """Return an int from an int or a one-element tensor: PyTorch counts steps as either."""
    number = np.asarray(value)
    if number.ndim == 0 and number.dtype.kind in "iuf" and number == np.round(number) and 0 <= number < 2**31:
        return int(number)
    raise ValueError(f"{name} must be a whole number, found {str(value)[:50]!r}")


def _single_precision(params: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)


def _model_settings(official: OfficialRun, given: Config) -> dict[str, Any]:
    """Return the settings that build the checkpoint's network; `given` fills in the unknown ones."""
    model: Any = official.model
    name, norms = ("ncsn", NCSN_NORMS) if isinstance(model, NCSN) else ("ncsnv2", NCSNV2_NORMS)
    settings = {
        "name": name,
        "num_filters": model.num_filters,
        "depth": model.depth,
        "norm": next(norm for norm, module in norms.items() if module is model.norm),
        "act": given.model.act if isinstance(given.model, RefineNetModel) else "elu",
    }
    if official.sigmas is not None:
        return settings | _levels(official.sigmas)
    is_chosen = given.model.sigmas != "auto"
    if isinstance(model, NCSN) and not (is_chosen and len(given.model.noise_levels) == len(model.sigmas)):
        return settings | _levels(model.sigmas)
    if not is_chosen:
        raise UserError(
            "the checkpoint has no noise levels, and config.model.sigmas='auto' would choose new ones: set "
            "the levels it was trained with"
        )
    names = ("sigmas", "sigma_begin", "sigma_end", "num_scales")
    return settings | {name: getattr(given.model, name) for name in names}


def _levels(sigmas: tuple[float, ...]) -> dict[str, Any]:
    """Return the settings of noise levels: the ends of a geometric sequence, or a list."""
    # The shortest decimal that rounds to the same single-precision number: 0.01, not 0.009999999776.
    begin, end = (float(str(np.float32(sigma))) for sigma in (sigmas[0], sigmas[-1]))
    ends = {"sigma_begin": begin, "sigma_end": end, "num_scales": len(sigmas)}
    if begin > end and np.array_equal(
        geometric_sigmas(begin, end, len(sigmas)), np.asarray(sigmas, np.float32)
    ):
        return ends
    return {"sigmas": sigmas}
