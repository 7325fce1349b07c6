import numpy as np
import pytest

from ncsn_jax import geometric_sigmas
from ncsn_jax.noise import largest_distance, num_scales_for, step_size_for


def test_geometric_levels_descend_with_a_constant_ratio():
    sigmas = np.asarray(geometric_sigmas(20.0, 1.0, 10))
    assert sigmas.dtype == np.float32
    assert sigmas[0] == 20.0
    assert sigmas[-1] == 1.0
    np.testing.assert_allclose(sigmas[:-1] / sigmas[1:], 20 ** (1 / 9), rtol=1e-6)


def test_geometric_levels_equal_the_official_ones_bit_for_bit(official):
    np.testing.assert_array_equal(geometric_sigmas(1.0, 0.01, 10), official["sigmas"])


def test_a_single_geometric_level_is_sigma_begin():
    np.testing.assert_array_equal(geometric_sigmas(2.0, 1.0, 1), [2.0])


@pytest.mark.parametrize(
    ("begin", "end", "number"),
    [
        (1.0, 1.0, 3),
        (0.01, 1.0, 3),
        (1.0, 0.0, 3),
        (1.0, -1.0, 3),
        (float("inf"), 1.0, 3),
        (1.0, 1e-50, 3),
        (1.0, 1 - 1e-9, 3),
    ],
)
def test_levels_that_do_not_descend_in_single_precision_are_refused(begin, end, number):
    with pytest.raises(ValueError, match=f"found sigma_begin={begin}, sigma_end={end}"):
        geometric_sigmas(begin, end, number)


def test_zero_noise_levels_are_refused():
    with pytest.raises(ValueError, match="at least 1, found 0"):
        geometric_sigmas(1.0, 0.01, 0)


@pytest.fixture(scope="module")
def points():
    """300 points in a ball of 7 dimensions, and their largest distance by brute force."""
    x = np.random.default_rng(0).normal(size=(300, 7)).astype(np.float32)
    return x, np.max(np.linalg.norm(x[:, None] - x[None], axis=-1))


def test_largest_distance_is_exact_for_small_sets(points):
    x, longest = points
    np.testing.assert_allclose(largest_distance(x), longest, rtol=1e-6)
    np.testing.assert_allclose(largest_distance(x.reshape(300, 7, 1)), longest, rtol=1e-6)


def test_estimated_largest_distance_is_a_close_lower_bound(points):
    x, longest = points
    estimate = largest_distance(x, exact_up_to=100)
    assert 0.9 * longest < estimate <= longest * (1 + 1e-6)
    line = np.linspace(0.0, 3.0, 101)[:, None]
    np.testing.assert_allclose(largest_distance(line, exact_up_to=2), 3.0, rtol=1e-6)


@pytest.mark.parametrize("dim", [3072, 784, 64])
def test_suggested_neighbouring_levels_overlap_by_half(dim):
    """By drawing a level's distances from a clean example, r ~ N(√D σ, σ²/2), for σ = 1 below σ = γ."""
    num_scales = num_scales_for(50.0, 0.01, dim)
    ratio = (50.0 / 0.01) ** (1 / (num_scales - 1))
    radius = np.sqrt(dim) + np.random.default_rng(0).normal(size=200_000) / np.sqrt(2)
    share = np.mean(np.abs(radius - np.sqrt(dim) * ratio) < 3 * ratio / np.sqrt(2))
    # Rounding up the number of levels makes a ratio slightly smaller, and an overlap slightly larger.
    assert 0.5 - 4 * 0.5 / np.sqrt(200_000) < share < 0.56


def test_suggested_levels_and_step_sizes_match_the_paper():
    assert abs(num_scales_for(50.0, 0.01, 3 * 32 * 32) / 232 - 1) < 0.1
    assert abs(step_size_for(geometric_sigmas(50.0, 0.01, 232), 5) / 6.2e-6 - 1) < 0.1
    assert abs(step_size_for(geometric_sigmas(90.0, 0.01, 500), 5) / 3.3e-6 - 1) < 0.1
    assert abs(step_size_for(geometric_sigmas(190.0, 0.01, 1086), 3) / 1.8e-6 - 1) < 0.1
    assert abs(step_size_for(geometric_sigmas(348.0, 0.01, 2311), 3) / 9.0e-7 - 1) < 0.1


def test_suggested_ratio_is_at_most_two_in_few_dimensions():
    assert num_scales_for(16.0, 1.0, 2) == 5


def test_suggested_step_size_brings_chains_closest_to_their_level():
    """The variance of Langevin chains on a point, relative to the level's, for ε and for others around it."""
    sigmas = geometric_sigmas(8.0, 0.5, 9)
    ratio, steps = float(sigmas[0] / sigmas[1]), 6

    def variance(epsilon):
        e, v = epsilon / 0.25, ratio**2
        for _ in range(steps):  # x ← x − e x + √(2e) z, in units of σ
            v = (1 - e) ** 2 * v + 2 * e
        return v

    best = step_size_for(sigmas, steps)
    errors = [abs(variance(best * factor) - 1) for factor in (0.8, 0.95, 1.0, 1.05, 1.2)]
    assert np.argmin(errors) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: largest_distance(np.zeros((1, 3))), "at least two examples, found 1"),
        (lambda: largest_distance(np.ones((4, 3))), "all 4 examples are equal; at least two must differ"),
        (lambda: largest_distance(np.array([[0.0], [np.nan], [1.0]]), exact_up_to=2), "finite numbers"),
        (lambda: num_scales_for(np.inf, 1.0, 3), "sigma_begin=inf"),
        (lambda: step_size_for([0.1, 1.0], 5), "must be positive and descend"),
        (lambda: num_scales_for(1.0, 2.0, 3), "found sigma_end=2.0, sigma_begin=1.0, dim=3"),
        (lambda: num_scales_for(2.0, 1.0, 3, overlap=1.0), "0.997 must hold"),
        (lambda: step_size_for([1.0], 5), r"at least two noise levels .* found the shape \(1,\) and 5"),
        (lambda: step_size_for([1.0, 0.5], 0), r"found the shape \(2,\) and 0"),
    ],
)
def test_noise_suggestions_refuse_invalid_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
