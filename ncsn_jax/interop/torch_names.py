"""Between the names and layouts of official PyTorch parameters and this package's parameter trees."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util
from jaxtyping import Float

Tensors = Mapping[str, Float[np.ndarray, "..."]]


def params_from_torch(tensors: Tensors) -> dict[str, Any]:
    """The parameter tree of a network's PyTorch tensors.

    `res2.0.conv2.conv.weight` becomes `["res2_0"]["conv2"]["conv"]["kernel"]`: an index into a list of
    modules joins the list's name, kernels go from OIHW to HWIO, embedding tables stay as they are.

    Args:
      tensors: the official parameters by name.

    Returns:
      The nested dictionary that flax calls `params`.
    """
    tree = {}
    for name, tensor in tensors.items():
        *path, leaf = re.sub(r"\.(\d+)(?=\.)", r"_\1", name).split(".")
        if path[-1] == "embed":
            tree[*path, "embedding"] = tensor
        elif leaf == "weight":
            tree[*path, "kernel"] = tensor.transpose(2, 3, 1, 0)
        else:
            tree[*path, leaf] = tensor
    return traverse_util.unflatten_dict(tree)
