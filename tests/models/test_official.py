"""The networks against the numbers of the official PyTorch code."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from ncsn_jax import NCSN, NCSNv2, as_score_fn, explicit_score_matching, geometric_sigmas
from ncsn_jax.interop import from_torch
from ncsn_jax.interop.torch_names import REFINENET
from ncsn_jax.losses import projected_score_matching
from ncsn_jax.models.layers import (
    ConditionalInstanceNorm,
    InstanceNormPlus,
    RefineBlock,
    ResidualBlock,
    max_pool5,
    no_norm,
)
from ncsn_jax.training.state import initial_params

pytestmark = pytest.mark.usefixtures("optimized")


def channels_last(images):
    return jnp.asarray(images.transpose(0, 2, 3, 1))


def relative_error(x, expected):
    """Largest error of a sample, relative to its largest entry."""
    axes = (1, 2, 3)
    return np.max(np.abs(x - expected).max(axes) / np.abs(expected).max(axes))


@pytest.fixture(scope="module", params=["ncsn_28x1_ngf8.npz", "ncsnv2_32x3_ngf8_L12.npz"])
def numbers(request, fixture):
    return fixture(request.param)


@pytest.fixture(scope="module")
def network(numbers):
    return from_torch({name: numbers[name] for name in numbers["state_dict_names"]})


def test_outputs_and_activations_equal_the_official_code(numbers, network):
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


def test_losses_and_gradients_equal_the_official_code(numbers, network):
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
    gradient = {REFINENET.name(path): g for path, g in traverse_util.flatten_dict(gradient).items()}
    for name in numbers:
        if name.startswith("grad."):
            expected = numbers[name]
            found = np.asarray(gradient[name.removeprefix("grad.")])
            found = found.transpose(3, 2, 0, 1) if found.ndim == 4 else found
            assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-4, name
    for name, norm in zip(numbers["param_names"], numbers["grad_norms"], strict=True):
        np.testing.assert_allclose(np.linalg.norm(gradient[name]), norm, rtol=1e-4, err_msg=name)


@pytest.mark.slow
def test_sliced_loss_equals_the_official_code(official):
    """Its `ssm` option: σ² times sliced score matching of the perturbed image, along N(0, I)."""
    score_fn = as_score_fn(*from_torch({name: official[name] for name in official["state_dict_names"]}))
    x, noise, vectors = (channels_last(official[name]) for name in ("dsm_x", "dsm_noise", "ssm_vectors"))
    sigmas = jnp.asarray(official["sigmas"])[official["dsm_labels"]]

    def loss(x, noise, v, sigma):
        return sigma**2 * projected_score_matching(
            lambda x: score_fn(x, sigma), x + sigma * noise, v[None], variance_reduced=True
        )

    losses = jax.jit(jax.vmap(loss))(x, noise, vectors, sigmas)
    np.testing.assert_allclose(jnp.mean(losses), official["ssm_loss"], rtol=2e-5)


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


def by_hand(params, x, *, deepest):
    """`NCSNv2Deeper` or `NCSNv2Deepest`, line by line, from blocks that test_blocks.py checks."""
    width = params["begin_conv"]["bias"].size

    def stage(name, h, factor, *, down=True, dilation=1):
        for i, down_here in enumerate((down, False)):
            block = ResidualBlock(factor * width, InstanceNormPlus, nn.elu, down_here, dilation)
            h = block.apply({"params": params[f"{name}_{i}"]}, h, None)
        return h

    def refine(name, inputs, factor, end=False):
        block = RefineBlock(factor * width, no_norm, nn.elu, max_pool5, 3 if end else 1)
        return block.apply({"params": params[name]}, inputs, None)

    h = nn.Conv(width, (3, 3)).apply({"params": params["begin_conv"]}, 2 * x - 1)
    res1 = stage("res1", h, 1, down=False)
    res2 = stage("res2", res1, 2)
    res3 = stage("res3", res2, 2)
    res31 = stage("res31", res3, 2) if deepest else res3
    res4 = stage("res4", res31, 4, dilation=2)
    res5 = stage("res5", res4, 4, dilation=4)
    refine1 = refine("refine1", [res5], 4)
    refine2 = refine("refine2", [res4, refine1], 2)
    refine31 = refine("refine31", [res31, refine2], 2) if deepest else refine2
    refine3 = refine("refine3", [res3, refine31], 2)
    refine4 = refine("refine4", [res2, refine3], 1)
    refine5 = refine("refine5", [res1, refine4], 1, end=True)
    h = nn.elu(InstanceNormPlus().apply({"params": params["normalizer"]}, refine5))
    return nn.Conv(x.shape[-1], (3, 3)).apply({"params": params["end_conv"]}, h)


@pytest.mark.parametrize("depth", [5, 6])
@pytest.mark.slow
def test_deeper_ncsnv2_networks_are_wired_as_the_official_ones(depth):
    model = NCSNv2(num_filters=2, depth=depth)
    x = jax.random.uniform(jax.random.key(0), (2, 16, 24, 1))
    _, draw = initial_params(jax.random.key(1), model, x[0])
    params = draw(jax.random.key(1))
    out = jax.jit(model.apply)({"params": params}, x, jnp.array([1.0, 0.5]))
    expected = jax.jit(functools.partial(by_hand, deepest=depth == 6))(params, x)
    assert relative_error(out, expected / jnp.array([1.0, 0.5])[:, None, None, None]) < 1e-5
