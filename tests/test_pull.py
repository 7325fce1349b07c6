"""Pull and projection of every operator and noise, against dense systems in float64."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import Observation
from ncsn_jax.operators import (
    BlockAverage,
    Compose,
    Convolution,
    FourierMask,
    Identity,
    Luma,
    Mask,
)

SHAPE = (8, 6, 3)
SIGMA = 0.7
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}
"""Relative errors of a pull that the docstring of `Observation` promises."""
NOISES = ("zero", "number", "map", "covariance")
ITERATED = {"zero", "masked blur", "frequencies of a blur", "matrix", "complex"}
FAST = [
    ("luma", "map"),
    ("periodic", "number"),
    ("frequencies", "number"),
    ("masked blur", "zero"),
    ("masked blur", "covariance"),
    ("complex", "map"),
]


def six_complex(x):
    return jax.lax.complex(jnp.cumsum(x.ravel()[:6]), x.ravel()[6:12])


def operators():
    """Operators by name, whose A Aᵀ have condition numbers up to 1e3; each call makes new arrays."""
    rng = np.random.default_rng(0)
    psf = np.exp(-(np.arange(-1, 2)[:, None] ** 2 + np.arange(-2, 3) ** 2) / 1.5)
    psf = psf / psf.sum() + 0.5 * (np.hypot(*np.mgrid[-1:2, -2:3]) == 0)
    known = rng.random(SHAPE) < 0.6
    near = np.hypot(*np.mgrid[-4:4, -3:3]) < 2.5
    frequencies = np.fft.ifftshift(near) & (rng.random((8, 6)) < 0.8)
    u, _, v = np.linalg.svd(rng.normal(size=(20, 144)), full_matrices=False)
    matrix = u * np.geomspace(1, 10**-1.5, 20) @ v
    return {
        "identity": Identity(),
        "mask": Mask(known),
        "luma": Luma(),
        "blocks": BlockAverage(2),
        "periodic": Convolution(psf),
        "periodic by channel": Convolution(np.stack([psf, psf[::-1], psf**2], -1)),
        "zero": Convolution(psf, boundary="zero"),
        "frequencies": FourierMask(frequencies),
        "masked blur": Compose(Mask(known), Convolution(psf)),
        "frequencies of a blur": Compose(FourierMask(frequencies), Convolution(psf)),
        "matrix": lambda x: jnp.asarray(matrix, x.dtype) @ x.ravel(),
        "complex": six_complex,
    }


def parts(v):
    """Real and imaginary parts as one vector of float64."""
    v = np.asarray(v)
    return np.concatenate([v.real.ravel(), v.imag.ravel()] if np.iscomplexobj(v) else [v.ravel()]).astype(
        float
    )


def columns_of(linear, shape, *, is_complex=False):
    """The matrix of a real-linear function."""
    units = np.eye(np.prod(shape)).reshape(-1, *shape)
    units = np.concatenate([units, 1j * units]) if is_complex else units
    return np.stack([parts(linear(jnp.asarray(unit))) for unit in units], axis=1)


def neighbours_correlated(rows):
    """The covariance 0.09 (1 + 0.8 exp(−d/2)) along the first axis of y."""
    distance = np.abs(np.subtract.outer(np.arange(rows), np.arange(rows)))
    matrix = 0.09 * (np.eye(rows) + 0.8 * np.exp(-distance / 2.0))
    return lambda v: jnp.tensordot(jnp.asarray(matrix).astype(v.dtype), v, 1)


def observed(name, noise):
    """An observation in float64, and the matrices A and Σ_y of what A sees, with an axis of parts."""
    rng, operator = np.random.default_rng(1), operators()[name]
    y = np.array(operator(jnp.asarray(rng.normal(size=SHAPE))))
    y += 0.2 * rng.normal(size=y.shape) * (1 + 1j if np.iscomplexobj(y) else 1)
    if noise == "covariance":
        std = neighbours_correlated(len(y))
        covariance = columns_of(std, y.shape, is_complex=np.iscomplexobj(y))
    else:
        # Noise maps over three orders of magnitude.
        std = {"zero": 0.0, "number": 0.1}.get(noise, np.exp(1.5 * rng.normal(size=y.shape) - 2))
        map_of_parts = parts(np.full(y.shape, std) * (1 + 1j if np.iscomplexobj(y) else 1))
        covariance = np.diag(map_of_parts**2)
    a = columns_of(operator, SHAPE)
    return Observation(y, operator, std), a, covariance


def pull(a, covariance, residual, sigma):
    """Aᵀ (Σ_y + σ² A Aᵀ)⁺ r of the rows that A sees, in float64."""
    is_seen = np.abs(a).max(1) > 0
    a, covariance = a[is_seen], covariance[is_seen][:, is_seen]
    return a.T @ np.linalg.pinv(covariance + sigma**2 * a @ a.T, rcond=1e-9) @ residual[is_seen]


def error(found, true):
    return np.linalg.norm(np.asarray(found, float).ravel() - true) / np.linalg.norm(true)


def assert_dense(name, noise, dtype):
    with jax.enable_x64(True):
        observation, a, covariance = observed(name, noise)
        x = np.random.default_rng(2).normal(size=SHAPE)
        residual = parts(observation.y) - a @ x.ravel()
    with jax.enable_x64(dtype == "float64"), warnings.catch_warnings():
        warnings.simplefilter("error")
        y = jnp.asarray(observation.y)
        observation = observation.replace(y=y, operator=operators()[name])
        found = jax.jit(lambda x: observation.pull(x, SIGMA))(jnp.asarray(x))
        assert found.dtype == dtype
        assert error(found, pull(a, covariance, residual, SIGMA)) < TOLERANCE[dtype]
        if noise == "zero":
            moved = observation.project(jnp.asarray(x)) - jnp.asarray(x)
            assert error(moved, pull(a, covariance, residual, 1.0)) < TOLERANCE[dtype]


@pytest.mark.parametrize(("name", "noise"), FAST)
def test_pull_equals_a_dense_solve(name, noise):
    assert_dense(name, noise, "float64")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", operators())
def test_pull_equals_a_dense_solve_for_every_operator(name, noise, dtype):
    assert_dense(name, noise, dtype)


def test_pull_is_the_same_in_a_batch_and_in_bfloat16():
    """Masked blur with a noise map of three orders of magnitude: the pull was 70 % off."""
    observation, a, covariance = observed("masked blur", "map")
    x = np.random.default_rng(2).normal(size=(3, *SHAPE)).astype(np.float32)
    found = jax.jit(jax.vmap(observation.pull, (0, None)))(x, SIGMA)
    for one, of_batch in zip(x, found, strict=True):
        residual = parts(observation.y) - a @ one.ravel()
        assert error(of_batch, pull(a, covariance, residual, SIGMA)) < TOLERANCE["float32"]
    narrow = jnp.asarray(x, jnp.bfloat16)
    found = jax.jit(jax.vmap(observation.pull, (0, None)))(narrow, SIGMA)
    assert found.dtype == jnp.bfloat16
    residual = parts(observation.y) - a @ np.asarray(narrow[0], float).ravel()
    # 8 bits of the result.
    assert error(found[0], pull(a, covariance, residual, SIGMA)) < 2**-8


@jax.debug_nans(False)  # what wasn't measured is NaN on purpose
@pytest.mark.parametrize("name", ["mask", "masked blur"])
def test_entries_of_infinite_noise_and_entries_never_seen_are_not_read(name):
    observation, a, covariance = observed(name, "map")
    gaps = np.random.default_rng(3).random(observation.y.shape) < 0.2
    x = jnp.asarray(np.random.default_rng(2).normal(size=SHAPE), jnp.float32)
    is_complex = np.iscomplexobj(observation.y)
    keep = ~parts(gaps * (1 + 1j if is_complex else 1)).astype(bool)
    residual = parts(observation.y) - a @ x.ravel()
    true = pull(a[keep], covariance[keep][:, keep], residual[keep], SIGMA)
    is_seen = (np.abs(a).max(1) > 0).reshape(-1, *gaps.shape)[0]
    y = np.where(is_seen & ~gaps, observation.y, np.nan * (1 + 1j) if is_complex else np.nan)
    incomplete = observation.replace(y=y, noise_std=np.where(gaps, np.inf, observation.noise_std))
    pulled = jax.jit(lambda observation, x: observation.pull(x, SIGMA))(incomplete, x)
    assert error(pulled, true) < TOLERANCE["float32"]


def test_noise_may_differ_between_channels():
    """Over five orders of magnitude, and infinite: no channel changes another's closed form."""
    observation, a, _ = observed("periodic", "number")
    x = jnp.asarray(np.random.default_rng(2).normal(size=SHAPE), jnp.float32)
    std = np.array([1e-2, 1e3, np.inf], np.float32).reshape(1, 1, 3)
    found = observation.replace(noise_std=std).pull(x, SIGMA)
    of_each = np.broadcast_to(std, SHAPE)
    keep = np.isfinite(of_each).ravel()
    residual = parts(observation.y) - a @ x.ravel()
    covariance = np.diag(of_each.astype(float).ravel()[keep] ** 2)
    true = a[keep].T @ np.linalg.solve(covariance + SIGMA**2 * a[keep] @ a[keep].T, residual[keep])
    true = true.reshape(SHAPE)
    for channel in range(2):
        assert error(found[..., channel], true[..., channel].ravel()) < TOLERANCE["float32"]
    assert (found[..., 2] == 0).all()


