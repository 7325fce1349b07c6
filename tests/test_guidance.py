"""Guidance where the likelihood is exact: the component of a mixture."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import GaussianMixture, class_log_likelihood, classifier_free_guidance, guided_score, heun
from ncsn_jax.samplers import Sampler, run
from tests.samplers.test_samplers import BEGIN, KEY, NUM_SAMPLES, SAMPLERS, Exact

SIGMAS = [1e-3, 0.05, 1.0, 7.0, 100.0]
C = 2


def component(p, k=C):
    """The k-th component, a mixture of one."""
    return GaussianMixture(jnp.ones(1), p.means[k : k + 1], p.stds[k : k + 1])


def log_likelihood(p, k=C):
    """log p(k | x, σ), by Bayes' rule."""

    def of(x, sigma):
        joint = jnp.log(p.weights[k]) + component(p, k).log_density(x, sigma)
        return joint - p.log_density(x, sigma)

    return jax.tree_util.Partial(of)


def mixture(dim):
    rng = np.random.default_rng(dim)
    means = 2.0 * rng.standard_normal((3, dim))
    return GaussianMixture(*(jnp.asarray(a) for a in (np.array([0.2, 0.3, 0.5]), means, [0.5, 0.7, 0.9])))


@pytest.mark.parametrize("dim", [2, 16])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_guidance_by_the_exact_likelihood_is_the_score_of_the_component(dim, sigma):
    p = mixture(dim)
    guided, expected = guided_score(p.score, log_likelihood(p)), component(p)
    for key in jax.random.split(jax.random.key(dim), 5):
        x = p.sample(key, sigma)
        scale = np.abs(np.asarray(x)[None] - np.asarray(p.means)).max() / (0.25 + sigma**2)
        difference = guided(x, sigma) - expected.score(x, sigma)
        assert np.abs(difference).max() < 4e-6 * scale
    # Without the likelihood they differ.
    assert np.abs(p.score(p.means[0], 1.0) - expected.score(p.means[0], 1.0)).max() > 0.1


@pytest.mark.parametrize("dim", [2, 16])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_classifier_free_guidance_is_guidance_by_the_ratio_of_the_scores(dim, sigma):
    p = mixture(dim)
    x, conditional = p.sample(jax.random.key(3), sigma), component(p).score
    for weight in (0.5, 1.7, 4.0):
        free = classifier_free_guidance(conditional, p.score, weight)(x, sigma)
        by_likelihood = guided_score(p.score, log_likelihood(p), scale=weight)(x, sigma)
        np.testing.assert_allclose(free, by_likelihood, rtol=1e-4, atol=2e-5 / (0.25 + sigma**2))


def test_python_weights_return_the_ends_and_evaluate_nothing_else():
    def s_c(x, sigma):
        return -x

    def s_u(x, sigma):
        raise AssertionError

    assert classifier_free_guidance(s_c, s_u, 1.0) is s_c
    assert classifier_free_guidance(s_c, s_u, 1.0, interval=(0.1, 2.0)) is s_c
    assert classifier_free_guidance(s_c, s_u, 0.0) is s_u
    assert guided_score(s_c, s_u, scale=0.0) is s_c
    # A traced interval isn't compared with the whole one.
    jitted = jax.jit(
        lambda low: classifier_free_guidance(s_c, s_c, 0.0, interval=(low, 2.0))(jnp.ones(1), 1.0)
    )
    np.testing.assert_allclose(jitted(0.1), -1.0)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_traced_weights_give_the_ends(weight):
    p = mixture(2)
    x, ends = jnp.array([0.3, -1.0]), (p.score, component(p).score)

    @jax.jit
    def guided(weight):
        return classifier_free_guidance(ends[1], ends[0], weight)(x, 0.5)

    np.testing.assert_allclose(guided(weight), ends[int(weight)](x, 0.5), rtol=1e-5)


