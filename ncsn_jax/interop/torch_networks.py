"""Conversion of official PyTorch state dicts to networks of this package, and back."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ncsn_jax.interop.torch_names import (
    ALL_MODULES,
    REFINENET,
    UNET,
    Naming,
    Tensors,
    official_shapes,
    params_from_torch,
    params_to_torch,
)
from ncsn_jax.interop.torch_unets import unet
from ncsn_jax.models import NCSN, NCSNpp, NCSNv2
from ncsn_jax.models.layers import ConditionalInstanceNorm, VarianceNorm
from ncsn_jax.noise import geometric_sigmas

PREFIX = "module."
"""Prefix that `torch.nn.DataParallel` puts before every name."""


def from_torch(
    state_dict: Tensors, *, sigmas: Sequence[float] | np.ndarray | jax.Array | None = None, **fields: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """Return a network with the weights of an official one, recognised by its tensors' names and shapes.

    The official networks are `CondRefineNetDilated` and `CondRefineNetDeeperDilated`; from the second
    repository `NCSN`, `NCSNdeeper`, `NCSNv2`, `NCSNv2Deeper` and `NCSNv2Deepest`; from `score_sde_pytorch`
    `ncsnpp` and `ddpm`. They may have any width, and be saved with or without `DataParallel`. The shadow
    parameters of a moving average are accepted too; for `score_sde_pytorch`, `average_of` names them.

    Args:
      state_dict: the tensors by name, as in `load_torch_checkpoint(path)[0]`, or `["model"]` in files of
        `score_sde_pytorch`.
      sigmas: the noise levels, descending; None takes the state dict's `sigmas` or, for an `NCSN` without
        them, the geometric levels from 1 to 0.01 of the NCSN repository.
      **fields: fields of the network that its tensors don't determine: `act`, and `rescaled` (for images in
        [−1, 1] or after a logit transform). An `NCSNpp` also has `fir`, `fir_kernel`, `skip_rescale`,
        `scale_by_sigma` and `num_groups`, whose defaults are the values of the published experiment that has
        such a network, and `dropout`, 0 by default. A network with positional embeddings and
        `scale_by_sigma=False` takes labels instead of σ, and `VPScore` makes it a score.

    Returns:
      The network and its variables: `params`, with the dtypes found. For `to_torch` there may also be
      `buffers`, which holds the state dict's `sigmas`, and an empty `module`, which stands for the names'
      prefix.

    Raises:
      ValueError: if it isn't a state dict of such a network; the message names the first entries that are
        missing, unknown or of another shape.

    Reference:
      https://github.com/ermongroup/ncsn, https://github.com/ermongroup/ncsnv2 and
      https://github.com/yang-song/score_sde_pytorch (the classes named above).
    """
    if not isinstance(state_dict, Mapping):
        raise ValueError(
            f"from_torch takes a state dict (arrays by name), found a {type(state_dict).__name__}; an "
            "official checkpoint is a list whose first element is the state dict, or a dict with it as "
            "'model'"
        )
    for name, tensor in state_dict.items():
        if name == "model" and isinstance(tensor, Mapping):
            raise ValueError(
                "from_torch takes a state dict (arrays by name), found a checkpoint: use ['model']"
            )
        if not isinstance(name, str) or not isinstance(tensor, np.ndarray):
            raise ValueError(
                "a state dict must map strings to numpy arrays, found a "
                f"{type(tensor).__name__} for {str(name)[:80]!r}"
            )
    is_prefixed = bool(state_dict) and all(name.startswith(PREFIX) for name in state_dict)
    tensors = {name[len(PREFIX) * is_prefixed :]: tensor for name, tensor in state_dict.items()}
    variables: dict[str, Any] = {"module": {}} if is_prefixed else {}
    levels = tensors.pop("sigmas", None)
    if levels is not None:
        variables["buffers"] = {"sigmas": levels}
        if sigmas is not None:
            variables["buffers"] = {"sigmas": np.asarray(sigmas, levels.dtype)}
    model = _network(tensors, levels if sigmas is None else np.asarray(sigmas), fields)
    _check_shapes(model, tensors)
    return model, variables | {"params": params_from_torch(tensors, naming_of(model))}


def naming_of(model: nn.Module) -> Naming:
    """Return the official names of a network's family."""
    return UNET if isinstance(model, NCSNpp) else REFINENET