@jax.debug_nans(False)
def test_pull_is_nan_if_it_reads_a_number_that_is_not_finite():
    observation, _, _ = observed("masked blur", "map")
    x = jnp.zeros(SHAPE)
    wrong = [
        (observation.replace(y=np.where(np.arange(SHAPE[2]) == 1, np.inf, observation.y)), x),
        (observation.replace(y=np.nan * observation.y), x),
        (observation.replace(noise_std=np.nan * observation.noise_std), x),
        (observation, jnp.full(SHAPE, jnp.nan)),
    ]
    for given, state in wrong:
        assert np.isnan(given.pull(state, SIGMA)).all()


def test_pull_that_does_not_converge_gives_one_warning_a_batch(monkeypatch):
    monkeypatch.setattr("ncsn_jax.pull.MAX_STEPS", 2)
    observation, _, _ = observed("masked blur", "zero")
    x = np.random.default_rng(2).normal(size=(3, *SHAPE)).astype(np.float32)

    def run():
        pulled = jax.jit(jax.vmap(observation.pull, (0, None)))(x, SIGMA)
        jax.effects_barrier()
        return pulled

    with pytest.warns(UserWarning, match=r"at σ=0.7 hasn't converged: its last change is 0\.\d+ of") as found:
        pulled = run()
    assert len(found) == 1
    assert np.isfinite(pulled).all()


