"""Communication of the step between devices, and export for accelerators."""

import functools
from collections import Counter

import jax
import numpy as np
import optax
import pytest
from jax import export

from benchmarks.collectives import all_reduces
from ncsn_jax.data import dequantize, random_flip
from ncsn_jax.training import create_state, denoising_objective, example_loss
from ncsn_jax.training.parallel import pmap_step

SHAPE = (6, 6, 1)


@pytest.fixture(scope="module", params=[2, 4])
def training(request, tiny_score):
    """The step on some devices, and the shapes of its arguments."""
    loss = example_loss(
        tiny_score,
        denoising_objective((1.0, 0.1)),
        augment=random_flip,
        preprocess=functools.partial(dequantize, num_values=17),
    )
    optimizer = optax.adam(1e-3)
    step = pmap_step(loss=loss, optimizer=optimizer, ema_rate=0.9, devices=jax.devices()[: request.param])

    def arguments():
        key, layout = jax.random.key(0), (request.param, 2)
        batch = {
            "examples": np.zeros((*layout, *SHAPE), np.uint8),
            "index": np.zeros(layout, np.int32),
            "weight": np.ones(layout, bool),
        }
        return create_state(key, tiny_score, SHAPE, optimizer), batch, key

    return step, jax.eval_shape(arguments)


def assert_each_parameter_is_reduced_once(program, state):
    """Check that every parameter is reduced once, with at most 4 scalars."""
    reduced = Counter(array for arrays in all_reduces(program) for array in arrays)
    parameters = Counter(("f32", leaf.size) for leaf in jax.tree.leaves(state.params))
    assert parameters <= reduced
    scalars = reduced - parameters
    assert {size for _, size in scalars} <= {1}
    assert scalars.total() <= 4


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_training_step_exports_for_accelerators(training, platform):
    step, arguments = training
    exported = export.export(jax.jit(step), platforms=[platform])(*arguments)
    assert exported.platforms == (platform,)
    assert exported.nr_devices == arguments[1]["index"].shape[0]
    assert_each_parameter_is_reduced_once(exported.mlir_module(), arguments[0])


def test_compiler_combines_the_all_reduces_of_a_step_into_one(training):
    step, arguments = training
    program = next(step.lowered(*arguments)).compile().as_text()
    assert_each_parameter_is_reduced_once(program, arguments[0])
    assert len(all_reduces(program)) == 1