@pytest.mark.parametrize(("sigma", "is_inside"), [(0.1, False), (0.11, True), (2.0, True), (2.1, False)])
def test_guidance_is_limited_to_the_interval_and_computes_nothing_outside(sigma, is_inside):
    calls = []

    def s_u(x, sigma):
        jax.debug.callback(lambda: calls.append(1))
        return 0.0 * x

    guided = classifier_free_guidance(lambda x, sigma: -x, s_u, 3.0, interval=(0.1, 2.0))
    found = jax.jit(jax.vmap(guided, (0, None)))(jnp.ones((1, 2)), jnp.float32(sigma))
    jax.effects_barrier()
    np.testing.assert_allclose(found, -3.0 if is_inside else -1.0)
    assert bool(calls) == is_inside


def test_weights_and_scores_are_leaves_so_one_program_serves_all():
    traces = []

    @jax.jit
    def score(guided, x):
        traces.append(1)
        return guided(x, 1.0)

    p = mixture(2)
    for weight in (0.0, 1.5, 3.0):
        parts = (jax.tree_util.Partial(GaussianMixture.score, q) for q in (component(p), p))
        score(classifier_free_guidance(*parts, jnp.float32(weight)), jnp.ones(2))
    assert len(traces) == 1


def test_guided_scores_refuse_what_the_network_refuses():
    class Discrete:
        sigmas = (1.0, 0.1)

        def __call__(self, x, sigma):
            return -x

    for guided in (
        guided_score(Discrete(), lambda x, sigma: 0.0),
        classifier_free_guidance(Discrete(), Discrete(), 2.0),
    ):
        assert guided.sigmas == (1.0, 0.1)
        with pytest.raises(ValueError, match="discrete"):
            heun(KEY, guided, jnp.ones(2), (1.0, 0.1))


def test_the_class_of_a_classifier_has_the_log_softmax_of_its_logits():
    likelihood = class_log_likelihood(lambda x, sigma: jnp.stack([x[0], sigma, 0.0]), 1)
    with pytest.raises(ValueError, match="label=3: no such class; accepted: 0 to 2"):
        class_log_likelihood(likelihood.logits_fn, 3)(jnp.array([2.0]), 0.5)
    np.testing.assert_allclose(
        likelihood(jnp.array([2.0]), 0.5), 0.5 - math.log(math.exp(2) + math.exp(0.5) + 1), rtol=1e-6
    )


@pytest.fixture(scope="module", params=[2, pytest.param(16, marks=pytest.mark.slow)])
def exact(request):
    return Exact(request.param)


FAST = ("Heun, 79 evaluations",)


@pytest.mark.parametrize("kind", ["likelihood", "classifier-free"])
@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in SAMPLERS]
)
def test_samplers_of_a_guided_score_draw_from_the_component(exact, name, kind):
    """The mixture test of the samplers, for one component: the distance from exact samples."""
    p = exact.mixture
    start_key, chain_key = jax.random.split(jax.random.key(11))
    if kind == "likelihood":
        score = guided_score(p.score, log_likelihood(p))
    else:
        score = classifier_free_guidance(component(p).score, p.score, jnp.float32(1.0))
    count = len(exact.reference[C])
    x = BEGIN * jax.random.normal(start_key, (count, len(p.means[0])))
    keys = jax.random.split(chain_key, count)
    x = np.asarray(jax.jit(jax.vmap(lambda key, x: SAMPLERS[name](key, score, x)))(keys, x))
    ratio = exact.distance(x, exact.reference[C]) / exact.medians[C]
    assert 0.5 < ratio < 2.0
    assert count > NUM_SAMPLES / 3


def test_a_guided_score_runs_in_a_sampler_step_by_step():
    p = mixture(2)
    step = Sampler(lambda key, score_fn, x, sigma, next_sigma: x + 0.01 * score_fn(x, sigma), (1.0, 0.5, 0.1))
    x = run(KEY, step, guided_score(p.score, log_likelihood(p)), jnp.zeros(2))
    assert np.isfinite(x).all()
