"""Networks can be sent between processes, as multiprocessing and Ray do."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import MLP, NCSN, NCSNv2, as_score_fn
from ncsn_jax.app import build
from ncsn_jax.app.config import ACTIVATIONS, Config, MlpModel, NcsnModel, Ncsnv2Model

NETWORKS = [NCSN((1.0, 0.1)), NCSNv2(), MLP()]
NETWORKS += [
    build.network(Config(model=kind(act=act))) for kind in (NcsnModel, Ncsnv2Model) for act in ACTIVATIONS
]
NETWORKS += [build.network(Config(model=MlpModel()))]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: f"{type(n).__name__} {n.act.__name__}")
def test_a_network_is_equal_after_pickling(network):
    assert pickle.loads(pickle.dumps(network)) == network


def test_a_score_function_computes_the_same_after_pickling():
    model = MLP(num_features=4, num_layers=1)
    score_fn = as_score_fn(model, model.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.ones(1)))
    again = pickle.loads(pickle.dumps(score_fn))
    np.testing.assert_array_equal(again(jnp.ones(2), 0.5), score_fn(jnp.ones(2), 0.5))
