import dataclasses

import numpy as np
import pytest

from ncsn_jax import data
from ncsn_jax.app import from_data, suggest_noise
from ncsn_jax.app.config import Config, Data, MlpModel, NcsnModel, Ncsnv2Model, Sampling, Training
from ncsn_jax.runtime.errors import UserError


@pytest.fixture
def config(data_dir):
    return Config(
        data=Data(name="digits", data_dir=data_dir),
        model=Ncsnv2Model(sigmas="auto", num_filters=2),
        sampling=Sampling(steps_per_scale=5),
    )


@pytest.fixture(scope="module")
def digits(data_dir):
    return data.load(Data(name="digits", data_dir=data_dir))


def test_suggested_noise_equals_the_papers_at_the_papers_largest_distance():
    """32×32×3 numbers; the paper's CIFAR-10 has σ₁ = 50, L = 232 and ε = 6.2e-6 for T = 5."""
    x = np.random.default_rng(0).uniform(0.4, 0.6, (50, 32, 32, 3)).astype(np.float32)
    x[7], x[31] = 0.0, 50.0 / np.sqrt(3072)
    found = suggest_noise.suggest_noise(x, 0.01, 5)
    assert found.sigma_begin == pytest.approx(50.0, rel=0.01)
    assert found.num_scales == pytest.approx(232, rel=0.1)
    assert found.step_size == pytest.approx(6.2e-6, rel=0.1)
    assert (found.num_examples, found.dim) == (50, 3072)


def test_suggestion_for_digits_starts_at_their_largest_distance(config, digits):
    from sklearn.datasets import load_digits

    found = suggest_noise.for_config(config, digits)
    pixels = load_digits().data
    norms = np.square(pixels).sum(1)
    longest = np.sqrt(np.max(norms[:, None] + norms[None] - 2 * pixels @ pixels.T))
    # The training split, dequantized: (k + u)/17.
    assert found.distance == pytest.approx(longest / 17, abs=0.3)
    assert found.distance <= found.sigma_begin < 1.01 * found.distance
    assert (found.num_examples, found.dim) == (1500, 64)


def test_noise_report_names_techniques_and_a_config_that_evaluates(config, digits):
    found = suggest_noise.for_config(config, digits)
    text = suggest_noise.report(config, found, digits)
    for technique in (1, 2, 4):
        assert f"Technique {technique}" in text
    fragment = text[text.index("    model=") : text.index("or on")]
    config = eval(f"Config({fragment})", {c.__name__: c for c in (Config, Ncsnv2Model, NcsnModel, Sampling)})
    assert config.model.sigma_begin == found.sigma_begin
    assert len(config.model.noise_levels) == found.num_scales
    assert config.sampling.step_size == found.step_size


def test_auto_noise_levels_are_chosen_once_and_then_kept(config, digits, tmp_path):
    found = suggest_noise.for_config(config, digits)
    loads = []

    def load():
        loads.append(1)
        return digits

    resolved = from_data.resolved(config, tmp_path, load)
    assert resolved.model == Ncsnv2Model(
        num_filters=2, sigma_begin=found.sigma_begin, num_scales=found.num_scales
    )
    assert resolved.sampling == Sampling(steps_per_scale=5, step_size=found.step_size)
    (tmp_path / "config.json").write_text(resolved.model_dump_json())
    assert from_data.resolved(config, tmp_path, load) == resolved
    assert from_data.resolved(resolved, tmp_path / "elsewhere", load) is resolved
    assert len(loads) == 1


def test_a_given_step_size_is_kept_when_levels_are_auto(config, digits, tmp_path):
    given = Sampling(step_size=1e-3)
    config = config.model_copy(update={"sampling": given})
    resolved = from_data.resolved(config, tmp_path, lambda: digits)
    assert resolved.sampling == given
    (tmp_path / "config.json").write_text(resolved.model_dump_json())
    other = config.model_copy(update={"sampling": Sampling(step_size=2e-3)})
    assert from_data.resolved(other, tmp_path, lambda: digits).sampling.step_size == 2e-3


def test_the_standard_deviation_is_measured_once_and_then_kept(digits, tmp_path):
    model = MlpModel(preconditioning="karras", scale_by_sigma=False)
    config = Config(model=model)
    loads = []

    def load():
        loads.append(1)
        return digits

    resolved = from_data.resolved(config, tmp_path, load)
    pixels = np.stack([digits.train[i] for i in range(len(digits.train))])
    variance = np.var((pixels + 0.5) / 17) + 1 / (12 * 17**2)  # of uniformly dequantized pixels
    assert resolved.model.measured_std == pytest.approx(np.sqrt(variance), rel=2e-3)
    (tmp_path / "config.json").write_text(resolved.model_dump_json())
    assert from_data.resolved(config, tmp_path, load) == resolved
    weighted = Config(training=Training(weighting="karras"))
    assert from_data.resolved(weighted, tmp_path / "other", load).model.data_std == resolved.model.data_std
    assert len(loads) == 2
    (tmp_path / "unmeasured").mkdir()
    (tmp_path / "unmeasured" / "config.json").write_text(Config(model=model).model_dump_json())
    assert from_data.resolved(config, tmp_path / "unmeasured", load) == resolved
    unread = Config()
    assert from_data.resolved(unread, tmp_path / "other", load) is unread
    with pytest.raises(ValueError, match="isn't measured yet"):
        assert unread.model.measured_std


def test_data_without_variance_have_no_preconditioning(digits, tmp_path):
    same = dataclasses.replace(digits, info=dataclasses.replace(digits.info, dequantization="none"))
    same = dataclasses.replace(same, train=np.zeros_like(np.stack([digits.train[0]] * 4)))
    config = Config(model=MlpModel(preconditioning="karras", scale_by_sigma=False))
    with pytest.raises(UserError, match=r"training examples have a standard deviation of 0\.0; accepted"):
        from_data.resolved(config, tmp_path, lambda: same)


def test_data_that_suggest_no_noise_levels_are_named_in_the_error(config, digits):
    config = config.model_copy(update={"model": config.model.model_copy(update={"sigma_end": 9.0})})
    with pytest.raises(
        UserError, match=r"config\.data\.name='digits' suggests no noise levels: .*sigma_end=9"
    ):
        suggest_noise.for_config(config, digits)
    with pytest.raises(ValueError, match="aren't chosen yet"):
        assert config.model.noise_levels


def test_noise_is_suggested_from_a_random_subset_of_many_examples(config, digits, monkeypatch):
    monkeypatch.setattr(suggest_noise, "MAX_BYTES", 4 * 64 * 100)
    found = suggest_noise.for_config(config, digits)
    assert found.num_examples == 100
    assert found.distance <= suggest_noise.for_config(config, digits).distance
    assert "1500 training examples" in suggest_noise.report(config, found, digits)
    assert "lower bound, from 100 drawn at random" in suggest_noise.report(config, found, digits)
