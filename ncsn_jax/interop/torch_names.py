"""Conversion between official PyTorch parameters and parameter trees: their names and layouts."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util
from jaxtyping import Shaped

Tensors = Mapping[str, Shaped[np.ndarray, "..."]]

ORDER = (
    *("begin_conv", "normalizer", "end_conv", "res", "refine"),  # of a network
    *("conv1", "normalize2", "conv2", "shortcut", "normalize1"),  # of a residual block
    *("adapt_convs", "output_convs", "msf", "crp"),  # of a refine block
    *("convs", "norms"),  # of its fusion and its pooling
    *("weight", "alpha", "gamma", "bias", "beta"),
)
"""Names in the order in which the official modules define them, if that isn't alphabetical."""


def params_from_torch(tensors: Tensors) -> dict[str, Any]:
    """Return the parameter tree of a network's PyTorch tensors.

    `res2.0.conv2.conv.weight` becomes `["res2_0"]["conv2"]["conv"]["kernel"]`: an index into a list of
    modules joins the list's name, kernels change from OIHW to HWIO, and embedding tables are unchanged.

    Args:
      tensors: the official parameters by name.

    Returns:
      The nested dictionary that flax calls `params`.
    """
    tree = {}
    for name, tensor in tensors.items():
        *path, leaf = re.sub(r"\.(\d+)(?=\.)", r"_\1", name).split(".")
        if path and path[-1] == "embed":
            tree[*path, "embedding"] = tensor
        elif leaf == "weight":
            tree[*path, "kernel"] = tensor.transpose(2, 3, 1, 0)
        else:
            tree[*path, leaf] = tensor
    return traverse_util.unflatten_dict(tree)


def params_to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return a parameter tree's official tensors, in the official order: the inverse of `params_from_torch`.

    Args:
      params: the nested dictionary that flax calls `params`.

    Returns:
      Contiguous arrays by official name.
    """
    tensors = {}
    for path, value in traverse_util.flatten_dict(params).items():
        value = np.asarray(value)
        value = value.transpose(3, 2, 0, 1) if path[-1] == "kernel" and value.ndim == 4 else value
        tensors[torch_name(path)] = np.ascontiguousarray(value)
    return dict(sorted(tensors.items(), key=lambda item: _place(item[0])))


def torch_name(path: tuple[str, ...]) -> str:
    """The official name of the parameter at a path of the tree."""
    *modules, leaf = path
    parts = [re.sub(r"^(\D.*)_(\d+)$", r"\1.\2", module) for module in modules]
    return ".".join((*parts, "weight" if leaf in ("kernel", "embedding") else leaf))


def _place(name: str) -> list[tuple[int, str]]:
    """Sort key of a parameter's name."""
    place = []
    for part in name.split("."):
        kind = "res" if re.match(r"res\d", part) else "refine" if re.match(r"refine\d", part) else part
        # A norm comes before its convolution: 1_1_norm, 1_1_conv.
        place.append((ORDER.index(kind) if kind in ORDER else -1, part.replace("norm", "")))
    return place
