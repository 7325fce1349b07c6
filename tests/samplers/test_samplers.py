"""Every sampler where the score is exact: mixtures in 2 and 16 dimensions, and Gaussians in closed form."""

import functools
import importlib

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance

from ncsn_jax import (
    NCSN,
    GaussianMixture,
    annealed_langevin_dynamics,
    as_score_fn,
    geometric_sigmas,
    samplers,
)
from ncsn_jax.noise import karras_sigmas
from ncsn_jax.samplers import (
    Sampler,
    consistent_annealed_sampling,
    consistent_step,
    diffuse,
    euler_maruyama,
    heun,
    heun_step,
    langevin_corrector,
    predictor_corrector,
    probability_flow,
    reverse_diffusion,
)

KEY = jax.random.key(0)
NUM_SAMPLES = 4096
WEIGHTS = np.array([0.2, 0.3, 0.5])
BEGIN, END = 50.0, 0.02
GEOMETRIC_100 = geometric_sigmas(BEGIN, END, 100)
KARRAS_40 = karras_sigmas(BEGIN, END, 40)
FIXED_STEPS = diffrax.StepTo(jnp.linspace(jnp.log(BEGIN), jnp.log(END), 31))


def annealed(key, score_fn, x):
    """50 levels of 100 steps, and the denoised mean: 5,001 score evaluations."""
    sigmas = geometric_sigmas(BEGIN, END, 50)
    options = dict(step_size=0.1 * END**2, steps_per_scale=100, denoise=True)
    return annealed_langevin_dynamics(key, score_fn, x, sigmas, **options)


SAMPLERS = {
    "annealed, 5,001 evaluations": annealed,
    "consistent annealed, 100 evaluations": lambda key, score_fn, x: consistent_annealed_sampling(
        key, score_fn, x, GEOMETRIC_100
    ),
    "consistent annealed of constant η, 101 evaluations": lambda key, score_fn, x: (
        consistent_annealed_sampling(
            key, score_fn, x, geometric_sigmas(BEGIN, END, 101), eta=0.2, denoise=True
        )
    ),
    "predictor-corrector, 199 evaluations": lambda key, score_fn, x: predictor_corrector(
        key, score_fn, x, GEOMETRIC_100, denoise=True
    ),
    "Euler-Maruyama predictor, corrector, 199 evaluations": lambda key, score_fn, x: predictor_corrector(
        key, score_fn, x, GEOMETRIC_100, predictor=euler_maruyama, denoise=True
    ),
    "predictor alone, 200 evaluations": lambda key, score_fn, x: predictor_corrector(
        key, score_fn, x, geometric_sigmas(BEGIN, END, 200), corrector_steps=0, denoise=True
    ),
    "Heun, 79 evaluations": lambda key, score_fn, x: heun(key, score_fn, x, KARRAS_40),
    "Heun with churn, 79 evaluations": lambda key, score_fn, x: heun(
        key, score_fn, x, KARRAS_40, s_churn=8.0
    ),
    "probability flow, adaptive": lambda key, score_fn, x: probability_flow(score_fn, x, BEGIN, END),
    "probability flow of fixed steps, 181 evaluations": lambda key, score_fn, x: probability_flow(
        score_fn, x, BEGIN, END, solver=diffrax.Tsit5(), stepsize_controller=FIXED_STEPS
    ),
}


class Exact:
    """A mixture of three modes, exact samples of it, and how far such samples are from each other."""

    def __init__(self, dim):
        corners = np.linalg.qr(np.random.default_rng(0).standard_normal((dim, 3)))[0].T if dim > 2 else None
        means = 4.0 * corners if dim > 2 else np.array([[-3.0, -3.0], [3.0, -3.0], [0.0, 3.0]])
        self.mixture = GaussianMixture(
            jnp.asarray(WEIGHTS, jnp.float32), jnp.asarray(means, jnp.float32), jnp.array([0.5, 0.7, 0.9])
        )
        directions = np.random.default_rng(1).standard_normal((32, dim))
        self.directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        draw = jax.jit(jax.vmap(self.mixture.sample))
        keys = jax.random.split(jax.random.key(1), (41, NUM_SAMPLES))
        self.reference, *sets = (self.by_mode(draw(k)) for k in keys)
        pairs = list(zip(sets[::2], sets[1::2], strict=True))
        self.medians = [np.median([self.distance(a[k], b[k]) for a, b in pairs]) for k in range(3)]

    def by_mode(self, x):
        """Samples grouped by mode: the component with the largest share of the density."""
        x, stds = np.asarray(x), np.asarray(self.mixture.stds)
        squares = cdist(x, np.asarray(self.mixture.means)) ** 2 / stds**2
        modes = np.argmax(np.log(WEIGHTS) - x.shape[1] * np.log(stds) - squares / 2, axis=1)
        return [x[modes == k] for k in range(3)]

    def distance(self, a, b):
        """The sliced Wasserstein-1 distance."""
        return np.mean([wasserstein_distance(a @ v, b @ v) for v in self.directions])


