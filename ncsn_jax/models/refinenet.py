"""The RefineNet behind all official score networks: stages of residual blocks, and a refine chain."""

from typing import NamedTuple

from jax import Array
from jax.typing import DTypeLike

from ncsn_jax.models.layers import Activation, Images, Levels, Norm, Pool, RefineBlock, ResidualBlock, conv


class Stage(NamedTuple):
    """Two residual blocks; `width` is in multiples of the network's `num_filters`."""

    name: str
    width: int
    down: bool = True
    dilation: int = 1


class Refine(NamedTuple):
    """A refine block: the outputs that it fuses, finest first, and its width."""

    name: str
    inputs: tuple[str, ...]
    width: int


STAGES = {
    4: (
        Stage("res1", 1, down=False),
        Stage("res2", 2),
        Stage("res3", 2, dilation=2),
        Stage("res4", 2, dilation=4),
    ),
    5: (
        Stage("res1", 1, down=False),
        Stage("res2", 2),
        Stage("res3", 2),
        Stage("res4", 4, dilation=2),
        Stage("res5", 4, dilation=4),
    ),
    6: (
        Stage("res1", 1, down=False),
        Stage("res2", 2),
        Stage("res3", 2),
        Stage("res31", 2),
        Stage("res4", 4, dilation=2),
        Stage("res5", 4, dilation=4),
    ),
}
"""The stages of a network, by its depth."""

CHAIN = {
    4: (
        Refine("refine1", ("res4",), 2),
        Refine("refine2", ("res3", "refine1"), 2),
        Refine("refine3", ("res2", "refine2"), 1),
        Refine("refine4", ("res1", "refine3"), 1),
    ),
    5: (
        Refine("refine1", ("res5",), 4),
        Refine("refine2", ("res4", "refine1"), 2),
        Refine("refine3", ("res3", "refine2"), 2),
        Refine("refine4", ("res2", "refine3"), 1),
        Refine("refine5", ("res1", "refine4"), 1),
    ),
    6: (
        Refine("refine1", ("res5",), 4),
        Refine("refine2", ("res4", "refine1"), 2),
        Refine("refine31", ("res31", "refine2"), 2),
        Refine("refine3", ("res3", "refine31"), 2),
        Refine("refine4", ("res2", "refine3"), 1),
        Refine("refine5", ("res1", "refine4"), 1),
    ),
}
"""The refine chain of a network, by its depth."""


def refinenet(
    x: Array,
    level: Levels,
    *,
    depth: int,
    num_filters: int,
    norm: Norm,
    refine_norm: Norm,
    pool: Pool,
    act: Activation,
    rescaled: bool,
    dtype: DTypeLike | None,
) -> Images:
    """Apply the body of a score network, inside the `__call__` of the module that owns its submodules.

    Args:
      x: images, `(batch, height, width, channels)`; height and width are halved `depth − 3` times.
      level: the noise level of each image, for a conditional `norm`.
      depth: the number of stages: 4, 5 or 6.
      num_filters: the width of the first stage.
      norm: the normalisation in the stages and before the last convolution.
      refine_norm: the normalisation in the refine chain.
      pool: the pooling in the refine chain.
      act: the activation.
      rescaled: whether images already lie around 0; otherwise [0, 1] is mapped to [−1, 1] first.
      dtype: the type of the features, except the statistics of normalisations; None for the type of x.

    Raises:
      ValueError: if x isn't a batch of images, a height or width can't be halved, or the depth is unknown.

    Reference:
      Lin et al. 2017 (RefineNet, arXiv:1611.06612); Song & Ermon 2019 (arXiv:1907.05600), appendix A.
    """
    if x.ndim != 4:
        raise ValueError(
            f"the network takes images, (batch, height, width, channels), found an x of shape {x.shape}"
        )
    if depth not in STAGES:
        raise ValueError(f"depth must be one of {', '.join(map(str, STAGES))} (stages), found {depth}")
    h = (x if rescaled else 2.0 * x - 1.0).astype(x.dtype if dtype is None else dtype)
    h = conv(h, num_filters, name="begin_conv")
    outputs: dict[str, Images] = {}
    for stage in STAGES[depth]:
        for i, down in enumerate((stage.down, False)):
            h = ResidualBlock(
                stage.width * num_filters, norm, act, down, stage.dilation, name=f"{stage.name}_{i}"
            )(h, level)
        outputs[stage.name] = h
    for refine in CHAIN[depth]:
        h = RefineBlock(
            refine.width * num_filters,
            refine_norm,
            act,
            pool,
            num_output_blocks=3 if refine is CHAIN[depth][-1] else 1,
            name=refine.name,
        )([outputs[name] for name in refine.inputs], level)
        outputs[refine.name] = h
    h = act(norm(name="normalizer")(h, level))
    return conv(h, x.shape[-1], name="end_conv").astype(x.dtype)
