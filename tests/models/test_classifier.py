"""The noise-conditional classifier: its objective in closed form, and its training on two kinds of images."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ncsn_jax import as_score_fn, class_log_likelihood, guided_score
from ncsn_jax.models import NoiseConditionalClassifier
from ncsn_jax.training import Experiment, Settings, classification_objective, train

SHAPE = (4, 4, 1)
SIGMAS = (4.0, 0.1)


def exact_logits(x, sigma):
    """The log-odds of images of −½ and of ½ with noise: Σx/σ², as half of it on each side."""
    odds = jnp.sum(x) / jnp.square(sigma)
    return jnp.stack([-odds / 2, odds / 2])


def kind(label):
    return {"x": np.full(SHAPE, label - 0.5, np.float32), "label": np.int32(label)}


def test_the_objective_is_the_cross_entropy_at_the_noise_levels():
    """At σ the log-odds have the mean ±μ and variance 2μ, μ = 16/(2σ²)."""
    sigma = 6.0
    objective = classification_objective((sigma,), noise="discrete")
    keys = jax.random.split(jax.random.key(0), 20_000)
    losses = jax.vmap(lambda key: objective(key, exact_logits, kind(1)))(keys)
    mean = 16 / 2 / sigma**2
    grid = np.linspace(-8, 8, 4001)
    density = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi)
    values = np.log1p(np.exp(-(mean + np.sqrt(2 * mean) * grid)))
    expected = np.sum(density * values) * (grid[1] - grid[0])
    # Two-sided, at four standard errors.
    assert abs(losses.mean() - expected) < 4 * losses.std() / np.sqrt(len(losses))


@pytest.mark.slow
def test_a_trained_classifier_tells_kinds_apart_and_guides_towards_its_class(tmp_path):
    examples, model = [kind(i % 2) for i in range(32)], NoiseConditionalClassifier(2, num_filters=4)
    state = train(
        Experiment(
            model=model,
            objective=classification_objective(SIGMAS),
            optimizer=optax.adam(1e-2),
            train=examples,
            settings=Settings(num_steps=60, batch_size=16, ema_rate=0.5, log_every=60),
            identity={"model": "classifier"},
        ),
        tmp_path,
    )
    logits_fn = as_score_fn(model, {"params": jax.device_get(state.ema_params)})
    for label in (0, 1):
        x = jnp.asarray(kind(label)["x"]) + 0.3 * jax.random.normal(jax.random.key(label), SHAPE)
        likelihood = class_log_likelihood(logits_fn, label)
        assert -0.3 < likelihood(x, 0.3) < 0
        guided = jax.jit(guided_score(lambda x, sigma: -x, likelihood).__call__)
        pull = guided(jnp.zeros(SHAPE), 2.0)
        assert np.sign(pull.mean()) == 2 * label - 1


def test_the_classifier_depends_on_the_noise_level():
    model = NoiseConditionalClassifier(3, num_filters=4)
    x = jax.random.normal(jax.random.key(0), (2, *SHAPE))
    variables = model.init(jax.random.key(1), x, jnp.ones(2))
    logits = model.apply(variables, x, jnp.array([0.1, 3.0]))
    assert logits.shape == (2, 3)
    swapped = model.apply(variables, x, jnp.array([3.0, 0.1]))
    assert np.abs(logits - swapped).max() > 1e-3


def test_the_classifier_refuses_vectors(unchecked):
    from ncsn_jax.models import classifier

    model = unchecked(classifier).NoiseConditionalClassifier(3)
    with pytest.raises(ValueError, match=r"takes images, .*, found the shape \(2, 3\)"):
        model.init(jax.random.key(0), jnp.ones((2, 3)), jnp.ones(2))
