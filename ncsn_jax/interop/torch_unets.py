"""Recognition of the U-Nets of Song et al. 2021 by the names and shapes of their tensors."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ncsn_jax.interop.torch_names import ALL_MODULES, Tensors, unet_kind
from ncsn_jax.models import NCSNpp


class Published(NamedTuple):
    """A published experiment, with the fields of its network that no tensor determines.

    Attributes:
      name: its config in the release.
      embedding: a field of the network that its tensors determine, like the next three.
      block: see `embedding`.
      progressive: see `embedding`.
      progressive_input: see `embedding`.
      fields: the fields that they don't determine, where they differ from the network's defaults.
      process: `ve`, or `vp`, whose networks take labels.
    """

    name: str
    embedding: str
    block: str
    progressive: str
    progressive_input: str
    fields: Mapping[str, Any] = {}
    process: str = "ve"


PUBLISHED = (
    Published("ve/cifar10_ncsnpp_continuous", "fourier", "biggan", "none", "residual"),
    Published("ve/church_ncsnpp_continuous", "fourier", "biggan", "output_skip", "input_skip"),
    Published("ve/cifar10_ncsnpp", "positional", "biggan", "none", "residual"),
    Published(
        "vp/cifar10_ddpmpp_continuous", "positional", "biggan", "none", "none", {"fir": False}, process="vp"
    ),
    Published(
        "ve/cifar10_ddpm",
        *("positional", "ddpm", "none", "none"),
        {"fir": False, "skip_rescale": False, "num_groups": 32},
    ),
)
_MAX_MODULES = 256
"""The largest number of a module; the published networks have up to 95."""
OF_LABELS = {"scale_by_sigma": False, "rescaled": True}
"""Fields of networks of the VP process, whose second argument is a label."""


def unet_fields(tensors: Tensors) -> dict[str, Any]:
    """Return the fields of the network that its tensors determine, with sizes of images for its attention.

    Raises:
      ValueError: if they aren't such a network's.
    """
    numbers = sorted({_number(name) for name in tensors})
    kinds = {number: unet_kind(str(number), tensors) for number in numbers}
    blocks, norms, convs, resamples, combines, attentions = (
        [number for number in numbers if kinds[number] == kind]
        for kind in ("block", "norm", "conv", "resample", "combine", "attention")
    )
    if not (blocks and norms and convs and numbers[-1] < _MAX_MODULES):
        found = ", ".join(f"{number} {kind}" for number, kind in list(kinds.items())[:5])
        raise ValueError(f"not a state dict of an NCSN++: it has the modules {found or 'of no network'}")

    def shape(number: int, name: str) -> tuple[int, ...]:
        full = f"{ALL_MODULES}{number}.{name}"
        ndim = 4 if name == "Conv_2.weight" else 1
        if full not in tensors or tensors[full].ndim != ndim:
            raise ValueError(f"not a state dict of an NCSN++: it has no {full} with {ndim} axes")
        return tensors[full].shape

    is_ddpm = any(f"{ALL_MODULES}{number}.NIN_0.W" in tensors for number in blocks)
    gaps = sorted(set(range(numbers[-1])) - set(numbers))  # modules without parameters have numbers, too
    if is_ddpm:  # a pyramid's module is next to the level's own
        halved = gaps or [number for number in resamples if number - 1 not in resamples]
    else:
        halved = [
            number
            for number in blocks
            if f"{ALL_MODULES}{number}.Conv_2.weight" in tensors
            and shape(number, "Conv_2.weight")[0] == shape(number, "Conv_2.weight")[1]
        ]
    num_levels = len(halved) // 2 + 1
    ordinary = [number for number in blocks if number not in halved]
    num_res_blocks, rest = divmod(len(ordinary) - num_levels - 2, 2 * num_levels)
    if rest or num_res_blocks < 1:
        raise ValueError(
            f"not a state dict of an NCSN++: it has {len(ordinary)} residual blocks on {num_levels} levels"
        )
    middle = ordinary[num_levels * num_res_blocks]
    first_blocks = ordinary[: num_levels * num_res_blocks : num_res_blocks]
    own = set(halved[: 2 * num_levels - 2]) if is_ddpm else set()
    before, after = (
        [n for n in resamples if (n < middle) == side and n not in own] for side in (True, False)
    )
    (num_filters,) = shape(convs[0], "bias")
    widths = [shape(number, "Conv_1.bias")[0] for number in first_blocks]
    attended = [level for level, number in enumerate(first_blocks) if number + 1 in attentions]
    image_size = 16 * 2 ** (attended[0] if attended else 1)  # all published networks attend at 16×16 pixels
    found = {
        "num_filters": num_filters,
        "multipliers": tuple(width // max(num_filters, 1) for width in widths),
        "num_res_blocks": num_res_blocks,
        "image_size": image_size,
        "attention_resolutions": tuple(image_size // 2**level for level in attended),
        "block": "ddpm" if is_ddpm else "biggan",
        "resample_with_conv": not gaps,
        "embedding": "fourier" if kinds[numbers[0]] == "fourier" else "positional",
        "progressive_input": "input_skip" if combines else "residual" if before else "none",
        "progressive": "residual" if after else "output_skip" if len(norms) > 1 else "none",
    }
    if combines:
        is_sum = shape(combines[0] + 1, "GroupNorm_0.bias") == shape(combines[0], "Conv_0.bias")
        found["combine"] = "sum" if is_sum else "cat"
    if resamples:
        found["fir"] = f"{ALL_MODULES}{resamples[0]}.Conv2d_0.weight" in tensors
    return found


def published(fields: Mapping[str, Any]) -> Published | None:
    """Return the published experiment whose network has such fields; None if there is none."""
    for experiment in PUBLISHED:
        names = ("embedding", "block", "progressive", "progressive_input")
        own = {name: getattr(experiment, name) for name in names}
        own |= {name: value for name, value in experiment.fields.items() if name in fields}
        if all(fields[name] == value for name, value in own.items()) and _groups_fit(experiment, fields):
            return experiment
    return None


def _groups_fit(experiment: Published, fields: Mapping[str, Any]) -> bool:
    """Return whether the channels of all levels can be divided into the experiment's groups."""
    num_groups = experiment.fields.get("num_groups", 1)
    return all(fields["num_filters"] * multiplier % num_groups == 0 for multiplier in fields["multipliers"])


def unet(tensors: Tensors, levels: tuple[float, ...] | None, given: Mapping[str, Any]) -> NCSNpp:
    """Return the network of a state dict; `_check_shapes` checks whether it fits.

    Args:
      tensors: the network's tensors by name.
      levels: its noise levels, for a positional embedding.
      given: fields that take precedence.

    Raises:
      ValueError: if they aren't such a network's.
    """
    fields = unet_fields(tensors)
    fits = published(fields)
    fields = {**(fits.fields if fits else {}), **fields}
    if fits and fits.process == "vp":
        fields |= OF_LABELS
    fields |= given
    if fields["embedding"] == "positional" and fields.get("scale_by_sigma", True):
        fields.setdefault("sigmas", levels)
    return NCSNpp(**fields)


def _number(name: str) -> int:
    number = name.removeprefix(ALL_MODULES).split(".")[0]
    if not name.startswith(ALL_MODULES) or not number.isascii() or not number.isdecimal() or len(number) > 4:
        raise ValueError(f"not a state dict of an NCSN++: it has the entry {name[:80]!r}")
    return int(number)
