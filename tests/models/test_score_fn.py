import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ncsn_jax import MLP, as_score_fn


def test_a_score_function_with_other_variables_is_not_recompiled():
    traces = []

    @jax.jit
    def evaluate(score_fn, x):
        traces.append(1)
        return score_fn(x, 1.0)

    model = MLP(num_features=8, num_layers=1)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.ones(1))
    zero = jax.tree.map(jnp.zeros_like, variables)
    first, second = (evaluate(as_score_fn(model, values), jnp.ones(2)) for values in (variables, zero))
    assert len(traces) == 1
    assert np.any(first != second)


class Dropping(nn.Module):
    """Half of x, chosen by the key of dropout."""

    @nn.compact
    def __call__(self, x, sigma):
        return nn.Dropout(0.5, deterministic=not self.has_rng("dropout"))(x)


def test_a_dropout_key_belongs_to_one_example_and_no_key_means_no_dropout():
    x, keys = jnp.ones((3, 40)), jax.random.split(jax.random.key(0), 3)

    def scores(x, keys):
        return jax.vmap(lambda x, key: as_score_fn(Dropping(), {}, dropout_key=key)(x, 0.5))(x, keys)

    together = scores(x, keys)
    assert set(np.unique(together)) == {0.0, 2.0}
    np.testing.assert_array_equal(together[::-1], scores(x[::-1], keys[::-1]))
    assert not np.array_equal(together[0], together[1])
    np.testing.assert_array_equal(as_score_fn(Dropping(), {})(x[0], 0.5), x[0])
