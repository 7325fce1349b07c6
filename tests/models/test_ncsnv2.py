"""NCSNv2 alone; test_official.py compares it with the official network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import NCSNv2
from ncsn_jax.models import refinenet
from ncsn_jax.training.state import initial_params


@pytest.mark.slow
def test_ncsnv2_output_is_inverse_to_any_sigma():
    model = NCSNv2(num_filters=2)
    x = jax.random.uniform(jax.random.key(0), (3, 8, 8, 1))
    _, draw = initial_params(jax.random.key(1), model, x[0])
    apply = functools.partial(jax.jit(model.apply), {"params": draw(jax.random.key(1))}, x)
    sigma = jnp.array([0.003, 1.0, 77.7])
    np.testing.assert_allclose(
        apply(sigma) * sigma[:, None, None, None], apply(jnp.ones(3)), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize(
    ("depth", "halvings"),
    [(4, 1), *(pytest.param(*more, marks=pytest.mark.slow) for more in ((5, 2), (6, 3)))],
)
def test_ncsnv2_depth_sets_the_number_of_stages_and_halvings(depth, halvings):
    """Every stage is used: the chain reads each stage once, and its own outputs."""
    stages, chain = refinenet.STAGES[depth], refinenet.CHAIN[depth]
    assert len(stages) == len(chain) == depth
    assert sum(stage.down and stage.dilation == 1 for stage in stages) == halvings
    inputs = [name for refine in chain for name in refine.inputs]
    assert sorted(inputs) == sorted([s.name for s in stages] + [refine.name for refine in chain[:-1]])
    size = 2**halvings
    image = jax.ShapeDtypeStruct((1, 3 * size, size, 1), "float32")
    out, _ = jax.eval_shape(NCSNv2(4, depth).init_with_output, jax.random.key(0), image, jnp.ones(1))
    assert out.shape == image.shape
    odd = jax.ShapeDtypeStruct((1, size // 2, size, 1), "float32")
    with pytest.raises(ValueError, match="must be even there"):
        jax.eval_shape(NCSNv2(4, depth).init, jax.random.key(0), odd, jnp.ones(1))


def test_ncsnv2_refuses_unsupported_depths(unchecked):
    with pytest.raises(ValueError, match=r"depth must be one of 4, 5, 6 .* found 7"):
        jax.eval_shape(NCSNv2(4, 7).init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.ones(1))
