"""Conversion between official PyTorch parameters and parameter trees: their names and layouts."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util
from jaxtyping import Shaped

from ncsn_jax.models.layers import FROZEN

Tensors = Mapping[str, Shaped[np.ndarray, "..."]]
Path = tuple[str, ...]


class Naming(NamedTuple):
    """The official names of a family of networks.

    Attributes:
      path: a function from a name, and all tensors, to the path of a parameter.
      name: the inverse, without the tensors.
      place: a function from a name to its sort key, in the order of the official definitions.
    """

    path: Callable[[str, Tensors], Path]
    name: Callable[[Path], str]
    place: Callable[[str], Any]


def params_from_torch(tensors: Tensors, naming: Naming) -> dict[str, Any]:
    """Return the parameter tree of a network's PyTorch tensors.

    Kernels of convolutions change from OIHW to HWIO, kernels of linear layers from (out, in) to (in, out);
    embedding tables, and the linear maps that the official code calls NIN, are unchanged.

    Args:
      tensors: the official parameters by name.
      naming: the names of the network's family.

    Returns:
      The nested dictionary that flax calls `params`.
    """
    tree = {}
    for name, tensor in tensors.items():
        path = naming.path(name, tensors)
        tree[path] = tensor.transpose(np.argsort(_official_axes(path, tensor.ndim)))
    return traverse_util.unflatten_dict(tree)


def params_to_torch(params: Mapping[str, Any], naming: Naming) -> dict[str, np.ndarray]:
    """Return a parameter tree's official tensors, in the official order: the inverse of `params_from_torch`.

    Args:
      params: the nested dictionary that flax calls `params`.
      naming: the names of the network's family.

    Returns:
      Contiguous arrays by official name.
    """
    tensors = {}
    for path, value in traverse_util.flatten_dict(params).items():
        value = np.asarray(value)
        tensors[naming.name(path)] = np.ascontiguousarray(value.transpose(_official_axes(path, value.ndim)))
    return dict(sorted(tensors.items(), key=lambda item: naming.place(item[0])))


def official_shapes(params: Mapping[str, Any], naming: Naming) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a parameter tree's official tensors, by name."""
    leaves: dict[Any, Any] = traverse_util.flatten_dict(params)
    return {
        naming.name(path): tuple(leaf.shape[axis] for axis in _official_axes(path, len(leaf.shape)))
        for path, leaf in leaves.items()
    }


def _official_axes(path: Path, ndim: int) -> tuple[int, ...]:
    """The axes of a parameter in the order of the official tensor."""
    if path[-1] == "kernel" and ndim == 4:
        return 3, 2, 0, 1
    if path[-1] == "kernel" and ndim == 2 and not path[-2].startswith("NIN"):
        return 1, 0
    return tuple(range(ndim))


# The RefineNets, NCSN and NCSNv2: an index into a list of modules joins the list's name.

_REFINENET_ORDER = (
    *("begin_conv", "normalizer", "end_conv", "res", "refine"),  # of a network
    *("conv1", "normalize2", "conv2", "shortcut", "normalize1"),  # of a residual block
    *("adapt_convs", "output_convs", "msf", "crp"),  # of a refine block
    *("convs", "norms"),  # of its fusion and its pooling
    *("weight", "alpha", "gamma", "bias", "beta"),
)
"""Names in the order in which the official modules define them, if that isn't alphabetical."""


def _refinenet_path(name: str, tensors: Tensors) -> Path:
    """`res2.0.conv2.conv.weight` is at `res2_0/conv2/conv/kernel`."""
    *path, leaf = re.sub(r"\.(\d+)(?=\.)", r"_\1", name).split(".")
    if leaf == "weight":
        leaf = "embedding" if path and path[-1] == "embed" else "kernel"
    return (*path, leaf)


def _refinenet_name(path: Path) -> str:
    *modules, leaf = path
    parts = [re.sub(r"^(\D.*)_(\d+)$", r"\1.\2", module) for module in modules]
    return ".".join((*parts, "weight" if leaf in ("kernel", "embedding") else leaf))


def _refinenet_place(name: str) -> list[tuple[int, str]]:
    place = []
    for part in name.split("."):
        kind = "res" if re.match(r"res\d", part) else "refine" if re.match(r"refine\d", part) else part
        order = _REFINENET_ORDER.index(kind) if kind in _REFINENET_ORDER else -1
        # A norm comes before its convolution: 1_1_norm, 1_1_conv.
        place.append((order, part.replace("norm", "")))
    return place


REFINENET = Naming(_refinenet_path, _refinenet_name, _refinenet_place)


# The U-Nets, NCSN++ and DDPM++: a list of modules, whose numbers follow the kinds of module in paths.

ALL_MODULES = "all_modules."
_UNET_ORDER = (
    *("GroupNorm_0", "Conv_0", "Conv2d_0", "Dense_0", "GroupNorm_1", "Conv_1", "Conv_2"),
    *("NIN_0", "NIN_1", "NIN_2", "NIN_3"),
    *("W", "weight", "b", "bias"),
)


def unet_kind(number: str, tensors: Tensors) -> str:
    """The kind of the module with a number: a word of `NCSNpp`, by its tensors' names and axes."""
    own = f"{ALL_MODULES}{number}."
    for tell_tale, kind in (("W", "fourier"), ("NIN_3.W", "attention"), ("GroupNorm_1.weight", "block")):
        if own + tell_tale in tensors:
            return kind
    if own + "Conv2d_0.weight" in tensors:
        return "resample"
    if (tensor := tensors.get(own + "Conv_0.weight")) is not None:
        return "combine" if tensor.shape[-1:] == (1,) else "resample"
    tensor = tensors.get(own + "weight")
    return {1: "norm", 2: "dense", 4: "conv"}.get(0 if tensor is None else tensor.ndim, "unknown")


def _unet_path(name: str, tensors: Tensors) -> Path:
    """`all_modules.7.GroupNorm_0.weight` is at `block_7/GroupNorm_0/scale`."""
    number, *path, leaf = name.removeprefix(ALL_MODULES).split(".")
    kind = unet_kind(number, tensors)
    if kind == "fourier":
        leaf = f"{FROZEN}frequencies"
    else:
        leaf = {"W": "kernel", "b": "bias", "weight": "kernel"}.get(leaf, leaf)
        if leaf == "kernel" and tensors[name].ndim == 1:
            leaf = "scale"
    return (f"{kind}_{number}", *path, leaf)


def _unet_name(path: Path) -> str:
    (module, *inner), leaf = path[:-1], path[-1]
    names = {"kernel": "weight", "scale": "weight", f"{FROZEN}frequencies": "W"}
    if inner and inner[-1].startswith("NIN"):
        names = {"kernel": "W", "bias": "b"}
    number = module.rpartition("_")[2]
    return ALL_MODULES + ".".join((number, *inner, names.get(leaf, leaf)))


def _unet_place(name: str) -> tuple[int, list[int]]:
    number, *parts = name.removeprefix(ALL_MODULES).split(".")
    return int(number), [_UNET_ORDER.index(part) for part in parts]


UNET = Naming(_unet_path, _unet_name, _unet_place)
