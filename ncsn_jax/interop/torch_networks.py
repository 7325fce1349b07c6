"""From the state dict of an official PyTorch network to a network of this package, and back."""

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
"""What `torch.nn.DataParallel` puts before every name."""


def from_torch(
    state_dict: Tensors, *, sigmas: Sequence[float] | np.ndarray | jax.Array | None = None, **fields: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """A network with the weights of an official one, recognised by its tensors' names and shapes.

    It knows `CondRefineNetDilated`, `CondRefineNetDeeperDilated`, and of the second repository `NCSN`,
    `NCSNdeeper`, `NCSNv2`, `NCSNv2Deeper` and `NCSNv2Deepest`, of any width, saved by a `DataParallel` or
    not; also the shadow parameters of the moving average.

    Args:
      state_dict: the tensors by name, as in `load_torch_checkpoint(path)[0]`.
      sigmas: the noise levels, descending; None takes the state dict's `sigmas`, or else, for an `NCSN`, the
        geometric ones from 1 to 0.01 of the NCSN repository.
      **fields: of the network, what its tensors can't tell: `act`, and `rescaled` (for images in [−1, 1] or
        after a logit transform).

    Returns:
      The network and its variables: `params`, of the dtypes found. For `to_torch` there may also be
      `buffers`, the levels of a state dict that has `sigmas`, and `module`, which is empty and stands for the
      names' prefix.

    Raises:
      ValueError: if it is no state dict of such a network; the message names the first entries that are
        missing, unknown or of another shape.

    Reference:
      https://github.com/ermongroup/ncsn and https://github.com/ermongroup/ncsnv2 (the classes named above).
    """
    if not isinstance(state_dict, Mapping):
        raise ValueError(
            f"from_torch takes a state dict (arrays by name), found a {type(state_dict).__name__}; an "
            "official checkpoint is a list, and its first element the state dict"
        )
    for name, tensor in state_dict.items():
        if not isinstance(name, str) or not isinstance(tensor, np.ndarray):
            raise ValueError(
                "a state dict has numpy arrays by name, found a "
                f"{type(tensor).__name__} by {str(name)[:80]!r}"
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
    """The state dict of a network under the official names, in the official order: `from_torch` backwards.

    `to_torch(*from_torch(d))` has exactly d's names and values. To use it with PyTorch:

        torch.save({name: torch.tensor(value) for name, value in state_dict.items()}, path)

    A network that was trained here has no `buffers`. The official `NCSNv2` classes, and `NCSN` of their
    repository, want their levels: add `{"sigmas": np.asarray(sigmas, np.float32)}`.

    Args:
      model: an `NCSN` or `NCSNv2`.
      variables: its variables, `{"params": ...}`.

    Returns:
      Arrays by name.

    Raises:
      ValueError: if it is another network, or the variables aren't its.
    """
    if not isinstance(model, NCSN | NCSNv2):
        raise ValueError(f"only NCSN and NCSNv2 have official names, found {type(model).__name__}")
    if "params" not in variables:
        raise ValueError(f"variables are {{'params': ...}}, found {_some(variables)}")
    prefix = PREFIX if "module" in variables else ""
    buffers = {name: np.asarray(value) for name, value in variables.get("buffers", {}).items()}
    tensors = params_to_torch(variables["params"])
    _check_shapes(model, tensors)
    return {prefix + name: tensor for name, tensor in (buffers | tensors).items()}


def _network(tensors: Tensors, levels: np.ndarray | None, fields: Mapping[str, Any]) -> nn.Module:
    """The module of the state dict's names; `_check_shapes` tells whether it fits."""
    first = tensors.get("begin_conv.weight")
    if first is None or first.ndim != 4 or first.size == 0:
        raise ValueError(
            "no state dict of an NCSN or NCSNv2: it has no begin_conv.weight of four axes, but "
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
    """Holds the tensors to the network's parameters, by name and shape."""
    channels = tensors["begin_conv.weight"].shape[1] if "begin_conv.weight" in tensors else 1
    try:
        expected = _official_shapes(model, channels)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"no such network can be built: {' '.join(str(error).split())[:200]}") from None
    network = f"{type(model).__name__} with depth={model.depth} and num_filters={model.num_filters}"  # pyright: ignore[reportAttributeAccessIssue]
    for problem, names in (
        ("lacks", [name for name in expected if name not in tensors]),
        ("doesn't know", [name for name in tensors if name not in expected]),
        (
            "has another shape for",
            [
                f"{name}: {expected[name]}, not {tensors[name].shape}"
                for name in expected
                if name in tensors and tensors[name].shape != expected[name]
            ],
        ),
        (
            "wants floating numbers for",
            [name for name, tensor in tensors.items() if not jnp.issubdtype(tensor.dtype, jnp.floating)],
        ),
    ):
        if names:
            raise ValueError(f"the state dict looks like an {network}, which {problem} {_some(names)}")


@functools.cache
def _official_shapes(model: nn.Module, channels: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the network's tensors in the official code, by their names there."""
    image = jax.ShapeDtypeStruct((1, 16, 16, channels), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image, jnp.ones(1))["params"]
    shapes: dict[Any, Any] = traverse_util.flatten_dict(jax.tree.map(lambda leaf: leaf.shape, params))
    return {
        torch_name(path): shape[:-3:-1] + shape[:-2] if path[-1] == "kernel" else shape
        for path, shape in shapes.items()
    }


def _some(names) -> str:
    """The first of the names, in one short line."""
    names = [str(name)[:80] for name in names]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "no entries"
