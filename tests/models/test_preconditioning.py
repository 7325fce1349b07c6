"""Preconditioned networks: the exact score of a Gaussian, a target of unit variance, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ncsn_jax import MLP, NCSN, NCSNpp, NCSNv2, Preconditioned, as_score_fn
from ncsn_jax.models import Patches, VPScore
from ncsn_jax.training import LogNormal, denoising_objective

STD = 0.3
SIGMAS = np.geomspace(1e-3, 1e3, 25)


class Constant(nn.Module):
    """A network without parameters, whose output is everywhere the same."""

    value: float = 0.0

    def __call__(self, x, label):
        return jnp.full_like(x, self.value)


def test_a_zero_network_is_the_exact_score_of_a_gaussian():
    x = STD * jax.random.normal(jax.random.key(0), (25, 3, 3, 1))
    x = x + jnp.asarray(SIGMAS, jnp.float32).reshape(-1, 1, 1, 1)
    found = Preconditioned(Constant(), STD).apply({}, x, jnp.asarray(SIGMAS, jnp.float32))
    variance = np.square(SIGMAS.astype(np.float32).astype(np.float64)) + np.float64(np.float32(STD)) ** 2
    expected = -np.asarray(x, np.float64) / variance.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(found, expected, rtol=5e-7)


def test_it_is_the_score_of_karras_denoiser_without_its_cancellation():
    """(D(x; σ) − x)/σ² of table 1, in float64."""
    network, x = Constant(0.7), np.linspace(-2.0, 2.0, 25)[:, None]
    found = Preconditioned(network, STD).apply({}, jnp.asarray(x, jnp.float32), jnp.asarray(SIGMAS))
    s = SIGMAS[:, None]
    denoised = x * STD**2 / (s**2 + STD**2) + 0.7 * s * STD / np.sqrt(s**2 + STD**2)
    terms = np.abs(x) / (s**2 + STD**2) + 0.7 * STD / (s * np.sqrt(s**2 + STD**2))  # which may cancel
    assert np.all(np.abs(found - (denoised - x) / s**2) < 1e-6 * terms)


@pytest.mark.parametrize("sigma", [1e-3, 0.03, 1.0, 30.0, 1e3])
def test_the_training_target_has_unit_variance(sigma):
    """With F = 0, twice Karras et al.'s loss is the mean square of F's target: here, of 200,000 elements."""
    x = STD * jax.random.normal(jax.random.key(1), (100, 2000))
    objective = denoising_objective((1.0,), noise=LogNormal(np.log(sigma), 1e-9), data_std=STD)
    score_fn = as_score_fn(Preconditioned(Constant(), STD), {})
    losses = jax.vmap(objective, (0, None, 0))(jax.random.split(jax.random.key(2), 100), score_fn, x)
    assert abs(2 * jnp.mean(losses) / 2000 - 1) < 0.015  # 4.7 standard deviations of √(2/200,000)


def test_the_inner_network_sees_unit_variance_and_the_root_of_the_level():
    seen = {}

    class Seeing(nn.Module):
        def __call__(self, x, label):
            seen.update(x=x, label=label)
            return x

    sigma = jnp.array([1e-4, 1.0, 16.0])
    z = jax.random.normal(jax.random.key(3), (3, 100_000))
    Preconditioned(Seeing(), STD).apply({}, z * jnp.hypot(sigma, STD)[:, None], sigma)
    np.testing.assert_allclose(seen["label"], [0.1, 1.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(np.std(seen["x"], axis=1), 1.0, atol=0.01)


def test_a_condition_reaches_the_network():
    class Adding(nn.Module):
        def __call__(self, x, label, condition):
            return x + condition

    model = Preconditioned(Adding(), STD)
    x, sigma = jnp.ones((2, 3)), jnp.ones(2)
    found = model.apply({}, x, sigma, jnp.full((2, 3), 5.0))
    plain = model.apply({}, x, sigma, jnp.zeros((2, 3)))
    np.testing.assert_allclose(found - plain, 5.0 * STD / np.hypot(1, STD), rtol=1e-5)


@pytest.mark.parametrize("network", [MLP(8, 1, scale_by_sigma=False), "ncsnpp"])
def test_the_packages_networks_can_be_preconditioned(network):
    x = jnp.ones((2, 4))
    if network == "ncsnpp":
        x = jnp.ones((2, 4, 4, 1))
        network = NCSNpp(4, (1,), 1, (), scale_by_sigma=False, rescaled=True, progressive_input="none")
    model = Preconditioned(network, STD)
    variables = model.init(jax.random.key(0), x, jnp.ones(2))
    score = model.apply(variables, x.astype(jnp.bfloat16), jnp.array([1e-2, 10.0]))
    assert score.shape == x.shape
    assert score.dtype == jnp.bfloat16
    assert jnp.all(jnp.isfinite(score))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (MLP(2, 1), r"network=MLP: it would be divided .* twice; use scale_by_sigma=False"),
        (NCSNpp(4, (1,), 1, ()), "network=NCSNpp: it would be divided"),
        (
            NCSNpp(4, (1,), 1, (), embedding="positional", scale_by_sigma=False, sigmas=(1.0, 0.1)),
            "network=NCSNpp: it divides by the noise level, or embeds fixed levels",
        ),
        (NCSN((1.0, 0.1), 2), "network=NCSN: it divides"),
        (NCSNv2(2), "network=NCSNv2: it divides"),
        (Patches(NCSNv2(2), 2), "network=NCSNv2: it divides"),
        (Patches(NCSNpp(4, (1,), 1, ()), 2), "network=NCSNpp: it would be divided"),
        (Preconditioned(Constant(), STD), "network=Preconditioned: it divides"),
        (VPScore(NCSNpp(4, embedding="positional", scale_by_sigma=False)), "network=VPScore: it divides"),
    ],
)
def test_networks_that_divide_by_the_level_are_refused(network, message):
    with pytest.raises(ValueError, match=message):
        Preconditioned(network, STD).init(jax.random.key(0), jnp.ones((1, 4, 4, 1)), jnp.ones(1))


@pytest.mark.parametrize("std", [0.0, -1.0, np.inf, np.nan])
def test_impossible_standard_deviations_are_refused(std):
    with pytest.raises(ValueError, match=r"data_std=.*: accepted: a positive number"):
        Preconditioned(Constant(), std).apply({}, jnp.ones((1, 2)), jnp.ones(1))
