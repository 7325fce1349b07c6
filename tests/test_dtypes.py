"""Every public function keeps the dtype of x, whatever jax's default, and refuses x that isn't floating."""

import importlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ncsn_jax
from ncsn_jax import likelihood, losses, posterior, samplers
from ncsn_jax.densities import BoxUniform, GaussianMixture
from ncsn_jax.models import mlp, ncsn, ncsnv2

SAMPLERS = ("langevin", "process", "consistent", "predictor_corrector", "heun", "probability_flow")
MODULES = [
    importlib.import_module(f"ncsn_jax.{name}")
    for name in (
        *("densities", "losses", "likelihood", "posterior", "guidance", "interpolation", "models.score_fn"),
        *(f"samplers.{name}" for name in SAMPLERS),
    )
]
SIGMAS = (2.0, 1.0, 0.5)
LANGEVIN = {"step_size": 0.1, "steps_per_scale": 2}
MIXTURE = GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 2.0]], [0.5, 0.7])
NARROW = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), MIXTURE, is_leaf=lambda v: isinstance(v, list))
BOX = BoxUniform([0.0, 0.0], [1.0, 2.0])
MODEL = mlp.MLP(num_features=4, num_layers=1)


def key():
    return jax.random.key(0)


def normal(x, sigma=0.0):
    """The score of N(0, I) at a level."""
    return -x / (1.0 + sigma**2)


def observation(lib, x, noise_std=0.5):
    return lib.Observation(x + 1, posterior.Mask(jnp.array([True, False])), noise_std)


def network(lib):
    shapes = jax.eval_shape(MODEL.init, key(), jnp.zeros((1, 2), jnp.float32), jnp.ones(1, jnp.float32))
    return lib.as_score_fn(MODEL, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))


# By name, a call of x; `lib` has all functions.
PUBLIC = {
    "GaussianMixture": lambda lib, x: lib.GaussianMixture(*jax.tree.leaves(NARROW)).score(x, 1.0),
    "annealed_langevin_dynamics": lambda lib, x: lib.annealed_langevin_dynamics(
        key(), normal, x, SIGMAS, denoise=True, **LANGEVIN
    ),
    "as_score_fn": lambda lib, x: network(lib)(x, 0.5),
    "classifier_free_guidance": lambda lib, x: lib.classifier_free_guidance(normal, normal, 2.0)(x, 0.5),
    "consistent_annealed_sampling": lambda lib, x: lib.consistent_annealed_sampling(key(), normal, x, SIGMAS),
    "denoising_score_matching": lambda lib, x: lib.denoising_score_matching(key(), normal, x, 0.5),
    "explicit_score_matching": lambda lib, x: lib.explicit_score_matching(normal, x, x),
    "guided_score": lambda lib, x: lib.guided_score(normal, lambda x, sigma: jnp.sum(x))(x, 0.5),
    "heun": lambda lib, x: lib.heun(key(), normal, x, SIGMAS, s_churn=1.0),
    "implicit_score_matching": lambda lib, x: lib.implicit_score_matching(normal, x),
    "inpaint": lambda lib, x: lib.inpaint(
        key(), normal, x, SIGMAS, x, mask=jnp.array([True, False]), denoise=True, **LANGEVIN
    ),
    "interpolate": lambda lib, x: lib.interpolate(
        key(), normal, x, SIGMAS, num_interpolations=3, denoise=True, **LANGEVIN
    ),
    "interpolate_latents": lambda lib, x: lib.interpolate_latents(
        normal, x, x + 1, SIGMAS, num_interpolations=3
    ),
    "langevin_dynamics": lambda lib, x: lib.langevin_dynamics(key(), normal, x, step_size=0.1, num_steps=2),
    "langevin_step": lambda lib, x: lib.langevin_step(key(), -x, x, 0.1, temperature=0.5),
    "log_likelihood": lambda lib, x: lib.log_likelihood(normal, x, 0.5, 2.0),
    "ncsn_loss": lambda lib, x: lib.ncsn_loss(key(), normal, x, jnp.asarray(SIGMAS)),
    "posterior_score": lambda lib, x: lib.posterior_score(normal, observation(lib, x))(x, 0.5),
    "predictor_corrector": lambda lib, x: lib.predictor_corrector(key(), normal, x, SIGMAS, denoise=True),
    "probability_flow": lambda lib, x: lib.probability_flow(normal, x, 2.0, 0.5),
    "sample_posterior": lambda lib, x: lib.sample_posterior(
        key(), normal, x, SIGMAS, observation(lib, x), denoise=True, **LANGEVIN
    ),
    "sliced_score_matching": lambda lib, x: lib.sliced_score_matching(key(), normal, x),
}
OTHERS = {
    "a mixture's log-density": lambda lib, x: lib.GaussianMixture(*jax.tree.leaves(NARROW)).log_density(x),
    "a box's score": lambda lib, x: lib.BoxUniform(BOX.low, BOX.high).score(x, 0.5),
    "a box's log-density": lambda lib, x: lib.BoxUniform(BOX.low, BOX.high).log_density(x),
    "pull": lambda lib, x: observation(lib, x).pull(x, 0.5),
    "project": lambda lib, x: observation(lib, x).project(x),
    "euler_maruyama": lambda lib, x: lib.euler_maruyama(key(), normal, x, 2.0, 1.0),
    "langevin_update": lambda lib, x: lib.langevin_update(x, -x, x, 0.1),
    "denoised": lambda lib, x: lib.denoised(normal, x, 0.5),
    "diffuse": lambda lib, x: lib.diffuse(key(), x, 0.5, 1.0),
    "flow": lambda lib, x: lib.flow(normal, x, 0.5),
    "slerp": lambda lib, x: lib.slerp(x, x + 1, 3),
    "log_likelihood by probes": lambda lib, x: lib.log_likelihood(
        normal, x, 0.5, 2.0, divergence=lib.hutchinson(key(), x)
    ),
    "log_jacobian": lambda lib, x: lib.log_jacobian(lambda x: 2 * x, x),
    "divergence": lambda lib, x: lib.divergence(normal, x),
}
WITHOUT_X = {
    "MLP",
    "NCSN",
    "NCSNpp",
    "NCSNv2",
    "Observation",
    "Preconditioned",
    "class_log_likelihood",
    "geometric_sigmas",
    "karras_sigmas",
    "score_of",
}
"""Networks, which later tests run on batches, and names that take no x."""


