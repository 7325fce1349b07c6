"""The objectives against closed forms.

The data of the denoising tests is N(μ, s²) in one dimension, whose score at level σ is −(x − μ)/(s² + σ²).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import (
    denoising_score_matching,
    explicit_score_matching,
    geometric_sigmas,
    implicit_score_matching,
    losses,
    ncsn_loss,
    sliced_score_matching,
)
from ncsn_jax.losses import divergence, projected_score_matching

MEAN, STD, SIGMA = 1.5, 0.7, 0.4
NUM_EXAMPLES = 200_000


def gaussian_data(key):
    return MEAN + STD * jax.random.normal(key, (NUM_EXAMPLES, 1))


def linear_score(parameters, x, sigma):
    del sigma
    return parameters[0] * x + parameters[1]


def per_example_gradients(parameters, power):
    """Gradients of the denoising loss of a linear score in its two parameters, one row an example."""

    def loss(parameters, key, x):
        score_fn = functools.partial(linear_score, parameters)
        return denoising_score_matching(key, score_fn, x, SIGMA, power=power)

    data_key, noise_key = jax.random.split(jax.random.key(0))
    keys = jax.random.split(noise_key, NUM_EXAMPLES)
    x = gaussian_data(data_key)
    return np.asarray(jax.vmap(jax.grad(loss), (None, 0, 0))(parameters, keys, x))


def standard_errors_from_zero(samples):
    return samples.mean(0) / (samples.std(0) / np.sqrt(len(samples)))


def test_explicit_loss_is_half_the_squared_distance():
    x = jnp.arange(6.0).reshape(2, 3)
    loss = explicit_score_matching(lambda x: 2 * x, x, jnp.ones((2, 3)))
    assert float(loss) == 0.5 * sum((2 * i - 1) ** 2 for i in range(6))


def test_denoising_loss_is_stationary_at_the_score_of_the_perturbed_data():
    precision = 1 / (STD**2 + SIGMA**2)
    gradients = per_example_gradients(jnp.array([-precision, precision * MEAN]), 2.0)
    assert np.abs(standard_errors_from_zero(gradients)).max() < 4


def test_denoising_gradient_at_the_score_of_the_clean_data_has_its_closed_form():
    """With the slope −1/s² instead of −1/(s² + σ²), the gradient in the slope is −σ⁴/s²."""
    gradients = per_example_gradients(jnp.array([-1 / STD**2, MEAN / STD**2]), 2.0)
    expected = np.array([-(SIGMA**4) / STD**2, 0.0])
    assert np.abs(standard_errors_from_zero(gradients - expected)).max() < 4


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_denoising_loss_of_the_zero_score_has_its_closed_form_mean(power):
    """½ σ^power E‖z/σ‖² = ½ D σ^(power − 2)."""
    event = (4, 3)
    keys = jax.random.split(jax.random.key(1), 20_000)
    x = jnp.zeros(event)

    def loss(key):
        return denoising_score_matching(key, lambda x, _: 0 * x, x, SIGMA, power=power)

    losses = np.asarray(jax.vmap(loss)(keys))
    expected = 0.5 * 12 * SIGMA ** (power - 2)
    assert abs(losses.mean() - expected) < 4 * losses.std() / np.sqrt(len(keys))


def test_denoising_loss_is_zero_for_the_score_of_the_perturbation():
    x = jnp.array([0.3, -2.0])
    loss = denoising_score_matching(
        jax.random.key(2), lambda perturbed, sigma: (x - perturbed) / sigma**2, x, SIGMA
    )
    assert float(loss) < 1e-10


def test_ncsn_loss_draws_every_level_equally_often():
    """With s = 0 and power 4 the loss is ½ σ² ‖z‖²: its mean over levels weights each by 1/L."""
    sigmas = geometric_sigmas(1.0, 0.1, 3)
    keys = jax.random.split(jax.random.key(3), 100_000)
    x = jnp.zeros(5)

    def loss(key):
        return ncsn_loss(key, lambda x, _: 0 * x, x, sigmas, power=4.0)

    losses = np.asarray(jax.vmap(loss)(keys))
    expected = 0.5 * 5 * float(jnp.mean(sigmas**2))
    assert abs(losses.mean() - expected) < 4 * losses.std() / np.sqrt(len(keys))


def test_ncsn_loss_passes_only_its_levels_to_the_score_function():
    sigmas = geometric_sigmas(1.0, 0.01, 5)
    keys = jax.random.split(jax.random.key(4), 500)

    def seen(key):
        # With the target removed, the loss is ½ ‖σ‖² of the level it drew.
        return ncsn_loss(key, lambda x, sigma: -x / sigma**2 + sigma, jnp.zeros(1), sigmas, power=0.0)

    levels = np.sqrt(2 * np.asarray(jax.vmap(seen)(keys)))
    distance = np.abs(levels[:, None] / np.asarray(sigmas) - 1)
    assert distance.min(axis=1).max() < 1e-2
    assert set(distance.argmin(axis=1)) == set(range(5))


def field(x):
    """s(x) = (x₀² x₁, sin x₀ + x₁³), whose divergence is 2 x₀ x₁ + 3 x₁²."""
    return jnp.stack([x[0] ** 2 * x[1], jnp.sin(x[0]) + x[1] ** 3])


POINTS = jnp.array([[1.0, 2.0], [-0.5, 0.3], [0.0, -1.0]])


def test_implicit_loss_and_divergence_equal_values_by_hand():
    for x in POINTS:
        x0, x1 = np.asarray(x, np.float64)
        trace = 2 * x0 * x1 + 3 * x1**2
        square = (x0**2 * x1) ** 2 + (np.sin(x0) + x1**3) ** 2
        np.testing.assert_allclose(divergence(field, x), trace, rtol=1e-6)
        np.testing.assert_allclose(implicit_score_matching(field, x), trace + square / 2, rtol=1e-6)


def test_implicit_loss_takes_x_of_any_shape():
    """s(x) = A x of an image: tr A, whatever the order of the pixels."""
    event = (2, 3, 2)
    matrix = jax.random.normal(jax.random.key(0), (12, 12))
    x = jax.random.normal(jax.random.key(1), event)
    loss = implicit_score_matching(lambda x: (matrix @ x.reshape(-1)).reshape(event), x)
    expected = np.trace(matrix) + np.sum(np.square(matrix @ x.reshape(-1))) / 2
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("variance_reduced", [True, False])
def test_projections_on_a_basis_give_the_implicit_loss(variance_reduced):
    """For v = √D eᵢ, i = 1 … D, the mean of vvᵀ is I itself: sliced is implicit, exactly."""
    basis = jnp.sqrt(2.0) * jnp.eye(2)
    for x in POINTS:
        loss = projected_score_matching(field, x, basis, variance_reduced=variance_reduced)
        np.testing.assert_allclose(loss, implicit_score_matching(field, x), rtol=1e-5)


@pytest.mark.parametrize("variance_reduced", [True, False])
@pytest.mark.parametrize("num_projections", [1, 3])
@pytest.mark.parametrize("projection", ["rademacher", "gaussian", "sphere"])
def test_sliced_loss_is_unbiased_for_the_implicit_loss(projection, num_projections, variance_reduced):
    keys = jax.random.split(jax.random.key(5), 50_000)
    for x in POINTS[:2]:

        def loss(key, x=x):
            return sliced_score_matching(
                key,
                field,
                x,
                num_projections=num_projections,
                projection=projection,
                variance_reduced=variance_reduced,
            )

        samples = np.asarray(jax.vmap(loss)(keys), np.float64)
        standard_error = samples.std() / np.sqrt(len(keys))
        assert 0 < abs(samples.mean() - implicit_score_matching(field, x)) < 4 * standard_error


@pytest.mark.parametrize("variance_reduced", [True, False])
@pytest.mark.parametrize("projection", ["rademacher", "gaussian"])
def test_variance_of_the_sliced_loss_equals_its_closed_form(projection, variance_reduced):
    """For s(x) = −x the loss is −‖v‖² + ½‖x‖² or −‖v‖² + ½(vᵀx)², whose fourth moments are known."""
    x = jnp.array([1.0, -2.0, 0.5, 2.0, -1.5])
    keys = jax.random.split(jax.random.key(8), 100_000)

    def loss(key):
        return sliced_score_matching(
            key, lambda x: -x, x, projection=projection, variance_reduced=variance_reduced
        )

    square, fourth = np.sum(np.square(x)), np.sum(np.power(x, 4))
    expected = {
        ("rademacher", True): 0.0,
        ("rademacher", False): (square**2 - fourth) / 2,
        ("gaussian", True): 2 * 5,
        ("gaussian", False): 2 * 5 + square**2 / 2 - 2 * square,
    }[projection, variance_reduced]
    np.testing.assert_allclose(np.var(jax.vmap(loss)(keys)), expected, rtol=0.05, atol=1e-9)


def test_four_projections_quarter_the_variance_of_the_sliced_loss():
    keys = jax.random.split(jax.random.key(6), 20_000)

    def variance(num_projections):
        def loss(key):
            return sliced_score_matching(key, field, POINTS[0], num_projections=num_projections)

        return float(jnp.var(jax.vmap(loss)(keys)))

    np.testing.assert_allclose(variance(1) / variance(4), 4, rtol=0.1)


@pytest.mark.parametrize("projection", ["rademacher", "gaussian", "sphere"])
def test_projection_directions_have_unit_covariance(projection):
    """Seen through s(x) = x₀ e₁: the loss less its constant is v₀v₁, or v₀² for s(x) = x₀ e₀."""
    keys = jax.random.split(jax.random.key(7), 50_000)
    x = jnp.zeros((2, 2))

    def product(key, i, j):
        def score_fn(x):
            return jnp.zeros(4).at[j].set(x.reshape(-1)[i]).reshape(2, 2)

        return sliced_score_matching(key, score_fn, x, projection=projection)

    for i, j in [(0, 0), (2, 2), (0, 1), (3, 1)]:
        products = np.asarray(jax.vmap(lambda key, i=i, j=j: product(key, i, j))(keys), np.float64)
        error = abs(products.mean() - (i == j))
        assert error <= 4 * products.std() / np.sqrt(len(keys)) + 1e-5


@pytest.fixture(scope="module")
def plain(unchecked):
    return unchecked(losses)


KEY = jax.random.key(0)
X = jnp.ones(3)


def wrong(x, *sigma):
    return x[:1]


def right(x, *sigma):
    return x


REFUSED = {
    "explicit, score of another shape": (
        lambda m: m.explicit_score_matching(wrong, X, X),
        "shape of x, (3,), found (1,)",
    ),
    "explicit, target of another shape": (
        lambda m: m.explicit_score_matching(right, X, X[:1]),
        "target must have the shape",
    ),
    "implicit, score of another shape": (
        lambda m: m.implicit_score_matching(wrong, X),
        "shape of x, (3,), found (1,)",
    ),
    "sliced, score of another shape": (
        lambda m: m.sliced_score_matching(KEY, wrong, X),
        "shape of x, (3,), found (1,)",
    ),
    "denoising, score of another shape": (
        lambda m: m.denoising_score_matching(KEY, wrong, X, 1.0),
        "shape of x, (3,), found (1,)",
    ),
    "ncsn, score of another shape": (
        lambda m: m.ncsn_loss(KEY, wrong, X, jnp.ones(2)),
        "shape of x, (3,), found (1,)",
    ),
    "explicit, integers": (
        lambda m: m.explicit_score_matching(right, X.astype(int), X),
        "x must have a floating type, found int32",
    ),
    "implicit, integers": (lambda m: m.implicit_score_matching(right, X.astype(int)), "floating type"),
    "sliced, integers": (lambda m: m.sliced_score_matching(KEY, right, X.astype(int)), "floating type"),
    "denoising, integers": (
        lambda m: m.denoising_score_matching(KEY, right, np.arange(3), 1.0),
        "x must have a floating type, found int32",
    ),
    "ncsn, integers": (lambda m: m.ncsn_loss(KEY, right, X.astype(int), X), "floating type"),
    "denoising, sigma 0": (
        lambda m: m.denoising_score_matching(KEY, right, X, 0.0),
        "sigma must be positive, found 0.0",
    ),
    "denoising, sigma -1": (
        lambda m: m.denoising_score_matching(KEY, right, X, jnp.array(-1.0)),
        "found -1.0",
    ),
    "denoising, sigma nan": (lambda m: m.denoising_score_matching(KEY, right, X, np.nan), "found nan"),
    "ncsn, negative sigma": (
        lambda m: m.ncsn_loss(KEY, right, X, jnp.array([1.0, -0.5])),
        "found [ 1.  -0.5]",
    ),
    "denoising, many sigmas": (
        lambda m: m.denoising_score_matching(KEY, right, X, X),
        "sigma must be one number, found the shape (3,)",
    ),
    "ncsn, one sigma": (
        lambda m: m.ncsn_loss(KEY, right, X, 1.0),
        "sigma must be a row of numbers, found the shape ()",
    ),
    "implicit, score that is a tuple": (
        lambda m: m.implicit_score_matching(lambda x: (x, x), X),
        "(3,), found tuple",
    ),
    "implicit, a Python number": (lambda m: m.implicit_score_matching(right, 3), "found int32"),
    "sliced, unknown projection": (
        lambda m: m.sliced_score_matching(KEY, right, X, projection="normal"),
        "rademacher, gaussian or sphere, found 'normal'",
    ),
    "sliced, no projections": (
        lambda m: m.sliced_score_matching(KEY, right, X, num_projections=0),
        "found 0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_losses_refuse_invalid_arguments_in_one_line(case, plain):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match="found") as error:
        call(plain)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_traced_sigma_is_accepted_unchecked(plain):
    """Under jit and vmap its value isn't known: nothing is refused, nothing fails."""
    sigmas = jnp.array([1.0, 0.1])
    losses = jax.jit(lambda s: plain.denoising_score_matching(KEY, lambda x, s: -x, X, s))(sigmas[0])
    assert np.isfinite(losses)
    keys = jax.random.split(KEY, 2)
    assert jax.vmap(lambda k, s: plain.denoising_score_matching(k, lambda x, s: -x, X, s))(keys, sigmas).shape


