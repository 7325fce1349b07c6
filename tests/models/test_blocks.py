"""Every block of the official networks against its own numbers."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ncsn_jax.interop.torch_names import REFINENET, params_from_torch
from ncsn_jax.models import layers

INSTANCE_NORM_PLUS = functools.partial(layers.ConditionalInstanceNormPlus, num_scales=3)


def refine(norm, pool, features, num_output_blocks):
    return layers.RefineBlock(features, norm, nn.elu, pool, num_output_blocks)


BLOCKS = {
    "cond_instnorm_plus": INSTANCE_NORM_PLUS(),
    "small_cond_instnorm_plus": INSTANCE_NORM_PLUS(),
    "instnorm_plus": layers.InstanceNormPlus(),
    "small_instnorm_plus": layers.InstanceNormPlus(),
    "cond_instnorm": layers.ConditionalInstanceNorm(3),
    "small_cond_instnorm": layers.ConditionalInstanceNorm(3),
    "variance_norm": layers.VarianceNorm(),
    "small_variance_norm": layers.VarianceNorm(),
    "cond_rcu": layers.RCUBlock(INSTANCE_NORM_PLUS, nn.elu, 2),
    "rcu": layers.RCUBlock(layers.no_norm, nn.elu, 3),
    "cond_crp": layers.CRPBlock(INSTANCE_NORM_PLUS, nn.elu, layers.average_pool5),
    "crp": layers.CRPBlock(layers.no_norm, nn.elu, layers.max_pool5),
    "cond_msf": layers.MSFBlock(7, INSTANCE_NORM_PLUS),
    "msf": layers.MSFBlock(7, layers.no_norm),
    "cond_refine": refine(INSTANCE_NORM_PLUS, layers.average_pool5, 7, 1),
    "cond_refine_start": refine(INSTANCE_NORM_PLUS, layers.average_pool5, 6, 1),
    "cond_refine_end": refine(INSTANCE_NORM_PLUS, layers.average_pool5, 7, 3),
    "refine": refine(layers.no_norm, layers.max_pool5, 7, 1),
    "refine_end": refine(layers.no_norm, layers.max_pool5, 7, 3),
    "convmeanpool": layers.MeanPoolConv(4, 3),
    "convmeanpool_1x1": layers.MeanPoolConv(4, 1),
} | {
    f"{prefix}res_{kind}_{features}_dil{dilation}": layers.ResidualBlock(
        features, norm, nn.elu, kind == "down", dilation
    )
    for prefix, norm in (("cond_", INSTANCE_NORM_PLUS), ("", layers.InstanceNormPlus))
    for kind, features in (("same", 6), ("down", 6), ("down", 7))
    for dilation in (1, 2, 4)
}
FUNCTIONS = {
    "avgpool5": lambda x, x2: layers.average_pool5(x),
    "maxpool5": lambda x, x2: layers.max_pool5(x),
    "bilinear": lambda x, x2: layers.resize_bilinear(x2, *x.shape[1:3]),
    "elu": lambda x, x2: nn.elu(3.0 * x),
}


@pytest.fixture(scope="module")
def numbers(fixture):
    return fixture("blocks.npz")


def channels_last(images):
    return jnp.asarray(images.transpose(0, 2, 3, 1))


def test_every_block_of_the_fixture_is_tested(numbers):
    names = {name.split("/")[0] for name in numbers if "/" in name}
    assert names == BLOCKS.keys() | FUNCTIONS.keys()


@pytest.mark.parametrize("name", [*BLOCKS, *FUNCTIONS])
def test_block_output_equals_the_official_code(name, numbers):
    x, x2 = channels_last(numbers["x"]), channels_last(numbers["x2"])
    if name in FUNCTIONS:
        out = FUNCTIONS[name](x, x2)
    else:
        prefix = f"{name}/param."
        params = params_from_torch(
            {key.removeprefix(prefix): value for key, value in numbers.items() if key.startswith(prefix)},
            REFINENET,
        )
        if "msf" in name or "refine" in name:
            x = [x] if name.endswith("start") else [x, x2]
        elif name.startswith("small"):
            x = channels_last(numbers["x_small"])
        arguments = (x,) if "convmeanpool" in name else (x, jnp.asarray(numbers["y"]))
        out = BLOCKS[name].apply({"params": params}, *arguments)
    expected = channels_last(numbers[f"{name}/out"])
    assert out.shape == expected.shape
    error = np.abs(out - expected).max((1, 2, 3)) / np.abs(expected).max((1, 2, 3))
    assert error.max() < 2e-5