@pytest.fixture(scope="module", params=[2, pytest.param(16, marks=pytest.mark.slow)])
def exact(request):
    return Exact(request.param)


@pytest.fixture(params=SAMPLERS)
def sampler(request):
    # To check fixed steps, equinox reads, and so keeps, the variables of all that is being traced.
    with jax.check_tracer_leaks("fixed steps" not in request.param):
        yield SAMPLERS[request.param]


def test_samplers_draw_from_the_exact_mixture(exact, sampler):
    start_key, chain_key = jax.random.split(jax.random.key(7))
    dim = len(exact.mixture.means[0])
    x = BEGIN * jax.random.normal(start_key, (NUM_SAMPLES, dim))
    keys = jax.random.split(chain_key, NUM_SAMPLES)
    x = jax.jit(jax.vmap(lambda key, x: sampler(key, exact.mixture.score, x)))(keys, x)
    modes = exact.by_mode(x)
    shares = np.array([len(mode) for mode in modes]) / NUM_SAMPLES
    assert np.abs(shares - WEIGHTS).max() < 0.03
    ratios = [
        exact.distance(*pair) / median
        for *pair, median in zip(modes, exact.reference, exact.medians, strict=True)
    ]
    # Far below the median, samples would not be independent.
    assert min(ratios) > 0.5
    assert max(ratios) < 2.0


def test_a_sample_depends_on_its_key_and_not_on_the_batch(sampler):
    p = GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 2.0]], [0.5, 0.5])
    run = jax.jit(jax.vmap(lambda key, x: sampler(key, p.score, x)))
    keys, x = jax.random.split(KEY, 64), 50.0 * jax.random.normal(jax.random.key(2), (64, 2))
    together = run(keys, x)
    np.testing.assert_allclose(run(keys[10:17], x[10:17]), together[10:17], rtol=1e-3, atol=1e-3)


def gaussian(std):
    """The score of N(0, std² I) under noise."""
    return lambda x, sigma: -x / (std**2 + sigma**2)


@pytest.mark.parametrize("temperature", [0.0, 0.25, 1.0])
def test_temperature_scales_the_noise_variance_of_a_consistent_step(temperature):
    """At temperature 1 it is β² σ'² = σ'² − ((1 − η) σ)², around the mean moved by the score."""
    x, score_fn = jnp.zeros(50_000) + 3.0, gaussian(1.0)
    after = consistent_step(KEY, score_fn, x, 2.0, 1.5, eta=0.5, temperature=temperature)
    np.testing.assert_allclose(jnp.mean(after), 3.0 - 0.5 * 4 * 3.0 / 5, atol=0.02)
    np.testing.assert_allclose(jnp.var(after), temperature * (1.5**2 - 1.0), rtol=0.02, atol=1e-9)


def test_predictor_corrector_step_runs_the_predictor_then_the_corrector():
    x, score_fn = jnp.array([1.0, -2.0]), gaussian(1.0)
    found = samplers.predictor_corrector_step(
        KEY, score_fn, x, 2.0, 1.5, predictor=euler_maruyama, corrector_steps=2, snr=0.1, temperature=0.25
    )
    predictor_key, corrector_key = jax.random.split(KEY)
    x = euler_maruyama(predictor_key, score_fn, x, 2.0, 1.5, temperature=0.25)
    for m in range(2):
        key = jax.random.fold_in(corrector_key, m)
        step_size = 2 * (0.1 * 1.5) ** 2
        noise = jnp.sqrt(2 * step_size * 0.25) * jax.random.normal(key, (2,))
        x = x + step_size * score_fn(x, 1.5) + noise
    np.testing.assert_allclose(found, x, rtol=1e-5)


@pytest.mark.parametrize("eta", [None, 0.5, 1.0])
def test_consistent_step_ends_with_exactly_the_next_levels_noise(eta):
    """For data in one point, N(0, σᵢ²) becomes N(0, σᵢ₊₁²), whatever η."""
    keys = jax.random.split(KEY, 50_000)

    def step(key):
        start_key, step_key = jax.random.split(key)
        x = 2.0 * jax.random.normal(start_key, (2,))
        return consistent_step(step_key, gaussian(0.0), x, 2.0, 1.5, eta=eta)

    variance = float(jnp.var(jax.jit(jax.vmap(step))(keys)))
    assert abs(variance - 1.5**2) < 4 * 1.5**2 * np.sqrt(2 / 100_000)