def test_losses_take_lists_and_double_precision_without_a_warning(plain, recwarn):
    """They are converted to single precision, as jax does."""
    expected = plain.denoising_score_matching(KEY, lambda x, s: -x, X, 0.5)
    for x in (X.tolist(), np.ones(3)):
        assert plain.denoising_score_matching(KEY, lambda x, s: -x, x, 0.5) == expected
    assert np.isfinite(plain.ncsn_loss(KEY, lambda x, s: -x, np.ones(3), (1.0, 0.5)))
    assert np.isfinite(plain.implicit_score_matching(lambda x: -x, 2.0))
    assert not recwarn.list


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_ncsn_loss_keeps_the_dtype_of_the_data(plain, dtype):
    seen = []

    def score_fn(x, sigma):
        seen.extend([x.dtype, sigma.dtype])
        return -x

    levels = jnp.array([1.0, 0.5])  # single precision
    assert plain.ncsn_loss(KEY, score_fn, X.astype(dtype), levels).dtype == dtype
    assert set(seen) == {jnp.dtype(dtype), jnp.dtype(jnp.float32)}  # x, and its coefficient σ


def test_variance_reduction_can_increase_the_variance():
    """At the score −x of N(0, 1), along Gaussian v: −v² + ½x² varies by 5/2, −v² + ½v²x² by 2."""
    keys = jax.random.split(jax.random.key(9), 400_000)

    def loss(key, variance_reduced):
        data_key, key = jax.random.split(key)
        x = jax.random.normal(data_key, (1,))
        return sliced_score_matching(
            key, lambda x: -x, x, projection="gaussian", variance_reduced=variance_reduced
        )

    for variance_reduced, expected in ((True, 2.5), (False, 2.0)):
        of_example = functools.partial(loss, variance_reduced=variance_reduced)
        np.testing.assert_allclose(jax.vmap(of_example)(keys).var(), expected, rtol=0.03)
