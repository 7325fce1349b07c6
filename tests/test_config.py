import importlib
import json

import pytest

from configs.overridable import overridable
from ncsn_jax import config as run_config
from ncsn_jax.config import Config, MlpModel
from ncsn_jax.data.points import POINTS
from ncsn_jax.errors import UserError

CONFIGS = [
    ("digits", "digits", ()),
    ("mnist", "mnist", ()),
    ("mnist", "mnist", ("paper",)),
    ("mnist", "mnist", ("small",)),
    ("two_gaussians", "toy", ()),
    *((name, "toy", (name,)) for name in POINTS),
]


@pytest.mark.parametrize(("dataset", "file", "arguments"), CONFIGS)
def test_every_config_is_valid_and_survives_its_file(dataset, file, arguments, tmp_path):
    config_dict = importlib.import_module(f"configs.{file}").get_config(*arguments)
    config = run_config.parse(config_dict.to_dict())
    assert config.data.name == dataset
    (tmp_path / "config.json").write_text(config.model_dump_json())
    assert run_config.load(tmp_path / "config.json") == config


def test_mnist_is_the_papers_experiment():
    config = run_config.parse(importlib.import_module("configs.mnist").get_config().to_dict())
    assert config == Config()
    assert config.model.num_filters == 64
    assert config.model.sigmas[0] == 1.0
    assert config.model.sigmas[-1] == pytest.approx(0.01)
    assert len(config.model.sigmas) == 10
    training = config.training
    assert (training.batch_size, training.learning_rate, training.ema_rate) == (128, 1e-3, 0.0)
    sampling = config.sampling
    assert (sampling.steps_per_scale, sampling.step_size) == (100, 2e-5)
    assert not sampling.denoise


def test_every_field_can_be_overridden():
    config_dict = overridable(Config())
    for name, value in run_config.flatten(Config().model_dump()).items():
        group, _, field = name.rpartition(".")
        owner = config_dict[group] if group else config_dict
        assert owner.get_type(field) is not type(None), name
        assert owner[field] == value


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trainning": {}}, r"config\.trainning=\{\}: extra inputs"),
        ({"training": {"batch_size": 0}}, r"config\.training\.batch_size=0: .* greater than 0"),
        ({"training": {"num_steps": -5}}, r"config\.training\.num_steps=-5: .* greater than 0"),
        ({"training": {"batch_size": "64"}}, r"batch_size='64': input should be a valid integer"),
        ({"training": {"learning_rate": float("nan")}}, r"learning_rate=nan: .* finite"),
        ({"training": {"ema_rate": 1.0}}, r"ema_rate=1\.0: .* less than 1"),
        ({"training": {"schedule": "step"}}, r"schedule='step': .*'constant' or 'cosine'"),
        (
            {"training": {"schedule": "cosine", "num_steps": 10, "warmup_steps": 10}},
            r"warmup_steps must be below num_steps=10, found 10",
        ),
        ({"model": {"name": "ncsn", "num_filters": 1}}, r"num_filters=1: .* greater than or equal to 2"),
        ({"model": {"name": "ncsn", "num_scales": 0}}, r"config\.model\.num_scales=0: .* greater than 0"),
        (
            {"model": {"name": "ncsn", "sigma_begin": 0.01, "sigma_end": 1.0}},
            r"config\.model: noise levels descend, .* found sigma_begin=0\.01, sigma_end=1\.0",
        ),
        (
            {"model": {"name": "mlp", "num_filters": 8}},
            r"config\.model\.num_filters=8: extra inputs are not permitted",
        ),
        ({"model": {"name": "mpl"}}, r"config\.model=.*'mpl'.* must be 'ncsn' or 'mlp'"),
        ({"model": 3}, r"config\.model=3: its name must be 'ncsn' or 'mlp'"),
        ({"model": {"name": "mlp", "mlp": 3}}, r"config\.model\.mlp=3: extra inputs"),
        ({"training": {"objective": "explicit"}}, r"objective='explicit': .*'denoising' or 'sliced'"),
        ({"training": {"projection": "normal"}}, r"projection='normal': .*'rademacher', 'gaussian'"),
        ({"sampling": {"steps_per_scale": 0}}, r"steps_per_scale=0: .* greater than 0"),
        ({"sampling": {"temperature": -1.0}}, r"temperature=-1\.0: .* greater than or equal to 0"),
    ],
)
def test_bad_settings_are_named_with_what_was_found(settings, message):
    with pytest.raises(UserError, match=message) as error:
        run_config.parse(settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[1, 2", "[]", "3", json.dumps({"modle": {}})])
def test_a_file_that_is_no_config_is_refused(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is not this program's config"):
        run_config.load(tmp_path / "config.json")


def test_changes_name_what_differs():
    other = Config().model_copy(update={"seed": 5})
    assert run_config.changes(Config(), other) == {"seed": (0, 5)}


def test_changes_name_what_only_one_config_has():
    found = run_config.changes(Config(), Config(model=MlpModel(num_features=32)))
    assert found["model.name"] == ("ncsn", "mlp")
    assert found["model.num_filters"] == (64, None)
    assert found["model.num_features"] == (None, 32)


def test_what_is_missing_takes_its_default():
    assert run_config.parse({"model": {"num_filters": 16}}).model.name == "ncsn"


def test_a_config_from_before_a_setting_was_renamed_is_read():
    settings = Config().model_dump()
    del settings["training"]["eval_examples"]
    settings["training"]["eval_images"] = 7
    assert run_config.parse(settings).training.eval_examples == 7
