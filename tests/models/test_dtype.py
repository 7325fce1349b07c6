"""Features in a narrower type; parameters, statistics and scores stay float32."""

import re

import jax
import jax.numpy as jnp
import pytest

from ncsn_jax import NCSN, NCSNv2
from ncsn_jax.models.layers import VarianceNorm
from ncsn_jax.training.state import initial_params

NETWORKS = {
    "ncsn": NCSN(sigmas=(1.0, 0.1), num_filters=4, dtype=jnp.bfloat16),
    "ncsnv2": NCSNv2(num_filters=4, dtype=jnp.bfloat16),
    "variance_norm": NCSNv2(num_filters=4, norm=VarianceNorm, dtype=jnp.bfloat16),
}


@pytest.fixture(scope="module", params=NETWORKS.values(), ids=NETWORKS)
def case(request):
    """A network in bfloat16, its parameters and its arguments."""
    x, sigma = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1)), jnp.array([1.0, 0.1])
    _, draw = initial_params(jax.random.key(1), request.param, x[0])
    return request.param, {"params": draw(jax.random.key(1))}, x, sigma


def types(operation, text):
    """The types of an operation's results in a printed jaxpr."""
    return set(re.findall(rf":(\w+)\[[\d,]*\] = {operation}\b", text))


def test_only_features_are_bfloat16_and_the_rest_is_float32(case):
    network, params, x, sigma = case
    text = str(jax.make_jaxpr(network.apply)(params, x, sigma))
    assert types("conv_general_dilated", text) == {"bf16"}
    assert types("reduce_sum", text) == {"f32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    assert jax.eval_shape(network.apply, params, x, sigma).dtype == jnp.float32


def test_bfloat16_scores_are_near_float32_scores(case):
    network, params, x, sigma = case
    narrow, wide = (jax.jit(n.apply)(params, x, sigma) for n in (network, network.copy(dtype=None)))
    assert 1e-3 < jnp.linalg.norm(narrow - wide) / jnp.linalg.norm(wide) < 5e-2