def average_of(checkpoint: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the state dict of the moving average in a checkpoint of `score_sde_pytorch`.

    The file holds a list without names, of the parameters that are trained. The others, the noise levels and
    the Fourier frequencies, are the model's.

    Args:
      checkpoint: the dict that `load_torch_checkpoint` returns.

    Raises:
      ValueError: if the average doesn't have the model's shapes.
    """
    try:
        state_dict, shadow = dict(checkpoint["model"]), list(checkpoint["ema"]["shadow_params"])
    except (KeyError, TypeError, ValueError):
        raise ValueError("it has no 'model' and 'ema' with 'shadow_params'") from None
    names = list(map(str, state_dict))
    trained = [name for name in names if name.split(".")[-2:] != ["0", "W"] and "sigmas" not in name]
    shapes = [getattr(state_dict.get(name), "shape", None) for name in trained]
    if shapes != [getattr(tensor, "shape", None) for tensor in shadow]:
        raise ValueError(
            f"its moving average of {len(shadow)} tensors doesn't have the shapes of the {len(trained)} "
            "trained tensors of its model"
        )
    return state_dict | dict(zip(trained, shadow, strict=True))


def to_torch(model: nn.Module, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the state dict of a network, with the official names and order: the inverse of `from_torch`.

    `to_torch(*from_torch(d))` has exactly d's names and values. To use it with PyTorch:

        torch.save({name: torch.tensor(value) for name, value in state_dict.items()}, path)

    A network trained here has no `buffers`. The official `NCSNv2` classes, and the `NCSN` of their
    repository, need their levels: add `{"sigmas": np.asarray(sigmas, np.float32)}`.

    Args:
      model: an `NCSN`, `NCSNv2` or `NCSNpp`; the `network` of a `VPScore`.
      variables: its variables, `{"params": ...}`.

    Returns:
      Arrays by name.

    Raises:
      ValueError: if the model is of no such class, or the variables don't fit it.
    """
    if not isinstance(model, NCSN | NCSNv2 | NCSNpp):
        raise ValueError(f"only NCSN, NCSNv2 and NCSNpp have official names, found {type(model).__name__}")
    if isinstance(model, NCSNpp) and not model.middle_attention:
        raise ValueError("the official NCSN++ has attention in its middle, found middle_attention=False")
    if getattr(model, "conditions", None) is not None:
        raise ValueError(f"the official networks take no condition, found conditions={model.conditions}")
    if "params" not in variables:
        raise ValueError(f"variables must be {{'params': ...}}, found {_some(variables)}")
    prefix = PREFIX if "module" in variables else ""
    buffers = {name: np.asarray(value) for name, value in variables.get("buffers", {}).items()}
    try:
        tensors = params_to_torch(variables["params"], naming_of(model))
    except (ValueError, AttributeError):
        raise ValueError(
            f"the parameters {_some(variables['params'])} aren't an {type(model).__name__}'s; for a VPScore, "
            "pass its network and variables['params']['network']"
        ) from None
    _check_shapes(model, tensors)
    return {prefix + name: tensor for name, tensor in (buffers | tensors).items()}


def _network(tensors: Tensors, levels: np.ndarray | None, fields: Mapping[str, Any]) -> nn.Module:
    """Return the module that the state dict's names indicate; `_check_shapes` checks whether it fits."""
    if levels is not None:
        levels = _checked_levels(levels)
    if any(name.startswith(ALL_MODULES) for name in tensors):
        return unet(tensors, None if levels is None else tuple(map(float, levels)), fields)
    first = tensors.get("begin_conv.weight")
    if first is None or first.ndim != 4 or first.size == 0:
        raise ValueError(
            "not a state dict of an NCSN, NCSNv2 or NCSN++: it has no begin_conv.weight with four axes, "
            f"found {_some(tensors)}"
        )
    stages = {name.split(".")[0] for name in tensors}
    fields = {
        "num_filters": first.shape[0],
        "depth": 6 if "res31" in stages else 5 if "res5" in stages else 4,
        **fields,
    }
    table = tensors.get("normalizer.embed.weight")
    if table is None:
        if "normalizer.gamma" not in tensors:
            fields = {"norm": VarianceNorm, **fields}
        return NCSNv2(**fields)
    if table.ndim != 2:
        raise ValueError(f"normalizer.embed.weight must be (levels, 3·filters), found {table.shape}")
    if levels is None:
        levels = np.asarray(geometric_sigmas(1.0, 0.01, table.shape[0]))
    if len(levels) != table.shape[0]:
        raise ValueError(f"the network has {table.shape[0]} noise levels, found {len(levels)} sigmas")
    if table.shape[1] == 2 * first.shape[0]:
        fields = {"norm": ConditionalInstanceNorm, **fields}
    return NCSN(sigmas=tuple(map(float, levels)), **fields)


def _checked_levels(levels: np.ndarray) -> np.ndarray:
    """Return noise levels in single precision, in which all networks have them."""
    try:
        levels = levels.astype(np.float32)
    except (TypeError, ValueError):
        raise ValueError(f"sigmas must be numbers, found {_some(levels.ravel())}") from None
    if levels.ndim != 1 or levels.size == 0 or not np.all((levels > 0) & (levels < np.inf)):
        raise ValueError(f"sigmas must be a row of positive noise levels, found {_some(levels.ravel())}")
    return levels


def _check_shapes(model: nn.Module, tensors: Tensors) -> None:
    """Check the tensors against the network's parameters, by name and shape."""
    is_unet = isinstance(model, NCSNpp)
    stem = f"{ALL_MODULES}{2 + (model.embedding == 'fourier')}" if is_unet else "begin_conv"
    first = tensors.get(f"{stem}.weight")
    if first is not None and (first.ndim != 4 or first.size == 0):
        raise ValueError(f"the state dict has {stem}.weight of the shape {first.shape}; accepted: four axes")
    try:
        expected = _official_shapes(model, 1 if first is None else first.shape[1])
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"no such network can be built: {' '.join(str(error).split())[:200]}") from None
    depth = f"multipliers={model.multipliers}" if is_unet else f"depth={model.depth}"  # pyright: ignore[reportAttributeAccessIssue]
    network = f"{type(model).__name__} with {depth} and num_filters={model.num_filters}"  # pyright: ignore[reportAttributeAccessIssue]
    for problem, names in (
        ("lacks", [name for name in expected if name not in tensors]),
        ("has the unknown", [name for name in tensors if name not in expected]),
        (
            "has the wrong shape for",
            [
                f"{name}: {tensors[name].shape}, not {expected[name]}"
                for name in expected
                if name in tensors and tensors[name].shape != expected[name]
            ],
        ),
        (
            "has no floating numbers for",
            [name for name, tensor in tensors.items() if not jnp.issubdtype(tensor.dtype, jnp.floating)],
        ),
    ):
        if names:
            raise ValueError(f"the state dict looks like an {network}, but {problem} {_some(names)}")


@functools.cache
def _official_shapes(model: nn.Module, channels: int) -> dict[str, tuple[int, ...]]:
    """The official shapes of the network's tensors, by their official names."""
    side = 16 if not isinstance(model, NCSNpp) else 2 ** (len(model.multipliers) - 1)
    image = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image, jnp.ones(1))["params"]
    return official_shapes(params, naming_of(model))


def _some(names) -> str:
    """The first few names, in one short line."""
    names = [str(name)[:80] for name in names]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "no entries"