@pytest.fixture(scope="module")
def plain(unchecked):
    """All functions, as users import them."""
    modules = [vars(unchecked(module)) for module in MODULES]
    names = {
        name: value
        for module in modules
        for name, value in module.items()
        if getattr(value, "__module__", None) == module["__name__"]
    }
    for module in modules:  # which call each other
        module.update({name: value for name, value in names.items() if name in module})
    return types.SimpleNamespace(**names)


def test_every_public_function_is_tested_for_its_dtype():
    assert set(ncsn_jax.__all__) == PUBLIC.keys() | WITHOUT_X


@pytest.mark.parametrize("call", [*PUBLIC, *OTHERS])
@pytest.mark.parametrize("x64", [False, True], ids=["x32", "x64"])
def test_result_has_the_dtype_of_x(call, x64, plain):
    run = (PUBLIC | OTHERS)[call]
    with jax.enable_x64(x64):
        for dtype in ("bfloat16", "float32", *(["float64"] if x64 else [])):
            result = jax.eval_shape(lambda x: run(plain, x), jax.ShapeDtypeStruct((2,), dtype))
            assert result.dtype == dtype


@pytest.mark.parametrize("call", [*PUBLIC, *OTHERS])
def test_integer_x_is_refused(call, plain):
    with pytest.raises(ValueError, match=r"x must have a floating type, found uint8; use x\.astype"):
        (PUBLIC | OTHERS)[call](plain, jnp.ones(2, jnp.uint8))


def test_networks_refuse_integer_x_and_take_integer_sigma(unchecked):
    """A σ of integers isn't rounded down to other levels, and one for all isn't broadcast to more images."""
    for network, x in (
        (unchecked(ncsn).NCSN(sigmas=(20.5, 10.0, 2.9, 2.1), num_filters=2), jnp.ones((2, 4, 4, 1))),
        (unchecked(ncsnv2).NCSNv2(num_filters=2), jnp.ones((2, 4, 4, 1))),
        (unchecked(mlp).MLP(num_features=2, num_layers=1), jnp.ones((2, 3))),
    ):
        variables = network.init(key(), x, jnp.ones(2))
        with pytest.raises(ValueError, match="x must have a floating type, found uint8"):
            network.apply(variables, x.astype(jnp.uint8), jnp.ones(2))
        with pytest.raises(ValueError, match=r"sigma must be one number for .*, \(2,\), found \(2, 1\)"):
            network.apply(variables, x, jnp.ones((2, 1)))
        scores = [network.apply(variables, x, jnp.array([2, 3], dtype)) for dtype in ("uint8", "float32")]
        np.testing.assert_array_equal(*scores)


def test_half_precision_losses_do_not_overflow_where_their_value_fits():
    """‖z/σ‖² is 77,000 where float16 ends at 65,504, and its half, weighted by σ², 1,500."""
    x = jnp.zeros((32, 32, 3))
    for loss in (
        lambda x: losses.denoising_score_matching(key(), lambda x, sigma: jnp.zeros_like(x), x, 0.2),
        lambda x: losses.sliced_score_matching(key(), lambda x: -x, x, projection="sphere"),
    ):
        np.testing.assert_allclose(float(loss(x.astype(jnp.float16))), float(loss(x)), rtol=0.02)


