"""Losses and training steps against the release of Song et al. 2021, with its recorded times and noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ncsn_jax import as_score_fn, explicit_score_matching
from ncsn_jax.interop import from_torch
from ncsn_jax.interop.torch_names import UNET, params_to_torch
from ncsn_jax.training.objective import loss_scale
from ncsn_jax.training.optimizers import adam
from ncsn_jax.training.state import first_state
from ncsn_jax.training.step import update

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optimized")]
SIGMAS = (50.0, 0.01)


def channels_last(images):
    return jnp.asarray(images.transpose(0, 2, 3, 1))


def network_of(fixture, numbers):
    found = fixture(f"score_sde/{numbers['network_file']}")
    return from_torch({name: found[f"sd.{name}"] for name in found["state_dict_names"]})


def loss_of(model, params, x, noise, sigma, **weighting):
    """The objective's loss of one example with given noise."""
    score_fn = as_score_fn(model, {"params": params})
    loss = explicit_score_matching(lambda x: score_fn(x, sigma), x + sigma * noise, -noise / sigma)
    return loss_scale(SIGMAS, x.size, **weighting) * sigma**2 * loss


@pytest.fixture(scope="module")
def continuous(fixture):
    """The recorded numbers, the losses without a weighting, and the gradients of their mean."""
    numbers = fixture("score_sde/losses_ve_continuous.npz")
    model, variables = network_of(fixture, numbers)
    x, noise = channels_last(numbers["batch"]), channels_last(numbers["z"])
    sigma = SIGMAS[1] * (SIGMAS[0] / SIGMAS[1]) ** jnp.asarray(numbers["t"])
    np.testing.assert_allclose(sigma, numbers["std"], rtol=1e-5)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def mean_loss(params):
        plain = functools.partial(loss_of, model, params, reduce_mean=False, likelihood_weighting=False)
        losses = jax.vmap(plain)(x, noise, sigma)
        return losses.mean(), losses

    (_, losses), gradient = mean_loss(variables["params"])
    return numbers, x[0].size, losses, params_to_torch(gradient, UNET), list(variables)


@pytest.mark.parametrize("reduce_mean", [False, True])
@pytest.mark.parametrize("likelihood_weighting", [False, True])
def test_losses_in_all_weightings_equal_the_release(continuous, reduce_mean, likelihood_weighting):
    numbers, size, losses, gradient, _ = continuous
    name = f"reduce_mean_{reduce_mean:d}_likelihood_weighting_{likelihood_weighting:d}"
    scale = loss_scale(SIGMAS, size, reduce_mean=reduce_mean, likelihood_weighting=likelihood_weighting)
    np.testing.assert_allclose(scale * losses, numbers[f"{name}.per_sample"], rtol=2e-5)
    np.testing.assert_allclose(scale * losses.mean(), numbers[f"{name}.loss"], rtol=2e-5)
    norms = np.array([np.linalg.norm(leaf) for leaf in gradient.values()])
    whole = np.linalg.norm(norms)
    np.testing.assert_allclose(scale * whole, numbers[f"{name}.grad_global_norm"], rtol=1e-3)
    expected = np.nan_to_num(numbers[f"{name}.grad_norm"][1:])  # without `sigmas`; the frequencies' is NaN
    np.testing.assert_allclose(scale * norms, expected, rtol=1e-3, atol=1e-6 * scale * whole)


def test_losses_of_discrete_levels_equal_the_release(fixture):
    numbers = fixture("score_sde/losses_ve_discrete.npz")
    model, variables = network_of(fixture, numbers)
    x, noise = channels_last(numbers["batch"]), channels_last(numbers["z"])
    sigma = jnp.asarray(model.sigmas)[numbers["labels"].astype(int)]
    plain = functools.partial(
        loss_of, model, variables["params"], reduce_mean=False, likelihood_weighting=False
    )
    losses = jax.jit(jax.vmap(plain))(x, noise, sigma)
    np.testing.assert_allclose(losses, numbers["reduce_mean_0.per_sample"], rtol=2e-5)
    scale = loss_scale(SIGMAS, x[0].size, reduce_mean=True, likelihood_weighting=False)
    np.testing.assert_allclose(scale * losses, numbers["reduce_mean_1.per_sample"], rtol=2e-5)


def test_four_training_steps_and_their_moving_average_equal_the_release(fixture):
    numbers = fixture("score_sde/train_steps.npz")
    model, variables = network_of(fixture, numbers)
    optimizer = adam(
        learning_rate=2e-4,
        schedule="constant",
        num_steps=4,
        warmup_steps=2,
        beta1=0.9,
        beta2=0.999,
        epsilon=1e-8,
        gradient_clip=1.0,
    )
    begin = jax.tree.map(jnp.asarray, variables["params"])
    state = first_state(begin, optimizer)

    @jax.jit
    def step(state, x, noise, sigma):
        def mean_loss(params):
            plain = functools.partial(loss_of, model, params, reduce_mean=False, likelihood_weighting=False)
            return jax.vmap(plain)(x, noise, sigma).mean()

        value, gradient = jax.value_and_grad(mean_loss)(state.params)
        return update(state, value, gradient, optimizer=optimizer, ema_rate=0.999, ema_warmup=True)

    for i in range(4):
        x, noise = channels_last(numbers["batch"][i]), channels_last(numbers["z"][i])
        sigma = SIGMAS[1] * (SIGMAS[0] / SIGMAS[1]) ** jnp.asarray(numbers["t"][i])
        state, values = step(state, x, noise, sigma)
        np.testing.assert_allclose(values["loss"], numbers["loss"][i], rtol=2e-4)
        np.testing.assert_allclose(
            values["gradient_norm"], numbers["grad_global_norm_before_clip"][i], rtol=2e-3
        )
        delta = optax.tree.norm(jax.tree.map(jnp.subtract, state.params, begin))
        expected = numbers["param_delta_global_norm_after_step"][i]
        np.testing.assert_allclose(delta, expected, rtol=1e-2, atol=1e-9)

    first = params_to_torch(begin, UNET)
    for params, kind in ((state.params, "after"), (state.ema_params, "ema_after")):
        found = params_to_torch(params, UNET)
        norm = "ema_delta_norm" if kind == "ema_after" else "param_delta_norm"
        deltas = dict(zip(numbers["trainable_names"].tolist(), numbers[norm], strict=True))
        for name, expected in deltas.items():
            if not name.endswith("NIN_1.b"):  # its gradient is 0 but for rounding, which Adam scales up
                delta = np.linalg.norm(found[name] - first[name])
                np.testing.assert_allclose(delta, expected, rtol=1e-2, err_msg=name)
        for name in found:
            if (recorded := numbers.get(f"{kind}.{name}")) is not None:
                np.testing.assert_allclose(found[name], recorded, rtol=0, atol=4e-6)
        np.testing.assert_array_equal(found["all_modules.0.W"], first["all_modules.0.W"])