def test_consistent_step_of_least_eta_is_an_euler_step_of_the_flow():
    x, score_fn = jnp.array([1.0, -2.0]), gaussian(0.5)
    step = consistent_step(KEY, score_fn, x, 2.0, 1.5, eta=0.25)
    np.testing.assert_allclose(step, x + (1.5 - 2.0) * samplers.flow(score_fn, x, 2.0), rtol=1e-6)


def test_last_consistent_step_denoises_according_to_eta_and_denoise():
    x, score_fn = jnp.array([3.0, -1.0]), gaussian(1.0)
    run = functools.partial(consistent_annealed_sampling, KEY, score_fn, x, (2.0,))
    np.testing.assert_allclose(run(), x / 5, rtol=1e-5)
    np.testing.assert_allclose(run(eta=0.5), x - 0.5 * 4 * x / 5, rtol=1e-5)
    np.testing.assert_allclose(run(eta=0.5, denoise=True), x / 5, rtol=1e-5)


@pytest.mark.parametrize(
    ("predictor", "removed"), [(reverse_diffusion, 4.0 - 2.25), (euler_maruyama, 8.0 * np.log(2.0 / 1.5))]
)
def test_predictors_equal_the_papers_formulas(predictor, removed):
    x = jnp.array([1.0, -2.0])
    noise = jax.random.normal(KEY, (2,))
    expected = x - removed * x / 5 + 0.5 * np.sqrt(removed) * noise
    found = predictor(KEY, gaussian(1.0), x, 2.0, 1.5, temperature=0.25)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_corrector_step_size_follows_from_the_signal_to_noise_ratio():
    """ε = 2(rσ)², so that on noise alone ‖ε s‖/‖√(2ε) z‖ = √(2ε)/(2σ) ‖x/σ‖/‖z‖, about r."""
    x = 3.0 * jax.random.normal(jax.random.key(1), (10_000,))
    moved = langevin_corrector(KEY, gaussian(0.0), x, 3.0, snr=0.1, temperature=0.0) - x
    noise = langevin_corrector(KEY, gaussian(0.0), x, 3.0, snr=0.1) - x - moved
    np.testing.assert_allclose(jnp.linalg.norm(moved) / jnp.linalg.norm(noise), 0.1, rtol=0.03)


def test_predictor_chain_ends_at_its_last_level_with_the_exact_variance():
    """For data in one point, a predictor's step makes v of the variance v (σ'/σ)⁴ + σ² − σ'²."""
    keys = jax.random.split(KEY, 20_000)
    sigmas = geometric_sigmas(10.0, 0.5, 30)

    def run(key, **options):
        start_key, chain_key = jax.random.split(key)
        x = 10.0 * jax.random.normal(start_key, (2,))
        return predictor_corrector(chain_key, gaussian(0.0), x, sigmas, corrector_steps=0, **options)

    variance = float(jnp.var(jax.jit(jax.vmap(run))(keys)))
    expected = 100.0
    for before, after in np.square(sigmas)[np.arange(29)[:, None] + [0, 1]]:
        expected = expected * (after / before) ** 2 + before - after
    assert abs(variance - expected) < 4 * expected * np.sqrt(2 / 40_000)
    denoised = jax.vmap(functools.partial(run, denoise=True))(keys[:10])
    np.testing.assert_allclose(denoised, 0.0, atol=1e-5)


def test_heun_error_is_of_second_order_in_the_step():
    """On N(0, 1) the flow is x √((1 + τ²)/(1 + σ²)); half the step has a quarter of the error."""
    errors = []
    for num_steps in (20, 40, 80):
        sigmas = jnp.linspace(3.0, 0.5, num_steps + 1)
        x = samplers.run(KEY, samplers.Sampler(samplers.heun_step, sigmas), gaussian(1.0), jnp.ones(2))
        errors.append(float(jnp.abs(x[0] - np.sqrt(1.25 / 10.0))))
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 4.0, rtol=0.15)


def test_heun_without_churn_is_deterministic_and_ends_in_the_denoised_mean():
    x, score_fn = jnp.array([5.0, -2.0]), gaussian(1.0)
    sigmas = karras_sigmas(10.0, 0.1, 8)
    one = heun(jax.random.key(1), score_fn, x, sigmas)
    np.testing.assert_array_equal(one, heun(jax.random.key(2), score_fn, x, sigmas))
    np.testing.assert_allclose(heun(KEY, score_fn, x, (2.0,)), x / 5, rtol=1e-6)
    churned = heun(jax.random.key(1), score_fn, x, sigmas, s_churn=8.0)
    assert jnp.abs(churned - one).max() > 0.1
    outside = dict(s_churn=8.0, s_min=20.0)
    np.testing.assert_array_equal(heun(jax.random.key(1), score_fn, x, sigmas, **outside), one)


