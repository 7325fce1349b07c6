import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import suggest_noise
from ncsn_jax.config import Config, Data, NcsnModel, Ncsnv2Model, Sampling
from ncsn_jax.errors import UserError


@pytest.fixture
def config(data_dir):
    return Config(
        data=Data(name="digits", data_dir=data_dir),
        model=Ncsnv2Model(sigmas="auto", num_filters=2),
        sampling=Sampling(steps_per_scale=5),
    )


def test_on_images_with_the_papers_largest_distance_it_suggests_the_papers_values():
    """32×32×3 numbers; the paper's CIFAR-10 has σ₁ = 50, L = 232 and ε = 6.2e-6 for T = 5."""
    x = np.random.default_rng(0).uniform(0.4, 0.6, (50, 32, 32, 3)).astype(np.float32)
    x[7], x[31] = 0.0, 50.0 / np.sqrt(3072)
    found = suggest_noise.suggest_noise(x, 0.01, 5)
    assert found.sigma_begin == pytest.approx(50.0, rel=0.01)
    assert found.num_scales == pytest.approx(232, rel=0.1)
    assert found.step_size == pytest.approx(6.2e-6, rel=0.1)
    assert (found.num_examples, found.dim) == (50, 3072)


def test_the_digits_largest_distance_is_between_two_of_them(config):
    from sklearn.datasets import load_digits

    found = suggest_noise.for_config(config)
    pixels = load_digits().data
    norms = np.square(pixels).sum(1)
    longest = np.sqrt(np.max(norms[:, None] + norms[None] - 2 * pixels @ pixels.T))
    # The training split, dequantized: (k + u)/17.
    assert found.distance == pytest.approx(longest / 17, abs=0.3)
    assert found.distance <= found.sigma_begin < 1.01 * found.distance
    assert (found.num_examples, found.dim) == (1500, 64)


def test_a_report_names_values_and_reasons(config):
    found = suggest_noise.for_config(config)
    text = suggest_noise.report(config, found)
    for technique in (1, 2, 4):
        assert f"Technique {technique}" in text
    fragment = text[text.index("    model=") : text.index("--config")]
    config = eval(f"Config({fragment})", {c.__name__: c for c in (Config, Ncsnv2Model, NcsnModel, Sampling)})
    assert config.model.sigma_begin == found.sigma_begin
    assert len(config.model.noise_levels) == found.num_scales
    assert config.sampling.step_size == found.step_size


def test_auto_is_chosen_once(config, tmp_path, monkeypatch):
    found = suggest_noise.for_config(config)
    resolved = suggest_noise.resolved(config, tmp_path)
    assert resolved.model == Ncsnv2Model(
        num_filters=2, sigma_begin=found.sigma_begin, num_scales=found.num_scales
    )
    assert resolved.sampling == Sampling(steps_per_scale=5, step_size=found.step_size)
    (tmp_path / "config.json").write_text(resolved.model_dump_json())
    monkeypatch.setattr(suggest_noise, "for_config", None)
    assert suggest_noise.resolved(config, tmp_path) == resolved
    assert suggest_noise.resolved(resolved, tmp_path / "elsewhere") is resolved


def test_data_that_suggest_nothing_are_named(config):
    config = config.model_copy(update={"model": config.model.model_copy(update={"sigma_end": 9.0})})
    with pytest.raises(
        UserError, match=r"config\.data\.name='digits' suggests no noise levels: .*sigma_end=9"
    ):
        suggest_noise.for_config(config)
    with pytest.raises(ValueError, match="aren't chosen yet"):
        assert config.model.noise_levels


def test_only_some_of_many_examples_are_looked_at(config, monkeypatch):
    monkeypatch.setattr(suggest_noise, "MAX_BYTES", 4 * 64 * 100)
    found = suggest_noise.for_config(config)
    assert found.num_examples == 100
    assert found.distance <= suggest_noise.for_config(config).distance
    assert jnp.isfinite(found.step_size)