def test_coefficients_are_computed_in_at_least_float32():
    x = jnp.array([1.0, -3.0])
    narrow = samplers.langevin_step(key(), 0 * x, 0 * x, np.float16(1e-5), temperature=0.01)
    wide = samplers.langevin_step(key(), 0 * x, 0 * x, float(np.float16(1e-5)), temperature=0.01)
    np.testing.assert_allclose(narrow, wide, rtol=1e-6)
    np.testing.assert_allclose(samplers.denoised(normal, x, np.uint8(20)), x / 401.0, rtol=1e-4)


@pytest.mark.parametrize(
    "run",
    [
        lambda sigmas: ncsn_jax.heun(key(), normal, jnp.array([1.0, -3.0]), sigmas),
        lambda sigmas: ncsn_jax.consistent_annealed_sampling(key(), normal, jnp.array([1.0, -3.0]), sigmas),
        lambda sigmas: ncsn_jax.annealed_langevin_dynamics(
            key(), normal, jnp.array([1.0, -3.0]), sigmas, temperature=0.0, **LANGEVIN
        ),
    ],
    ids=["heun", "consistent", "Langevin at temperature 0"],
)
def test_samplers_without_noise_are_differentiable_in_their_levels(run):
    """Compared with a difference quotient: the derivative of √ at 0 would give NaN."""
    sigmas, direction = jnp.array(SIGMAS), jnp.array([0.3, -0.2, 0.1])
    slope = jax.jvp(run, (sigmas,), (direction,))[1]
    with jax.enable_x64(False):
        quotient = (run(sigmas + 5e-3 * direction) - run(sigmas - 5e-3 * direction)) / 1e-2
    np.testing.assert_allclose(slope, quotient, rtol=0.05, atol=2e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("density", [MIXTURE, BOX], ids=["mixture", "box"])
def test_a_sample_has_the_dtype_of_its_density(density, dtype):
    with jax.enable_x64(True):
        leaves, tree = jax.tree.flatten(density, is_leaf=lambda v: isinstance(v, list))
        density = tree.unflatten([jnp.asarray(leaf, dtype) for leaf in leaves])
        assert jax.eval_shape(lambda: density.sample(key(), 0.5)).dtype == dtype


def test_solvers_compute_in_at_least_float32():
    """In bfloat16, whose numbers are 1/128 apart, the float32 result is rounded once."""
    x = jnp.array([1.0, -3.0])
    for run in (
        lambda x: samplers.probability_flow(normal, x, 4.0, 0.1),
        lambda x: observation(ncsn_jax, x).pull(x, 0.7),
        lambda x: likelihood.log_likelihood(normal, x, 0.1, 4.0)[None],
    ):
        narrow, wide = run(x.astype(jnp.bfloat16)), run(x)
        np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))


def test_mixture_samples_are_equal_with_and_without_x64():
    """With float32 parameters; jax's default type would draw other numbers."""
    draws = []
    for x64 in (False, True):
        with jax.enable_x64(x64):
            draws.append(np.asarray(NARROW.sample(key(), 0.5)))
    np.testing.assert_array_equal(*draws)


def test_non_finite_inputs_give_nan_results():
    """Unchecked, conjugate gradients would return 0, and the flow its start."""
    x = jnp.array([1.0, -3.0])
    seen = ncsn_jax.Observation(x + 1, posterior.Identity(), 0.1)
    for pull in (
        seen.replace(y=x.at[0].set(jnp.nan)).pull(x, 1.0),
        seen.replace(noise_std=jnp.nan).pull(x, 1.0),
        seen.pull(x, jnp.nan),
        seen.pull(x.at[0].set(jnp.inf), 1.0),
        seen.replace(y=x.at[0].set(jnp.nan)).project(x),
    ):
        assert jnp.isnan(pull).all()
    # Masked pixels aren't read.
    hidden = ncsn_jax.Observation(x.at[1].set(jnp.nan), posterior.Mask(jnp.array([True, False])), 0.1)
    assert jnp.isfinite(hidden.pull(x, 1.0)).all()
    for start, stop in ((jnp.nan, 1.0), (-2.0, 1.0), (1.0, -1.0), (1.0, jnp.nan)):
        assert jnp.isnan(samplers.probability_flow(normal, x, start, stop)).all()
        assert jnp.isnan(likelihood.log_likelihood(normal, x, start, stop))


def test_observations_of_another_shape_are_refused():
    """They would be broadcast: a grey y to three channels, one σ to many."""
    x = jnp.ones((4, 4, 3))
    grey = ncsn_jax.Observation(jnp.ones((2, 2, 1)), posterior.BlockAverage(2), 0.1)
    with pytest.raises(ValueError, match=r"y must have the shape of A x, \(2, 2, 3\), found \(2, 2, 1\)"):
        grey.pull(x, 1.0)
