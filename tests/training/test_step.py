import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ncsn_jax.data import dequantize, random_flip
from ncsn_jax.training import (
    create_state,
    denoising_objective,
    evaluation_step,
    example_loss,
    train_step,
)
from ncsn_jax.training.parallel import pmap_evaluation, pmap_step, replicate
from ncsn_jax.training.state import first_state
from ncsn_jax.training.step import DEVICES, moving_average, update

SHAPE = (6, 6, 1)
BATCH = 8


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 17, (BATCH, *SHAPE), dtype=np.uint8)


@pytest.fixture(scope="module")
def loss(tiny_score):
    return example_loss(
        tiny_score,
        denoising_objective((1.0, 0.1)),
        augment=random_flip,
        preprocess=functools.partial(dequantize, num_values=17),
    )


def layout(images, devices, index=None):
    """Lay a global batch out for its devices."""
    index = np.arange(BATCH) if index is None else index
    batch = {"examples": images, "index": index, "weight": index < BATCH}
    return jax.tree.map(lambda a: a.reshape(devices, -1, *a.shape[1:]), batch)


def run(loss, model, images, *, devices=1, index=None, steps=1, optimizer=None, ema_rate=0.5):
    """Return the states after each step of training on the same batch."""
    optimizer = optimizer or optax.sgd(1e-3)
    devices = jax.devices()[:devices]
    state = create_state(jax.random.key(0), model, SHAPE, optimizer)
    state = replicate(state, devices)
    step = pmap_step(loss=loss, optimizer=optimizer, ema_rate=ema_rate, devices=devices)
    states = [jax.device_get(state)]
    for _ in range(steps):
        state, values = step(state, layout(images, len(devices), index), jax.random.key(1))
        states.append(jax.device_get(state))
    return states, jax.device_get(values)


def norm_of_difference(a, b):
    return float(optax.tree.norm(jax.tree.map(np.subtract, a, b)))


@pytest.mark.parametrize("devices", [2, 4])
def test_gradients_on_several_devices_equal_gradients_on_one(loss, tiny_score, images, devices):
    """A step of SGD at rate 1e-3 moves the parameters by the gradient."""
    (start, one), value = run(loss, tiny_score, images)
    (_, several), other_value = run(loss, tiny_score, images, devices=devices)
    moved = norm_of_difference(one.params, start.params)
    assert moved > 0
    assert norm_of_difference(one.params, several.params) / moved < 1e-5
    np.testing.assert_allclose(value["loss"], other_value["loss"], rtol=1e-5)


def test_gradients_do_not_depend_on_which_device_holds_which_example(loss, tiny_score, images):
    """An example's randomness depends on its index: a batch shuffled with its indices is the same batch."""
    order = np.random.default_rng(1).permutation(BATCH)
    (start, one), _ = run(loss, tiny_score, images)
    (_, shuffled), _ = run(loss, tiny_score, images[order], index=order, devices=4)
    (_, misplaced), _ = run(loss, tiny_score, images[order], devices=4)
    moved = norm_of_difference(one.params, start.params)
    assert norm_of_difference(one.params, shuffled.params) / moved < 1e-5
    assert norm_of_difference(one.params, misplaced.params) / moved > 1e-2


@pytest.mark.parametrize("devices", [1, 2])
def test_one_program_takes_the_same_step_as_the_two(loss, tiny_score, images, devices):
    optimizer = optax.adam(1e-3)
    (_, expected), expected_values = run(
        loss, tiny_score, images, devices=devices, optimizer=optimizer, ema_rate=0.9
    )
    step = jax.pmap(
        functools.partial(train_step, loss=loss, optimizer=optimizer, ema_rate=0.9),
        DEVICES,
        in_axes=(None, 0, None),
        out_axes=(None, None),
        devices=jax.devices()[:devices],
    )
    state = create_state(jax.random.key(0), tiny_score, SHAPE, optimizer)
    found, values = step(state, layout(images, devices), jax.random.key(1))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), found, expected)
    np.testing.assert_allclose(values["gradient_norm"], expected_values["gradient_norm"], rtol=1e-5)


def test_training_noise_is_new_at_every_step(loss, tiny_score, images):
    """At a learning rate of 0 nothing but the step's key can change the loss."""
    _, first = run(loss, tiny_score, images, optimizer=optax.sgd(0.0))
    _, second = run(loss, tiny_score, images, optimizer=optax.sgd(0.0), steps=2)
    assert first["loss"] != second["loss"]


def test_parameter_average_follows_its_recurrence(loss, tiny_score, images):
    states, _ = run(loss, tiny_score, images, steps=3, ema_rate=0.8)
    average = states[0].params
    for state in states[1:]:
        average = jax.tree.map(lambda a, p: 0.8 * a + 0.2 * p, average, state.params)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
        states[-1].ema_params,
        average,
    )
    assert [int(state.step) for state in states] == [0, 1, 2, 3]


def test_held_out_loss_sums_only_the_counted_examples(loss, tiny_score, images):
    state = create_state(jax.random.key(0), tiny_score, SHAPE, optax.identity())
    key = jax.random.key(2)
    step = functools.partial(evaluation_step, loss=loss)
    batch = layout(images, 4)
    batch["weight"][3] = False
    total, count = pmap_evaluation(step)(state.params, batch, key)
    keys = [jax.random.fold_in(key, i) for i in range(6)]
    expected = sum(
        loss(key, state.params, jnp.asarray(image)) for key, image in zip(keys, images[:6], strict=True)
    )
    assert float(count) == 6
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_the_moving_average_warms_up_with_the_number_of_updates():
    optimizer = optax.sgd(1.0)
    state = first_state({"w": jnp.float32(0.0)}, optimizer)
    expected = 0.0
    for n in range(1, 5):
        gradient = {"w": jnp.float32(-1.0)}  # the parameter counts the steps
        state, _ = update(state, jnp.float32(0), gradient, optimizer=optimizer, ema_rate=0.4, ema_warmup=True)
        rate = min(0.4, (1 + n) / (10 + n))
        expected = rate * expected + (1 - rate) * n
        np.testing.assert_allclose(state.ema_params["w"], expected, rtol=1e-6)
    skipped, _ = update(
        state, jnp.float32(jnp.nan), gradient, optimizer=optimizer, ema_rate=0.4, ema_warmup=True
    )
    np.testing.assert_array_equal(skipped.ema_params["w"], state.ema_params["w"])


def test_the_average_of_frozen_parameters_does_not_drift():
    params = {
        "layer": {"frozen_frequencies": jnp.linspace(1.0, 40.0, 999), "w": jnp.linspace(1.0, 40.0, 999)}
    }

    @jax.jit
    def average(ema):
        return jax.lax.fori_loop(0, 1000, lambda _, ema: moving_average(params, ema, 0.9999), ema)

    found = average(params)["layer"]
    np.testing.assert_array_equal(found["frozen_frequencies"], params["layer"]["frozen_frequencies"])
    assert np.any(found["w"] != params["layer"]["w"])  # the control: others do


def test_frozen_parameters_keep_their_values_whatever_their_gradient():
    params = {"frozen_w": jnp.ones(3), "w": jnp.ones(3)}
    optimizer = optax.adamw(0.1)
    gradient = jax.tree.map(jnp.ones_like, params)
    state, _ = update(
        first_state(params, optimizer), jnp.float32(0), gradient, optimizer=optimizer, ema_rate=0.5
    )
    for tree in (state.params, state.ema_params):
        np.testing.assert_array_equal(tree["frozen_w"], params["frozen_w"])
        assert np.all(tree["w"] < 1)
