"""Networks of the VP and subVP processes as scores, against exact scores of Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ncsn_jax.models import VPScore
from ncsn_jax.models.vp import sigma_at

STD, MEAN, BETA = 0.5, 0.3, (0.1, 20.0)


def marginal(process, t):
    """a and b of a·x₀ + b·z at the time t, in float64 (Song et al. 2021, equations 29 and 33)."""
    log_a = -(t**2) * (BETA[1] - BETA[0]) / 4 - t * BETA[0] / 2
    a = np.exp(log_a)
    return a, np.sqrt(-np.expm1(2 * log_a)) if process == "vp" else -np.expm1(2 * log_a)


class Exact(nn.Module):
    """−b·(score of the process at the time label/999) for data from N(MEAN, STD²): the network's optimum."""

    process: str

    def __call__(self, x, label):
        t = (label / 999.0).reshape(-1, 1, 1, 1)
        log_a = -(t**2) * (BETA[1] - BETA[0]) / 4 - t * BETA[0] / 2
        a, square = jnp.exp(log_a), -jnp.expm1(2 * log_a)
        b = jnp.sqrt(square) if self.process == "vp" else square
        return b * (x - a * MEAN) / ((a * STD) ** 2 + b**2)


@pytest.mark.parametrize("process", ["vp", "subvp"])
@pytest.mark.parametrize("rescaled", [True, False])
def test_a_network_of_the_process_becomes_the_score_of_data_with_noise(process, rescaled):
    x = jax.random.normal(jax.random.key(0), (7, 2, 2, 1))
    times = np.array([1e-3, 1e-2, 0.1, 0.3, 0.5, 0.8, 1.0])
    a, b = marginal(process, times)
    sigma = jnp.asarray(b / a, jnp.float32)  # of images in [−1, 1]
    found = VPScore(Exact(process), process, *BETA, rescaled=True).apply({}, x, sigma)
    expected = -(x - MEAN) / (STD**2 + np.square(b / a).reshape(-1, 1, 1, 1))
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-6)
    if not rescaled:  # u = (x + 1)/2 has half the noise, and twice the score
        network = VPScore(Exact(process), process, *BETA)
        np.testing.assert_allclose(network.apply({}, (x + 1) / 2, sigma / 2), 2 * found, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("process", ["vp", "subvp"])
def test_labels_invert_the_noise_levels(process):
    labels = []

    class Recording(nn.Module):
        def __call__(self, x, label):
            labels.append(label)
            return x

    times = np.geomspace(1e-3, 1.0, 50)
    a, b = marginal(process, times)
    x = jnp.ones((50, 1, 1, 1))
    score = VPScore(Recording(), process, *BETA, rescaled=True)
    out = score.apply({}, x, jnp.asarray(b / a, jnp.float32))
    np.testing.assert_allclose(labels[0], 999 * times, rtol=1e-3)
    np.testing.assert_allclose(out[:, 0, 0, 0], -a / (b / a), rtol=1e-4)


@pytest.mark.parametrize("process", ["vp", "subvp"])
def test_noise_levels_of_times_are_the_ratio_of_noise_and_signal(process):
    for time in (1e-3, 0.3, 1.0):
        a, b = marginal(process, time)
        np.testing.assert_allclose(sigma_at(time, process, *BETA), b / a, rtol=1e-6)
    with pytest.raises(ValueError, match=r"beta_min=20\.0: accepted: at most beta_max=0\.1"):
        VPScore(Exact(process), process, 20.0, 0.1).apply({}, jnp.ones((1, 2, 2, 1)), jnp.ones(1))
