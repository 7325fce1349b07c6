"""Samplers by settings: each setting reaches its sampler, and equal settings give one sampler."""

import jax
import numpy as np
import pytest

from ncsn_jax.app.config import Sampling
from ncsn_jax.app.methods import sampler_of
from tests import samples
from tests.samples import METHODS, OPTIONS, SETTINGS, SIGMAS, draw


@pytest.fixture(scope="module", name="score_fn")
def _score_fn():
    return samples.score_fn()


@pytest.mark.parametrize(
    ("method", "name"), [(method, name) for method, options in OPTIONS.items() for name in options]
)
def test_every_setting_of_a_method_changes_its_samples(score_fn, method, name):
    """All settings differ from the defaults; one of them returns to its default."""
    options = OPTIONS[method]
    default = Sampling.model_fields[name].default if name not in ("step_size", "steps_per_scale") else None
    default = getattr(SETTINGS, name) if default is None and name not in ("eta", "num_levels") else default
    changed = draw(score_fn, 4, method=method, **options)
    back = draw(score_fn, 4, method=method, **options | {name: default})
    assert np.abs(changed - back).max() > (0.0 if method == "ode" else 1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_settings_of_other_methods_change_nothing(score_fn, method):
    others = {name: value for options in OPTIONS.values() for name, value in options.items()}
    others = {name: value for name, value in others.items() if name not in OPTIONS[method]}
    plain, other = (draw(score_fn, 4, method=method, **options) for options in ({}, others))
    np.testing.assert_array_equal(plain, other)


def test_equal_settings_give_one_sampler_whatever_the_seed_and_number_of_samples():
    for method in METHODS:
        one, other = (
            sampler_of(SETTINGS.model_copy(update={"method": method, "seed": n, "num_samples": n}), SIGMAS)
            for n in (1, 2)
        )
        assert one is other


@pytest.mark.parametrize("method", METHODS)
def test_denoise_applies_tweedies_formula_to_methods_that_end_noisy(score_fn, method):
    """The denoised result is Tweedie's formula of the other; consistent and heun end without noise anyway."""
    plain, denoised = (draw(score_fn, 4, method=method, denoise=d) for d in (False, True))
    if method not in ("consistent", "heun"):
        mean = jax.vmap(lambda x: x + 0.2**2 * score_fn(x, 0.2))(plain)
        np.testing.assert_allclose(denoised, mean, atol=1e-5)
        assert np.abs(denoised - plain).max() > 1e-3
    else:
        np.testing.assert_array_equal(denoised, plain)


def test_sampling_levels_are_the_models_or_as_many_as_are_asked_for():
    def levels(**settings):
        return sampler_of(Sampling(**settings), SIGMAS).levels

    assert levels(method="annealed", num_levels=7) == (*SIGMAS, 0.0)
    assert levels(method="consistent") == (*SIGMAS, 0.0)
    assert levels(method="pc") == SIGMAS
    assert len(levels(method="ode", num_levels=7)) == 7
    found = levels(method="heun", num_levels=4, rho=2.0)
    np.testing.assert_allclose(np.diff(np.sqrt(found[:4])), (np.sqrt(0.2) - 1) / 3, rtol=1e-5)
    assert found[4:] == (0.0,)
