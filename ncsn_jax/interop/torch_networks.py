"""Conversion of official PyTorch state dicts to networks of this package, and back."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from ncsn_jax.interop.torch_names import Tensors, params_from_torch, params_to_torch, torch_name
from ncsn_jax.models import NCSN, NCSNv2
from ncsn_jax.models.layers import ConditionalInstanceNorm, VarianceNorm
from ncsn_jax.noise import geometric_sigmas

PREFIX = "module."
"""Prefix that `torch.nn.DataParallel` puts before every name."""


def from_torch(
    state_dict: Tensors, *, sigmas: Sequence[float] | np.ndarray | jax.Array | None = None, **fields: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """Return a network with the weights of an official one, recognised by its tensors' names and shapes.

    The official networks are `CondRefineNetDilated` and `CondRefineNetDeeperDilated`, and from the second
    repository `NCSN`, `NCSNdeeper`, `NCSNv2`, `NCSNv2Deeper` and `NCSNv2Deepest`, of any width, saved with or
    without `DataParallel`. The shadow parameters of the moving average are accepted too.

    Args:
      state_dict: the tensors by name, as in `load_torch_checkpoint(path)[0]`.
      sigmas: the noise levels, descending; None takes the state dict's `sigmas` or, for an `NCSN` without
        them, the geometric levels from 1 to 0.01 of the NCSN repository.
      **fields: fields of the network that its tensors don't determine: `act`, and `rescaled` (for images in
        [−1, 1] or after a logit transform).

    Returns:
      The network and its variables: `params`, with the dtypes found. For `to_torch` there may also be
      `buffers`, which holds the state dict's `sigmas`, and an empty `module`, which stands for the names'
      prefix.

    Raises:
      ValueError: if it isn't a state dict of such a network; the message names the first entries that are
        missing, unknown or of another shape.

    Reference:
      https://github.com/ermongroup/ncsn and https://github.com/ermongroup/ncsnv2 (the classes named above).
    """
    if not isinstance(state_dict, Mapping):
        raise ValueError(
            f"from_torch takes a state dict (arrays by name), found a {type(state_dict).__name__}; an "
            "official checkpoint is a list whose first element is the state dict"
        )
    for name, tensor in state_dict.items():
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
            variables["buffers"] = {"sigmas": np.asarray(sigmas, np.float32)}
    model = _network(tensors, levels if sigmas is None else np.asarray(sigmas), fields)
    _check_shapes(model, tensors)
    return model, variables | {"params": params_from_torch(tensors)}


def to_torch(model: nn.Module, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the state dict of a network, with the official names and order: the inverse of `from_torch`.

    `to_torch(*from_torch(d))` has exactly d's names and values. To use it with PyTorch:

        torch.save({name: torch.tensor(value) for name, value in state_dict.items()}, path)

    A network trained here has no `buffers`. The official `NCSNv2` classes, and the `NCSN` of their
    repository, need their levels: add `{"sigmas": np.asarray(sigmas, np.float32)}`.

    Args:
      model: an `NCSN` or `NCSNv2`.
      variables: its variables, `{"params": ...}`.

    Returns:
      Arrays by name.

    Raises:
      ValueError: if the model is neither class, or the variables don't fit it.
    """
    if not isinstance(model, NCSN | NCSNv2):
        raise ValueError(f"only NCSN and NCSNv2 have official names, found {type(model).__name__}")
    if "params" not in variables:
        raise ValueError(f"variables must be {{'params': ...}}, found {_some(variables)}")
    prefix = PREFIX if "module" in variables else ""
    buffers = {name: np.asarray(value) for name, value in variables.get("buffers", {}).items()}
    tensors = params_to_torch(variables["params"])
    _check_shapes(model, tensors)
    return {prefix + name: tensor for name, tensor in (buffers | tensors).items()}


def _network(tensors: Tensors, levels: np.ndarray | None, fields: Mapping[str, Any]) -> nn.Module:
    """Return the module that the state dict's names indicate; `_check_shapes` checks whether it fits."""
    first = tensors.get("begin_conv.weight")
    if first is None or first.ndim != 4 or first.size == 0:
        raise ValueError(
            "not a state dict of an NCSN or NCSNv2: it has no begin_conv.weight with four axes, found "
            f"{_some(tensors)}"
        )
    stages = {name.split(".")[0] for name in tensors}
    fields = {
        "num_filters": first.shape[0],
        "depth": 6 if "res31" in stages else 5 if "res5" in stages else 4,
        **fields,
    }
    table = tensors.get("normalizer.embed.weight")
    if levels is not None:
        try:
            levels = levels.astype(np.float32)
        except (TypeError, ValueError):
            raise ValueError(f"sigmas must be numbers, found {_some(levels.ravel())}") from None
        if levels.ndim != 1 or levels.size == 0 or not np.all((levels > 0) & (levels < np.inf)):
            raise ValueError(f"sigmas must be a row of positive noise levels, found {_some(levels.ravel())}")
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


def _check_shapes(model: nn.Module, tensors: Tensors) -> None:
    """Check the tensors against the network's parameters, by name and shape."""
    channels = tensors["begin_conv.weight"].shape[1] if "begin_conv.weight" in tensors else 1
    try:
        expected = _official_shapes(model, channels)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"no such network can be built: {' '.join(str(error).split())[:200]}") from None
    network = f"{type(model).__name__} with depth={model.depth} and num_filters={model.num_filters}"  # pyright: ignore[reportAttributeAccessIssue]
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
    image = jax.ShapeDtypeStruct((1, 16, 16, channels), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image, jnp.ones(1))["params"]
    shapes: dict[Any, Any] = traverse_util.flatten_dict(jax.tree.map(lambda leaf: leaf.shape, params))
    return {
        torch_name(path): shape[:-3:-1] + shape[:-2] if path[-1] == "kernel" else shape
        for path, shape in shapes.items()
    }


def _some(names) -> str:
    """The first few names, in one short line."""
    names = [str(name)[:80] for name in names]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "no entries"
