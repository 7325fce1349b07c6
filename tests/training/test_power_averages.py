"""Averages by power functions, and averages of other lengths from stored ones, on scripted paths."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ncsn_jax.training.power_averages import LONGEST, Profile, exponent, synthesis, update_size
from ncsn_jax.training.state import first_state
from ncsn_jax.training.step import update

STEPS = 400
PATH = np.cumsum(np.random.default_rng(0).standard_normal(STEPS)) + 5.0


def weights(profile):
    """The integrals of (γ + 1) s^γ/t^(γ+1) over the steps: the weights of θ₁ … θ_t."""
    ends = np.arange(profile.num_updates + 1) ** (exponent(profile.length) + 1)
    return np.diff(ends) / ends[-1]


def average(profile, path=PATH):
    return weights(profile) @ path[: profile.num_updates]


def density(profile, points):
    gamma = exponent(profile.length)
    p = (gamma + 1) * points**gamma / profile.num_updates ** (gamma + 1)
    return np.where(points <= profile.num_updates, p, 0.0)


def snapshots(every):
    return [Profile(t, length) for t in range(every, STEPS + 1, every) for length in (0.05, 0.1)]


@pytest.mark.parametrize("gamma", [1e-3, 1.0, 6.94, 16.97, 100.0])
def test_the_exponent_inverts_the_length(gamma):
    """6.94 and 16.97 are the paper's exponents of the lengths 0.10 and 0.05."""
    length = math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))
    assert exponent(length) == pytest.approx(gamma, rel=1e-9, abs=1e-9)
    if gamma in (6.94, 16.97):
        assert length == pytest.approx({6.94: 0.10, 16.97: 0.05}[gamma], abs=5e-5)
    assert exponent(LONGEST) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("length", [0.0, -0.1, LONGEST + 1e-6, math.nan])
def test_impossible_lengths_are_refused(length):
    with pytest.raises(ValueError, match=r"length=.*: accepted: more than 0, at most 0\.2887"):
        exponent(length)


def test_the_length_is_the_profiles_standard_deviation():
    for length in (0.05, 0.1, 0.25):
        w, steps = weights(Profile(20_000, length)), np.arange(20_000)
        std = math.sqrt(w @ steps**2 - (w @ steps) ** 2)
        assert std / 20_000 == pytest.approx(length, rel=1e-3)


def test_updates_keep_both_averages_and_leave_out_skipped_steps():
    """The parameter follows the path; the initial one, and a step that isn't finite, have no weight."""
    optimizer, lengths = optax.sgd(1.0), (0.05, 0.1)
    state = first_state({"w": jnp.float32(99.0)}, optimizer, has_two_averages=True)
    step = jax.jit(
        lambda state, value, gradient: update(
            state, value, gradient, optimizer=optimizer, ema_rate=0.0, ema_lengths=lengths
        )[0]
    )
    for number, value in enumerate(PATH[:60]):
        if number == 30:
            state = step(state, jnp.float32(jnp.nan), {"w": jnp.float32(0.0)})
        state = step(state, jnp.float32(0), {"w": state.params["w"] - jnp.float32(value)})
    for found, length in zip((state.ema_params, state.second_ema_params), lengths, strict=True):
        assert float(found["w"]) == pytest.approx(average(Profile(60, length)), rel=1e-5)
    assert float(update_size(1, 0.05)) == 1.0


@pytest.mark.parametrize("count", [2, 100, 10_000, 1_000_000, 10_000_000])
def test_small_updates_keep_their_digits_in_single_precision(count):
    expected = -math.expm1((exponent(0.05) + 1) * math.log1p(-1 / count))
    assert float(update_size(jnp.int32(count), 0.05)) == pytest.approx(expected, rel=1e-6)


def test_a_stored_average_is_reproduced_exactly():
    stored = snapshots(50)
    coefficients, residual = synthesis(Profile(STEPS, 0.1), stored)
    assert residual == 0
    np.testing.assert_array_equal(coefficients, np.eye(16)[15])
    near = synthesis(Profile(STEPS, 0.1 + 1e-9), stored)
    np.testing.assert_allclose(near.coefficients, coefficients, atol=1e-5)


@pytest.mark.parametrize("length", [0.03, 0.07, 0.13, 0.2])
@pytest.mark.parametrize("every", [400, 100, 20])
def test_other_lengths_come_as_close_as_the_residual_says(length, every):
    stored, wanted = snapshots(every), Profile(STEPS, length)
    coefficients, residual = synthesis(wanted, stored)
    points = (np.arange(200 * STEPS) + 0.5) / 200
    p = density(wanted, points)
    summed = sum(c * density(profile, points) for c, profile in zip(coefficients, stored, strict=True))
    assert coefficients.sum() == pytest.approx(1, abs=1e-12)
    assert residual == pytest.approx(np.linalg.norm(summed - p) / np.linalg.norm(p), rel=2e-3, abs=1e-6)

    error = coefficients @ [average(profile) for profile in stored] - average(wanted)
    bound = residual * np.sqrt(np.sum(p**2) / 200)
    assert abs(error) <= bound * np.linalg.norm(PATH - PATH.mean())
    worst = (summed - p).reshape(STEPS, 200).mean(1)  # the path on which the bound is met
    error = coefficients @ [average(profile, worst) for profile in stored] - average(wanted, worst)
    assert error == pytest.approx(bound * np.linalg.norm(worst), rel=0.02)


def test_more_snapshots_come_closer_and_a_constant_path_is_exact():
    residuals = [synthesis(Profile(STEPS, 0.15), snapshots(every)).residual for every in (400, 100, 50, 20)]
    assert all(more < 0.75 * fewer for fewer, more in itertools.pairwise(residuals))
    coefficients, _ = synthesis(Profile(STEPS, 0.25), snapshots(400))  # far out of reach
    assert coefficients @ np.full(2, 3.0) == pytest.approx(3.0, rel=1e-12)


def test_no_other_coefficients_with_the_same_sum_come_closer():
    stored, wanted = snapshots(100), Profile(STEPS, 0.13)
    coefficients, residual = synthesis(wanted, stored)
    points = (np.arange(50 * STEPS) + 0.5) / 50
    densities, p = np.stack([density(profile, points) for profile in stored]), density(wanted, points)
    for change in np.random.default_rng(1).standard_normal((20, len(stored))):
        other = coefficients + 1e-3 * (change - change.mean())
        distance = np.linalg.norm(other @ densities - p) / np.linalg.norm(p)
        assert distance > residual * 0.999
