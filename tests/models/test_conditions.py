"""Conditions of the networks: null conditions, one program for all, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import MLP, NCSN, NCSNpp, NCSNv2, Preconditioned, as_score_fn
from ncsn_jax.models import Classes, Image, Patches, Vector, VPScore
from ncsn_jax.models.conditions import ConditionEmbedding, parts_of

SIGMAS = (1.0, 0.1)
SHAPE = (4, 4, 1)
UNET = dict(
    num_filters=8, multipliers=(1,), num_res_blocks=1, attention_resolutions=(), middle_attention=False
)
UNET |= dict(fir=False, progressive_input="none", fourier_scale=1.0)
ALL = {"digit": Classes(3), "pose": Vector(2), "sketch": Image(1)}


def changed(variables):
    """Parameters none of which is near zero."""
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    return tree.unflatten(
        [0.3 * jax.random.normal(k, jnp.shape(leaf)) for k, leaf in zip(keys, leaves, strict=True)]
    )


def made(model, shape=SHAPE):
    return changed(model.init(jax.random.key(0), jnp.ones((1, *shape)), jnp.ones(1)))


@pytest.fixture(scope="module")
def unet():
    model = NCSNpp(**UNET, conditions=ALL)
    return model, made(model)


@pytest.fixture(scope="module")
def ncsn():
    model = NCSN(SIGMAS, num_filters=2, conditions=Classes(3))
    return model, made(model)


def conditions(count=4):
    rng = np.random.default_rng(0)
    return {
        "digit": np.arange(count, dtype=np.int32) % 3,
        "pose": rng.standard_normal((count, 2)).astype(np.float32),
        "sketch": rng.standard_normal((count, *SHAPE)).astype(np.float32),
    }


def nulls(like):
    return jax.tree.map(lambda a: np.full_like(a, -1 if a.dtype == np.int32 else np.nan), like)


def batch(count=4):
    return jax.random.normal(jax.random.key(1), (count, *SHAPE)), jnp.full(count, 0.5)


def test_every_part_changes_the_score_and_null_parts_are_the_null_condition(unet):
    model, variables = unet
    x, sigma = batch()
    apply = jax.jit(model.apply)
    given, none = conditions(), apply(variables, x, sigma)
    np.testing.assert_allclose(apply(variables, x, sigma, nulls(given)), none, rtol=1e-5)
    full = apply(variables, x, sigma, given)
    for name in ALL:
        without = apply(variables, x, sigma, given | {name: nulls(given)[name]})
        assert np.abs(without - full).max() > 1e-3
        alone = apply(variables, x, sigma, nulls(given) | {name: given[name]})
        assert np.abs(alone - none).max() > 1e-3


def test_a_null_vector_differs_from_zeros_and_a_null_class_from_every_class(unet):
    model, variables = unet
    x, sigma = batch()
    given, apply = conditions(), jax.jit(model.apply)
    for name in ("pose", "sketch"):
        zeros = apply(variables, x, sigma, given | {name: np.zeros_like(given[name])})
        null = apply(variables, x, sigma, given | {name: nulls(given)[name]})
        assert np.abs(zeros - null).max() > 1e-3
    scores = [apply(variables, x, sigma, given | {"digit": np.full(4, c, np.int32)}) for c in (-1, 0, 1, 2)]
    for i, a in enumerate(scores):
        assert all(np.abs(a - b).max() > 1e-3 for b in scores[:i])


def test_the_parameters_are_the_same_with_and_without_a_condition():
    model = NCSNpp(**UNET, conditions=ALL)
    x, sigma = batch(1)
    with_condition = model.init(jax.random.key(0), x, sigma, conditions(1))
    without = model.init(jax.random.key(0), x, sigma)
    jax.tree.map(np.testing.assert_array_equal, with_condition, without)


@pytest.mark.parametrize("network", ["unet", pytest.param("ncsn", marks=pytest.mark.slow)])
def test_an_example_depends_on_its_own_condition_alone(network, request):
    model, variables = request.getfixturevalue(network)
    given = conditions() if network == "unet" else conditions()["digit"]
    x, sigma = batch()
    together = jax.jit(model.apply)(variables, x, sigma, given)
    for i in range(4):
        one = as_score_fn(model, variables, jax.tree.map(lambda a, i=i: a[i], given))
        np.testing.assert_allclose(one(x[i], 0.5), together[i], rtol=2e-4, atol=1e-5)


def test_one_program_serves_all_conditions(ncsn):
    model, variables = ncsn
    traces = []

    @jax.jit
    def score(score_fn, x):
        traces.append(1)
        return score_fn(x, 0.5)

    scores = [score(as_score_fn(model, variables, np.int32(c)), batch()[0][0]) for c in (-1, 0, 1, 2)]
    assert len(traces) == 1
    assert np.abs(scores[0] - scores[1]).max() > 1e-4


def test_classes_of_ncsn_begin_at_zero_so_that_it_is_the_official_network(ncsn):
    plain = NCSN(SIGMAS, num_filters=2)
    x, sigma = batch()
    conditional = NCSN(SIGMAS, num_filters=2, conditions=Classes(3))
    variables = conditional.init(jax.random.key(0), x, sigma)
    unconditional = plain.init(jax.random.key(0), x, sigma)
    own = {path: a for path, a in jax.tree_util.tree_leaves_with_path(variables)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(unconditional):
        np.testing.assert_array_equal(own.pop(path), leaf)
    assert all("embed_class" in jax.tree_util.keystr(path) for path in own)
    assert all(not leaf.any() for leaf in own.values())
    expected = plain.apply(unconditional, x, sigma)
    for c in (-1, 2):
        found = conditional.apply(variables, x, sigma, jnp.full(4, c))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", [Classes(3), Vector(2)])
def test_mlp_takes_classes_and_vectors(kind):
    model = MLP(num_features=8, num_layers=2, conditions=kind)
    variables = made(model, (3,))
    given = jnp.array([0, 2]) if isinstance(kind, Classes) else jnp.array([[0.0, 1.0], [2.0, 0.0]])
    x, sigma = jnp.ones((2, 3)), jnp.ones(2)
    found, none = model.apply(variables, x, sigma, given), model.apply(variables, x, sigma)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    np.testing.assert_array_equal(none[0], none[1])
    assert np.abs(found - none).max() > 1e-3


def test_wrappers_pass_conditions_on_and_patches_rearrange_their_images():
    inner = NCSNpp(**UNET, scale_by_sigma=False, rescaled=True, conditions=Image(4))
    model = Patches(Preconditioned(inner, 0.5), 2)
    x, sigma = jnp.ones((1, 8, 8, 1)), jnp.ones(1)
    variables = made(model, (8, 8, 1))
    given = jax.random.normal(jax.random.key(2), (1, 8, 8, 1))
    assert np.abs(model.apply(variables, x, sigma, given) - model.apply(variables, x, sigma)).max() > 1e-4
    vp = VPScore(NCSNpp(**UNET | {"embedding": "positional"}, scale_by_sigma=False, conditions=Classes(3)))
    variables = made(vp)
    x, sigma = batch(1)
    assert np.abs(vp.apply(variables, x, sigma, jnp.array([1])) - vp.apply(variables, x, sigma)).max() > 1e-4


REFUSED = {
    "a class out of range": (Classes(3), 3, "condition=3: no such class; accepted: 0 to 2, or -1 for none"),
    "another negative class": (Classes(3), -2, "condition=-2: no such class"),
    "a real number for a class": (
        Classes(3),
        1.5,
        r"found float32 of the shape \(1,\) for a batch; accepted: integer",
    ),
    "an integer for a vector": (
        Vector(2),
        np.arange(2),
        r"found int32 of the shape \(1, 2\) for a batch; accepted: floating",
    ),
    "a longer vector": (
        Vector(2),
        np.ones(3, np.float32),
        r"of the shape \(1, 3\) for a batch; accepted: .* \(1, 2\)",
    ),
    "a smaller image": (
        Image(1),
        np.ones((2, 2, 1), np.float32),
        r"accepted: .* of the shape \(1, 4, 4, 1\)",
    ),
    "a missing part": (
        ALL,
        {"digit": 1},
        r"found \['digit'\]; accepted: a dictionary of \['digit', 'pose', ",
    ),
    "one array for several parts": (ALL, 1, "accepted: a dictionary of"),
    "parts for one array": (
        Classes(3),
        {"digit": 1},
        "condition: found a dictionary of .*; accepted: one array",
    ),
    "any condition, without the field": (None, 1, "condition: this network takes none; accepted: None, or"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_conditions_that_dont_fit_are_refused_in_one_line(name):
    kind, value, message = REFUSED[name]
    x = jnp.ones((1, *SHAPE))
    condition = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], value)
    with pytest.raises(ValueError, match=message):
        parts_of(kind, condition, x)


@pytest.mark.parametrize(
    "model",
    [NCSNv2(num_filters=2), NCSN(SIGMAS, num_filters=2), NCSNpp(**UNET), MLP(8, 1)],
    ids=lambda m: type(m).__name__,
)
def test_networks_without_conditions_refuse_one(model):
    x = jnp.ones((1, 3)) if isinstance(model, MLP) else jnp.ones((1, *SHAPE))
    with pytest.raises(ValueError, match="condition: this network takes none"):
        jax.eval_shape(model.init, jax.random.key(0), x, jnp.ones(1), jnp.zeros(1, int))


def test_kinds_that_a_network_cannot_take_are_refused():
    x, sigma = batch(1)
    with pytest.raises(ValueError, match=r"conditions=Vector\(size=2\): accepted: Classes, or None"):
        jax.eval_shape(NCSN(SIGMAS, num_filters=2, conditions=Vector(2)).init, jax.random.key(0), x, sigma)
    with pytest.raises(ValueError, match="accepted: classes and vectors, with a hidden layer"):
        jax.eval_shape(MLP(8, 1, conditions=Image(1)).init, jax.random.key(0), jnp.ones((1, 3)), sigma)


def test_embeddings_add_up():
    """The sum over the parts, each with its own parameters."""
    x = jnp.ones((2, *SHAPE))
    given = parts_of(
        {"digit": Classes(3), "pose": Vector(2)}, {k: conditions(2)[k] for k in ("digit", "pose")}, x
    )
    module = ConditionEmbedding(5)
    variables = changed(module.init(jax.random.key(0), given))
    params = variables["params"]
    row = params["condition_digit"]["embedding"][np.array([0, 1])]
    dense = params["condition_pose"]
    vector = np.concatenate([conditions(2)["pose"], np.ones((2, 1), np.float32)], axis=1)
    expected = row + vector @ dense["kernel"] + dense["bias"][None]
    np.testing.assert_allclose(module.apply(variables, given), expected, rtol=1e-4)
