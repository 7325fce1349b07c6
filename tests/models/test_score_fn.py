import jax
import jax.numpy as jnp
import numpy as np

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
