"""Official PyTorch checkpoints: network, parameters, moving average, optimizer state, step."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from ncsn_jax.interop import average_of, from_torch, load_torch_checkpoint
from ncsn_jax.interop.torch_names import params_from_torch, params_to_torch
from ncsn_jax.interop.torch_networks import naming_of
from ncsn_jax.interop.torch_unets import Published, published
from ncsn_jax.models import NCSNpp
from ncsn_jax.models.layers import FROZEN
from ncsn_jax.runtime.errors import UserError


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
      ema_rate: its rate, if known.
      step: the number of updates made.
      optimizer: Adam's learning_rate, beta1, beta2 and epsilon, if known.
      adam: Adam's state, or the reason why it is missing.
    """

    model: nn.Module
    params: Any
    sigmas: tuple[float, ...] | None = None
    ema_params: Any = None
    ema_rate: float | None = None
    step: int = 0
    optimizer: Mapping[str, float] = {}
    adam: AdamState | str = "the file holds no state"

    @property
    def channels(self) -> int:
        """The number of channels of the network's images."""
        convs = [name for name in self.params if name.startswith("conv_")]  # an NCSN++'s, by their numbers
        first = min(convs, key=lambda name: int(name.removeprefix("conv_")), default="begin_conv")
        return self.params[first]["kernel"].shape[2]

    @property
    def published(self) -> Published | None:
        """The published experiment of an NCSN++, which has the fields that no tensor determines."""
        if not isinstance(self.model, NCSNpp):
            return None
        return published(
            {field.name: getattr(self.model, field.name) for field in dataclasses.fields(self.model)}
        )


def read_checkpoint(path: str | Path) -> OfficialRun:
    """Read `[model, optimizer]`, `[model, optimizer, epoch, step(, EMA)]`, a bare state dict, or a dict with
    `model`, `optimizer`, `ema` and `step`, as `score_sde_pytorch` saves it.

    Raises:
      UserError: if the file is none of these; one line says why.
    """
    try:
        return _official_run(load_torch_checkpoint(path))
    except ValueError as error:
        message = str(error)
        raise UserError(message if message.startswith(str(path)) else f"{path}: {message}") from error


def _official_run(checkpoint: Any) -> OfficialRun:
    if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get("model"), Mapping):
        return _score_sde_run(checkpoint)
    if isinstance(checkpoint, Mapping):
        checkpoint = [checkpoint]
    if not isinstance(checkpoint, list) or len(checkpoint) not in (1, 2, 4, 5):
        found = f"a list of {len(checkpoint)}" if isinstance(checkpoint, list) else type(checkpoint).__name__
        raise ValueError(
            f"found {found}; accepted: a list [model, optimizer] or [model, optimizer, epoch, step(, EMA)], "
            "a dict with 'model', 'optimizer', 'ema' and 'step', or a state dict"
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
    settings, adam = _adam(optimizer, model, params)
    if step is not None:
        step = _integer(step, "its fourth element, the step,")
    elif isinstance(adam, AdamState):
        step = adam.num_steps
    return OfficialRun(model, params, sigmas, ema_params, None, step or 0, settings, adam)


def _score_sde_run(checkpoint: Mapping[str, Any]) -> OfficialRun:
    model, variables = from_torch(checkpoint["model"])
    params, levels = _single_precision(variables["params"]), variables.get("buffers", {}).get("sigmas")
    ema_params, ema_rate = None, None
    if "ema" in checkpoint:
        ema_params = _single_precision(from_torch(average_of(checkpoint))[1]["params"])
        ema_rate = checkpoint["ema"].get("decay")
        if type(ema_rate) is not float or not 0 <= ema_rate < 1:
            raise ValueError(f"its 'ema' has the decay {str(ema_rate)[:50]!r}; accepted: a number below 1")
    settings, adam = _adam(checkpoint.get("optimizer"), model, params)
    step = _integer(checkpoint.get("step", 0), "its 'step'")
    sigmas = None if levels is None else tuple(map(float, levels))
    return OfficialRun(model, params, sigmas, ema_params, ema_rate, step, settings, adam)


def _adam(optimizer: Any, model: nn.Module, params: Any) -> tuple[dict[str, float], AdamState | str]:
    """Return the settings and the state of a `torch.optim.Adam`, or the reason why there is no state."""
    if optimizer is None:
        return {}, "the file holds no state"
    try:
        (group,), state = optimizer["param_groups"], optimizer["state"]
        beta1, beta2 = group["betas"]
        numbers = [float(number) for number in (group["lr"], beta1, beta2, group["eps"])]
        ids = list(group["params"])
        found = {i: state[i] for i in ids if i in state}
        moments = {i: [np.asarray(s[name]) for name in ("exp_avg", "exp_avg_sq")] for i, s in found.items()}
        counts = [s["step"] for s in found.values()]
        foreign = [name for name in ("weight_decay", "amsgrad", "maximize") if group.get(name)]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return {}, "it isn't an Adam state with one group"
    learning_rate, beta1, beta2, epsilon = numbers
    settings = dict(learning_rate=learning_rate, beta1=beta1, beta2=beta2, epsilon=epsilon)
    if foreign:
        return {}, f"it was made with {foreign[0]}={group[foreign[0]]}"
    if not found:
        return settings, "it has made no step"
    naming = naming_of(model)
    tensors = params_to_torch(params, naming)
    frozen = {naming.name(path) for path in traverse_util.flatten_dict(params) if path[-1].startswith(FROZEN)}
    if len(ids) != len(tensors) or len(found) != len(tensors) - len(frozen):
        return settings, f"it has {len(found)} moments for {len(tensors) - len(frozen)} parameters"
    steps = {_integer(count, "its optimizer's number of steps") for count in counts}
    if len(steps) != 1:
        raise ValueError(f"its optimizer has several step counts, {sorted(steps)[:4]}; accepted: one")
    own = {}
    for i, (name, tensor) in zip(ids, tensors.items(), strict=True):
        own[name] = [np.zeros_like(tensor)] * 2 if name in frozen else moments.get(i, [])
    if any([m.shape for m in own[name]] != [tensor.shape] * 2 for name, tensor in tensors.items()):
        raise ValueError("its optimizer's moments don't have the shapes of its model's parameters")
    mu, nu = (
        _single_precision(params_from_torch({name: own[name][i] for name in own}, naming)) for i in (0, 1)
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