def test_noise_dominates_at_small_sigma():
    """At σ = 0 the pull is the gradient of log N(y; A x, Σ_y), and close to it the error stays small."""
    observation, a, covariance = observed("masked blur", "number")
    x = jnp.asarray(np.random.default_rng(2).normal(size=SHAPE), jnp.float32)
    residual = parts(observation.y) - a @ x.ravel()
    for sigma in (0.0, 1e-5, 1e-2):
        assert error(observation.pull(x, sigma), pull(a, covariance, residual, sigma)) < 1e-5


def test_observations_refuse_what_does_not_fit():
    x = jnp.zeros(SHAPE)
    blur = operators()["periodic"]
    psf = "psf must be no larger than x, .*, and have one channel or its channels, found the shape"
    for observation, message in (
        (Observation(x[0], blur), r"y must have the shape of A x, \(8, 6, 3\), found \(6, 3\)"),
        (Observation(x + 0j, blur), "y must be real, like A x, found complex numbers"),
        (
            Observation(x, blur, jnp.ones(8)),
            r"noise_std must be one number, a function, .*found the shape \(8,\)",
        ),
        (Observation(x, blur, x + 0j), "noise_std must be real, found complex numbers"),
        (Observation(x, FourierMask(np.ones((8, 6)))), "y must be complex, like A x, found real numbers"),
        (Observation(x, FourierMask(np.ones(8))), r"mask must have the shape \(8, 6\), found \(8,\)"),
        (Observation(x, Convolution(np.ones((9, 9)))), psf),
        (Observation(x, Convolution(np.ones((3, 3, 2)))), psf),
    ):
        with pytest.raises(ValueError, match=message):
            observation.pull(x, SIGMA)


def test_convolution_has_its_centre_and_boundary():
    x = jnp.zeros((5, 5)).at[0, 2].set(1.0)
    psf = np.arange(9.0).reshape(3, 3)
    np.testing.assert_allclose(Convolution(psf)(x)[[4, 0, 1], 1:4], psf, atol=1e-5)
    found = Convolution(psf, boundary="zero")(x)
    np.testing.assert_allclose(found[:2, 1:4], psf[1:], atol=1e-5)
    np.testing.assert_allclose(found[2:], 0.0, atol=1e-5)