def test_churn_raises_the_noise_level_up_to_a_limit():
    assert samplers.churn_of(4.0, 40) == pytest.approx(0.1)
    assert samplers.churn_of(100.0, 40) == pytest.approx(np.sqrt(2) - 1)
    x = jnp.zeros(20_000)
    # The score is zero, so only the fresh noise is left: √(1.5² − 1²) · 2 · S_noise.
    raised = samplers.heun_step(KEY, lambda x, sigma: 0.0 * x, x, 2.0, 1.0, churn=0.5, s_noise=1.1)
    np.testing.assert_allclose(jnp.std(raised), 2.0 * np.sqrt(1.25) * 1.1, rtol=0.02)


def test_probability_flow_is_exact_and_returns_to_its_start():
    x, score_fn = jnp.array([3.0, -1.0]), gaussian(1.0)
    down = probability_flow(score_fn, x, 5.0, 0.1)
    np.testing.assert_allclose(down, x * np.sqrt(1.01 / 26.0), rtol=1e-3)
    np.testing.assert_allclose(probability_flow(score_fn, down, 0.1, 5.0), x, rtol=1e-3)
    finer = probability_flow(score_fn, x, 5.0, 0.1, solver=diffrax.Dopri8(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(finer, x * np.sqrt(1.01 / 26.0), rtol=1e-5)


@jax.debug_nans(False)  # NaNs are expected
def test_probability_flow_is_nan_when_the_solver_runs_out_of_steps():
    x = probability_flow(gaussian(1.0), jnp.ones(2), 5.0, 0.1, max_steps=2)
    assert np.isnan(x).all()


def test_diffuse_adds_the_noise_that_reaches_the_next_level():
    x = jnp.zeros(50_000)
    np.testing.assert_allclose(jnp.std(diffuse(KEY, x, 3.0, 5.0)), 4.0, rtol=0.02)
    np.testing.assert_allclose(jnp.std(diffuse(KEY, x, 0.0, 5.0, temperature=0.25)), 2.5, rtol=0.02)


@pytest.mark.parametrize(
    "sampler",
    [
        functools.partial(annealed_langevin_dynamics, step_size=1e-4, steps_per_scale=3, denoise=True),
        consistent_annealed_sampling,
        functools.partial(predictor_corrector, denoise=True),
        functools.partial(heun, s_churn=1.0),
    ],
    ids=["annealed", "consistent", "predictor-corrector", "heun"],
)
def test_sampler_memory_does_not_grow_with_the_number_of_levels(sampler):
    """Compares XLA's buffer plans of two programs that differ only in their levels."""
    x = jnp.zeros((256, 256))

    def temporary_bytes(num_scales):
        sigmas = geometric_sigmas(BEGIN, END, num_scales)
        run = jax.jit(lambda key, x: sampler(key, gaussian(1.0), x, sigmas))
        return run.lower(KEY, x).compile().memory_analysis().temp_size_in_bytes

    few, many = temporary_bytes(10), temporary_bytes(1000)
    assert many - few < 100_000  # the levels themselves; a state has 262,144 bytes


def test_probability_flow_memory_does_not_grow_with_max_steps():
    x = jnp.zeros((256, 256))

    def temporary_bytes(max_steps):
        run = jax.jit(lambda x: probability_flow(gaussian(1.0), x, 5.0, 0.1, max_steps=max_steps))
        return run.lower(x).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(4096) - temporary_bytes(16) < 100_000


@pytest.mark.parametrize(
    "run",
    [
        lambda score_fn, x: predictor_corrector(KEY, score_fn, x, GEOMETRIC_100),
        lambda score_fn, x: heun(KEY, score_fn, x, KARRAS_40),
        lambda score_fn, x: probability_flow(score_fn, x, 1.0, 0.1),
    ],
    ids=["predictor-corrector", "heun", "probability flow"],
)
def test_samplers_for_any_sigma_refuse_networks_of_discrete_levels(run):
    score_fn = as_score_fn(NCSN(sigmas=(1.0, 0.5)), {})
    with pytest.raises(ValueError, match="scores at any σ, found a network of 2 discrete levels"):
        run(score_fn, jnp.zeros((8, 8, 1)))


def test_samplers_refuse_invalid_eta_and_levels(unchecked):
    x = jnp.zeros(2)
    with pytest.raises(ValueError, match=r"eta=0\.1: .* accepts 0\.5 to 1; change eta or use more levels"):
        consistent_annealed_sampling(KEY, gaussian(1.0), x, (2.0, 1.0), eta=0.1)
    with pytest.raises(ValueError, match=r"eta=1\.5"):
        consistent_annealed_sampling(KEY, gaussian(1.0), x, (2.0, 1.0), eta=1.5)
    with pytest.raises(ValueError, match=r"a row of levels, found the shape \(\)"):
        unchecked(importlib.import_module("ncsn_jax.samplers.sampler")).run(
            KEY, Sampler(heun_step, 2.0), gaussian(1.0), x
        )
