import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ncsn_jax import NCSN
from ncsn_jax.training import adam, create_state
from ncsn_jax.training.optimizers import muon
from ncsn_jax.training.state import first_state, initial_params

OFFICIAL = dict(
    learning_rate=1e-3,
    schedule="constant",
    num_steps=10,
    warmup_steps=0,
    beta1=0.9,
    beta2=0.999,
    epsilon=1e-8,
    gradient_clip=None,
)
# In single precision 1 − 0.999^t has a relative error of up to 6e-5, and its root half of that.
RTOL = 1e-4
GRADIENTS = [np.array([0.3, -2.0]), np.array([-0.1, 5.0]), np.array([4.0, 1e-3])]


def updates(**options):
    """The updates of three gradients."""
    optimizer = adam(**(OFFICIAL | options))
    params = jnp.zeros(2)
    state = optimizer.init(params)
    made = []
    for gradient in GRADIENTS:
        update, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, params)
        made.append(np.asarray(update))
    return np.stack(made)


def adam_by_hand(rates, gradients):
    """Kingma & Ba 2015, Algorithm 1."""
    m, v, made = 0.0, 0.0, []
    for t, (rate, g) in enumerate(zip(rates, gradients, strict=True), start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        made.append(-rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8))
    return np.stack(made)


def test_initial_parameters_and_average_equal_flax_init():
    network = NCSN(sigmas=(1.0, 0.1), num_filters=4)
    expected = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.ones(1))["params"]
    state = create_state(jax.random.key(0), network, (8, 8, 1), optax.identity())
    jax.tree.map(np.testing.assert_array_equal, state.params, expected)
    jax.tree.map(np.testing.assert_array_equal, state.ema_params, expected)


def test_shapes_of_the_first_state_equal_the_created_state():
    network, optimizer = NCSN(sigmas=(1.0, 0.1), num_filters=4), adam(**OFFICIAL)
    state = create_state(jax.random.key(0), network, (8, 8, 1), optimizer)
    params, _ = initial_params(jax.random.key(0), network, jax.ShapeDtypeStruct((8, 8, 1), jnp.float32))
    shapes = jax.eval_shape(functools.partial(first_state, optimizer=optimizer), params)
    assert shapes == jax.eval_shape(lambda: state)


def test_optimizer_updates_equal_adam_by_hand():
    np.testing.assert_allclose(updates(), adam_by_hand([1e-3] * 3, GRADIENTS), rtol=RTOL)


def test_learning_rate_warm_up_is_linear():
    rates = [0.0, 2.5e-4, 5e-4]
    np.testing.assert_allclose(updates(warmup_steps=4), adam_by_hand(rates, GRADIENTS), rtol=RTOL, atol=1e-12)


def test_cosine_schedule_ends_at_zero():
    rates = [1e-3 * (1 + np.cos(np.pi * t / 2)) / 2 for t in range(3)]
    made = updates(schedule="cosine", num_steps=2)
    np.testing.assert_allclose(made, adam_by_hand(rates, GRADIENTS), rtol=RTOL, atol=1e-10)
    assert np.abs(made[2]).max() < 1e-10


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_run_can_end_before_its_warm_up(schedule):
    made = updates(schedule=schedule, num_steps=2, warmup_steps=4)
    np.testing.assert_array_equal(made, updates(warmup_steps=4))


@pytest.mark.parametrize("clip", [0.5, 3.0])
def test_long_gradients_are_clipped_to_the_given_norm(clip):
    clipped = [g * min(1, clip / np.linalg.norm(g)) for g in GRADIENTS]
    np.testing.assert_allclose(updates(gradient_clip=clip), adam_by_hand([1e-3] * 3, clipped), rtol=RTOL)


def test_adam_takes_any_pytree():
    tree = {"a": jnp.ones(2), "b": [jnp.ones((2, 2))]}
    optimizer = adam(**OFFICIAL)
    update, _ = optimizer.update(tree, optimizer.init(tree), tree)
    np.testing.assert_allclose(optax.tree.norm(update), 1e-3 * np.sqrt(6), rtol=RTOL)


def test_muon_makes_kernels_orthogonal_and_leaves_the_rest_to_adam():
    """An orthogonal 12×4 matrix has singular values 1; optax scales it by 0.2 √12. Five Newton-Schulz steps
    bring them to between 0.6 and 1.3."""
    params = {"conv": {"kernel": jnp.ones((2, 2, 3, 4)), "bias": jnp.ones(4)}, "embedding": jnp.ones((5, 4))}
    keys = iter(jax.random.split(jax.random.key(0), 3))
    gradient = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), params)
    optimizer = muon(optax.constant_schedule(1e-3))
    made, _ = optimizer.update(gradient, optimizer.init(params), params)
    singular = np.linalg.svd(made["conv"]["kernel"].reshape(12, 4), compute_uv=False) / (2e-4 * np.sqrt(12))
    assert np.all((singular > 0.6) & (singular < 1.3))
    nadam = optax.nadam(1e-3)
    expected, _ = nadam.update(gradient, nadam.init(params), params)
    np.testing.assert_allclose(made["conv"]["bias"], expected["conv"]["bias"], rtol=1e-6)
    np.testing.assert_allclose(made["embedding"], expected["embedding"], rtol=1e-6)
    decayed, _ = muon(optax.constant_schedule(1e-3), weight_decay=0.5).update(
        gradient, optimizer.init(params), params
    )
    change = jax.tree.map(lambda a, b: a - b, decayed, made)
    np.testing.assert_allclose(change["conv"]["kernel"], -5e-4, rtol=1e-2)
    np.testing.assert_array_equal(change["embedding"], 0)
