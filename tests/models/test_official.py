"""The networks against the numbers of the official PyTorch code."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ncsn_jax import NCSN, NCSNv2, as_score_fn, explicit_score_matching, geometric_sigmas
from ncsn_jax.interop import from_torch
from ncsn_jax.interop.torch_names import torch_name
from ncsn_jax.models.layers import ConditionalInstanceNorm


def channels_last(images):
    return jnp.asarray(images.transpose(0, 2, 3, 1))


def relative_error(x, expected):
    """Of each sample, relative to its largest entry."""
    axes = (1, 2, 3)
    return np.max(np.abs(x - expected).max(axes) / np.abs(expected).max(axes))


@pytest.fixture(scope="module", params=["ncsn_28x1_ngf8.npz", "ncsnv2_32x3_ngf8_L12.npz"])
def numbers(request, fixture):
    return fixture(request.param)


@pytest.fixture(scope="module")
def network(numbers):
    return from_torch({name: numbers[name] for name in numbers["state_dict_names"]})


def test_outputs_and_activations_are_the_official_ones(numbers, network):
    model, variables = network

    @jax.jit
    def apply(x, sigma):
        return model.apply(variables, x, sigma, capture_intermediates=True)

    out, captured = apply(channels_last(numbers["x"]), numbers["sigmas"][numbers["y"]])
    assert relative_error(out, channels_last(numbers["s"])) < 2e-5
    names = [name for name in numbers if name.startswith("act.")]
    assert len(names) >= 12
    for name in names:
        activation = captured["intermediates"]
        for module in re.sub(r"\.(\d+)$", r"_\1", name.removeprefix("act.")).split("."):
            activation = activation[module]
        (activation,) = activation["__call__"]
        assert relative_error(activation[:1], channels_last(numbers[name])) < 2e-5, name


def test_losses_and_gradients_are_the_official_ones(numbers, network):
    model, variables = network
    x, noise = channels_last(numbers["dsm_x"]), channels_last(numbers["dsm_noise"])
    sigmas = jnp.asarray(numbers["sigmas"])[numbers["dsm_labels"]]

    def mean_loss(params):
        score_fn = as_score_fn(model, {"params": params})

        def loss(x, noise, sigma):
            return sigma**2 * explicit_score_matching(
                lambda x: score_fn(x, sigma), x + sigma * noise, -noise / sigma
            )

        losses = jax.vmap(loss)(x, noise, sigmas)
        return jnp.mean(losses), losses

    gradient, losses = jax.jit(jax.grad(mean_loss, has_aux=True))(variables["params"])
    np.testing.assert_allclose(losses, numbers["dsm_loss_per_example"], rtol=1e-5)
    gradient = {torch_name(path): g for path, g in traverse_util.flatten_dict(gradient).items()}
    for name in numbers:
        if name.startswith("grad."):
            expected = numbers[name]
            found = np.asarray(gradient[name.removeprefix("grad.")])
            found = found.transpose(3, 2, 0, 1) if found.ndim == 4 else found
            assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-4, name
    for name, norm in zip(numbers["param_names"], numbers["grad_norms"], strict=True):
        np.testing.assert_allclose(np.linalg.norm(gradient[name]), norm, rtol=1e-4, err_msg=name)


SIGMAS = tuple(geometric_sigmas(1.0, 0.01, 10).tolist())


@pytest.mark.parametrize(
    ("model", "channels", "count", "tensors"),
    [
        (NCSN(SIGMAS, 64), 1, 7_638_657, 173),
        (NCSN(SIGMAS, 128), 3, 30_117_635, 173),
        (NCSN(SIGMAS, 128, depth=5, norm=ConditionalInstanceNorm), 3, 83_931_651, 217),
        (NCSN(SIGMAS, 128, depth=5), 3, 84_183_811, 217),
        (NCSNv2(128), 3, 29_694_083, 153),
        (NCSNv2(64), 1, 7_426_881, 153),
        (NCSNv2(128, depth=5), 3, 83_445_379, 191),
        (NCSNv2(128, depth=6), 3, 94_132_611, 229),
    ],
    ids=lambda value: f"{type(value).__name__}{value.depth}" if hasattr(value, "depth") else None,
)
def test_parameter_counts_are_the_official_ones(model, channels, count, tensors):
    image = jax.ShapeDtypeStruct((1, 16, 16, channels), "float32")
    params = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), image, jnp.ones(1)))
    assert len(params) == tensors
    assert sum(p.size for p in params) == count
