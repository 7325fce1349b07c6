"""Blocks of the U-Nets against the release's numbers, in float64 stored as float32, and their properties."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ncsn_jax.interop.torch_names import UNET, params_from_torch
from ncsn_jax.models.layers import swish
from ncsn_jax.models.resampling import down, up
from ncsn_jax.models.unet import (
    Attention,
    Combine,
    FourierFeatures,
    ResidualBlock,
    group_norm,
    positional_features,
    scaled,
)

NORM = functools.partial(group_norm, num_groups=None)
RESAMPLED = {"up": up, "down": down}


def channels_last(images):
    return jnp.asarray(images.transpose(0, 2, 3, 1))


@pytest.fixture
def numbers(fixture):
    return fixture("score_sde/ops.npz")


def params_of(numbers, prefix):
    """The parameters of the release's block whose arrays have a prefix."""
    tensors = {
        f"all_modules.0.{name.removeprefix(prefix)}": value
        for name, value in numbers.items()
        if name.startswith(prefix) and name.endswith(("weight", "bias", ".W", ".b"))
    }
    ((_, params),) = params_from_torch(tensors, UNET).items()
    return {"params": params}


BLOCKS = [
    *("biggan_same_fir", "biggan_wide", "biggan_up_fir", "biggan_down_fir"),
    *("biggan_up_nofir", "biggan_down_nofir", "ddpm_same", "ddpm_wide"),
]


@pytest.mark.parametrize("name", BLOCKS)
def test_residual_blocks_equal_the_release(numbers, name):
    prefix = f"res.{name}."
    options = json.loads(str(numbers[f"{prefix}kwargs"]))
    resample = next((function for kind, function in RESAMPLED.items() if options.get(kind)), None)
    kernel = (1.0, 3.0, 3.0, 1.0) if options.get("fir") else None
    block = ResidualBlock(
        options.get("out_ch") or 8,
        "ddpm" if name.startswith("ddpm") else "biggan",
        NORM,
        swish,
        init_scale=0.0,
        skip_rescale=options["skip_rescale"],
        dropout=0.5,  # without a key, there is none
        resample=None if resample is None else lambda x: resample(x, kernel),
    )
    x, time = channels_last(numbers["res.x"]), jnp.asarray(numbers["res.temb"])
    out = block.apply(params_of(numbers, prefix), x, time)
    np.testing.assert_allclose(out, channels_last(numbers[f"{prefix}y"]), atol=1e-5)


@pytest.mark.parametrize("name", ["rescale", "norescale"])
def test_attention_equals_the_release(numbers, name):
    prefix = f"attn.{name}."
    attention = Attention(NORM, init_scale=0.0, skip_rescale=name == "rescale")
    out = attention.apply(params_of(numbers, prefix), channels_last(numbers[f"{prefix}x"]))
    np.testing.assert_allclose(out, channels_last(numbers[f"{prefix}y"]), atol=1e-5)


@pytest.mark.parametrize("method", ["sum", "cat"])
def test_the_combination_with_the_image_equals_the_release(numbers, method):
    prefix = f"combine.{method}."
    weight = jnp.asarray(numbers[f"{prefix}w"].transpose(2, 3, 1, 0))
    params = {"params": {"Conv_0": {"kernel": weight, "bias": jnp.asarray(numbers[f"{prefix}b"])}}}
    out = Combine(method).apply(params, channels_last(numbers["fir.x"]), channels_last(numbers[f"{prefix}y"]))
    np.testing.assert_allclose(out, channels_last(numbers[f"{prefix}out"]), atol=1e-5)


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x):
        return group_norm(x, num_groups=None, name="norm")


@pytest.mark.parametrize("name", ["c8", "c24", "c160", "tinyvar_c8"])
def test_group_normalisation_equals_the_release(numbers, name):
    prefix = f"gn.{name}."
    params = {
        "norm": {"scale": jnp.asarray(numbers[prefix + "w"]), "bias": jnp.asarray(numbers[prefix + "b"])}
    }
    x, y = channels_last(numbers[prefix + "x"]), channels_last(numbers[prefix + "y"])
    assert min(x.shape[-1] // 4, 32) == numbers[prefix + "groups"]
    out = Normalised().apply({"params": params}, x)
    np.testing.assert_allclose(out, y, atol=1e-5 * np.abs(y).max())


def test_channels_that_no_groups_divide_are_refused_in_one_line():
    with pytest.raises(ValueError, match=r"^130 channels can't be divided into 32 groups .*of num_groups"):
        Normalised().init(jax.random.key(0), jnp.ones((1, 2, 2, 130)))


def test_embeddings_equal_the_release(numbers):
    sigma, frequencies = jnp.asarray(numbers["fourier.sigma"]), jnp.asarray(numbers["fourier.W"])
    params = {"params": {"frozen_frequencies": frequencies}}
    out = FourierFeatures(len(frequencies), 16.0).apply(params, sigma)
    np.testing.assert_allclose(out, numbers["fourier.out"], atol=2e-4)  # the arguments reach 1e3 rad
    for features in (8, 9, 128):
        label = jnp.asarray(numbers["pos.labels"], jnp.float32)
        out = positional_features(label, features)
        np.testing.assert_allclose(out, numbers[f"pos.{features}.out"], atol=2e-4)


def test_fourier_frequencies_are_drawn_with_their_scale_and_have_no_gradient():
    module, sigma = FourierFeatures(20_000, 16.0), jnp.ones(1) * 2.0
    variables = module.init(jax.random.key(0), sigma)
    (frequencies,) = jax.tree.leaves(variables)
    assert abs(float(frequencies.std()) / 16 - 1) < 0.02  # its standard error is 0.005
    gradient = jax.grad(lambda variables: module.apply(variables, sigma).sum())(variables)
    assert not np.any(jax.tree.leaves(gradient)[0])


@pytest.mark.parametrize("scale", [1.0, 0.1, 0.0])
def test_initial_weights_are_uniform_within_the_fan_average(scale):
    weights = np.asarray(scaled(scale)(jax.random.key(0), (3, 3, 40, 60), jnp.float32))
    bound = np.sqrt(3 * (scale or 1e-10) / (9 * 50))
    assert 0.999 < weights.max() / bound <= 1.000001
    assert 0.999 < -weights.min() / bound <= 1.000001
    assert abs(weights.var() / (bound**2 / 3) - 1) < 0.03  # its standard error is 0.006


def test_dropout_zeroes_activations_in_blocks_with_a_key_alone():
    block = ResidualBlock(8, "biggan", NORM, swish, init_scale=1.0, skip_rescale=True, dropout=0.5)
    x, time = jax.random.normal(jax.random.key(0), (1, 4, 4, 8)), jnp.ones((1, 16))
    variables = block.init(jax.random.key(1), x, time)
    plain = block.apply(variables, x, time)
    dropped = block.apply(variables, x, time, rngs={"dropout": jax.random.key(2)})
    assert np.abs(dropped - plain).max() > 1e-3
