import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import data
from ncsn_jax.app import config as run_config
from ncsn_jax.app.build import build, network
from ncsn_jax.app.config import Config, MlpModel, NcsnModel
from ncsn_jax.app.overridable import overridable
from ncsn_jax.app.trained import load_run
from ncsn_jax.data.points import POINTS
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.training.description import changes, flatten
from ncsn_jax.training.parallel import pmap_step, replicate

CONFIGS = [
    ("digits", "digits", ()),
    ("digits", "digits", ("v2",)),
    ("digits", "digits", ("ncsnpp",)),
    ("digits", "digits", ("best",)),
    ("digits", "digits", ("conditional",)),
    ("mnist", "mnist", ()),
    ("mnist", "mnist", ("paper",)),
    ("mnist", "mnist", ("small",)),
    ("mnist", "mnist", ("conditional",)),
    ("mnist", "mnist", ("hour",)),
    ("mnist", "mnist", ("ncsnv2",)),
    ("two_gaussians", "toy", ()),
    *((name, "toy", (name,)) for name in POINTS),
    ("cifar10", "cifar10", ()),
    ("cifar10", "cifar10", ("ncsn",)),
    ("cifar10", "cifar10", ("ncsnv2",)),
    *(("cifar10", "cifar10", (name,)) for name in ("ncsnpp", "ncsnpp_deep", "ncsnpp_discrete", "ddpm")),
    ("cifar10", "cifar10", ("conditional",)),
    ("celeb_a", "celeba", ()),
    ("celeb_a", "celeba", ("ncsn",)),
    ("celeb_a", "celeba", ("ncsnv2",)),
    ("celeb_a", "celeba", ("ncsnpp",)),
    ("svhn_cropped", "svhn", ()),
    ("folder", "lsun", ()),
    ("folder", "lsun", ("church",)),
    ("folder", "lsun", ("bedroom",)),
    ("folder", "lsun", ("tower",)),
    ("folder", "lsun", ("church_ncsnpp",)),
    ("folder", "lsun", ("bedroom_ncsnpp",)),
    ("folder", "ffhq", ()),
    ("folder", "ffhq", ("ncsnpp",)),
    ("folder", "ffhq", ("ncsnpp_1024",)),
    ("folder", "celebahq", ()),
    ("folder", "celebahq", ("1024",)),
    ("arrays", "arrays", ()),
    ("folder", "folder", ()),
    ("folder", "folder", ("64",)),
]


def load(file, arguments):
    return run_config.parse(importlib.import_module(f"configs.{file}").get_config(*arguments).to_dict())


def test_every_config_file_is_tested():
    files = {path.stem for path in Path("configs").glob("*.py")} - {"overridable"}
    assert files == {file for _, file, _ in CONFIGS}


@pytest.mark.parametrize(("dataset", "file", "arguments"), CONFIGS)
def test_every_config_is_valid_and_unchanged_by_saving(dataset, file, arguments, tmp_path):
    config_dict = importlib.import_module(f"configs.{file}").get_config(*arguments)
    config = run_config.parse(config_dict.to_dict())
    assert config.data.name == dataset
    (tmp_path / "config.json").write_text(config.model_dump_json())
    assert load_run(tmp_path) == config


def step_at_reduced_width(config):
    """The config's experiment with the narrowest network on random data; its training step, and a batch."""
    width = {"num_features": 4} if config.model.name == "mlp" else {"num_filters": 2}
    if config.model.name == "ncsnpp":
        levels = (1,) * len(config.model.multipliers)  # the coarsest has attention
        width = {"num_filters": 4, "num_groups": None, "num_res_blocks": 1, "multipliers": levels}
    narrow = config.model.model_copy(update=width | {"sigmas": "geometric", "data_std": 0.5})
    # The first step of a warm-up has a learning rate of zero.
    training = config.training.model_copy(update={"warmup_steps": 0})
    config = config.model_copy(update={"model": narrow, "training": training})
    has_classes = config.data.condition == "class"
    if has_classes:
        facts = {"condition": data.ConditionFacts(kind="class", size=10)}
        config = config.model_copy(update={"data": config.data.model_copy(update={"conditions": facts})})
    info = data.describe(config.data)
    stored = np.uint8 if info.num_values else np.float32
    x = np.random.default_rng(0).integers(0, 17, (1, *info.shape)).astype(stored)
    classes = data.Conditions({"condition": np.array([3])}, facts) if has_classes else None
    dataset = data.Dataset(config.data.name, info, x, x, train_conditions=classes)
    examples = {"x": x[None], "condition": np.array([[3]])} if has_classes else x[None]
    batch = {"examples": examples, "index": np.zeros((1, 1), int), "weight": np.ones((1, 1), bool)}
    experiment = build(config, dataset)
    step = pmap_step(
        loss=experiment.loss(training=True),
        optimizer=experiment.optimizer,
        ema_rate=config.training.ema_rate,
        devices=jax.devices()[:1],
    )
    return experiment, step, batch


@pytest.mark.parametrize(
    ("file", "arguments"),
    [
        ("toy", ()),
        ("mnist", ("small",)),
        *(
            pytest.param(file, arguments, marks=pytest.mark.slow)
            for file, arguments in (
                ("digits", ()),
                ("cifar10", ("ncsn",)),
                ("cifar10", ("ncsnv2",)),
                ("cifar10", ("ddpm",)),
                ("lsun", ("church",)),
                ("ffhq", ()),
                ("cifar10", ("ncsnpp",)),
                ("lsun", ("church_ncsnpp",)),
            )
        ),
    ],
)
def test_training_step_of_every_network_accepts_the_shapes_of_its_data(file, arguments):
    experiment, step, batch = step_at_reduced_width(load(file, arguments))
    state = experiment.abstract_state()
    after, values = jax.eval_shape(step, state, batch, jax.random.key(0))
    assert jax.tree.map(jnp.shape, after.params) == jax.tree.map(jnp.shape, state.params)
    assert values["loss"].shape == ()


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "file", "arguments"), CONFIGS)
def test_every_config_takes_a_training_step(dataset, file, arguments):
    experiment, step, batch = step_at_reduced_width(load(file, arguments))
    initial = jax.device_get(experiment.initial_state())  # the step donates its arguments
    state, values = step(replicate(initial, jax.devices()[:1]), batch, jax.random.key(0))
    assert int(state.step) == 1
    assert np.isfinite(values["loss"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    changed = [
        np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (initial.params, state.params)), strict=True)
    ]
    assert np.mean(changed) > 0.5  # embeddings of other levels, biases before a plain norm stay


@pytest.mark.parametrize(
    ("file", "arguments", "expected"),
    [
        ("cifar10", ("ncsnv2",), (32, 4, 50.0, 232, 6.2e-6, 5, 128, 1e-4)),
        ("celeba", ("ncsnv2",), (64, 4, 90.0, 500, 3.3e-6, 5, 128, 1e-4)),
        ("lsun", ("church",), (96, 5, 140.0, 788, 4.9e-6, 4, 128, 1e-4)),
        ("lsun", ("bedroom",), (128, 5, 190.0, 1086, 1.8e-6, 3, 128, 1e-4)),
        ("lsun", ("tower",), (128, 5, 190.0, 1086, 1.8e-6, 3, 128, 1e-4)),
        ("ffhq", (), (256, 6, 348.0, 2311, 9e-7, 3, 32, 1e-3)),
    ],
)
def test_ncsnv2_configs_have_the_papers_values(file, arguments, expected):
    config = load(file, arguments)
    model, training, sampling = config.model, config.training, config.sampling
    assert expected == (
        data.describe(config.data).shape[0],
        model.depth,
        model.sigma_begin,
        model.num_scales,
        sampling.step_size,
        sampling.steps_per_scale,
        training.batch_size,
        training.learning_rate,
    )
    assert (model.name, model.num_filters, model.sigma_end) == ("ncsnv2", 128, 0.01)
    assert (training.ema_rate, training.epsilon, sampling.denoise) == (0.999, 1e-8, True)
    assert (config.data.dequantization, config.data.random_flip) == ("none", True)


NCSNPP = [  # σ₁, levels, batch, average, steps, dropout, r, parameters, of the spec's table
    ("cifar10", "ncsnpp", (50.0, 1000, 128, 0.999, 1_300_001, 0.1, 0.16), 62_758_915),
    ("cifar10", "ncsnpp_deep", (50.0, 1000, 128, 0.999, 950_001, 0.1, 0.16), 107_587_075),
    ("cifar10", "ncsnpp_discrete", (50.0, 1000, 128, 0.999, 1_300_001, 0.1, 0.16), 62_693_251),
    ("cifar10", "ddpm", (50.0, 1000, 128, 0.999, 1_300_001, 0.1, 0.16), 35_218_947),
    ("celeba", "ncsnpp", (90.0, 1000, 128, 0.999, 1_300_001, 0.1, 0.17), 62_693_251),
    ("lsun", "church_ncsnpp", (380.0, 2000, 64, 0.999, 2_400_001, 0.0, 0.075), 65_574_549),
    ("lsun", "bedroom_ncsnpp", (378.0, 2000, 64, 0.999, 2_400_001, 0.0, 0.075), 65_574_549),
    ("ffhq", "ncsnpp", (348.0, 2000, 64, 0.999, 2_400_001, 0.0, 0.075), 65_574_549),
    ("ffhq", "ncsnpp_1024", (1348.0, 2000, 8, 0.9999, 2_400_001, 0.0, 0.15), 105_785_896),
    ("celebahq", "256", (348.0, 2000, 64, 0.999, 2_400_001, 0.0, 0.075), 65_574_549),
    ("celebahq", "1024", (1348.0, 2000, 8, 0.9999, 2_400_001, 0.0, 0.15), 105_785_896),
]


@pytest.mark.parametrize(("file", "argument", "expected"), [case[:3] for case in NCSNPP])
def test_configs_of_ncsnpp_have_the_published_values(file, argument, expected):
    config = load(file, (argument,))
    model, training, sampling = config.model, config.training, config.sampling
    assert expected == (
        model.sigma_begin,
        model.num_scales,
        training.batch_size,
        training.ema_rate,
        training.num_steps,
        model.dropout,
        sampling.snr,
    )
    is_discrete = argument in ("ncsnpp_discrete", "ddpm") or file == "celeba"
    assert (model.name, model.sigma_end, model.is_discrete) == ("ncsnpp", 0.01, is_discrete)
    assert training.noise == ("discrete" if is_discrete else "continuous")
    assert (training.learning_rate, training.warmup_steps, training.gradient_clip) == (2e-4, 5000, 1.0)
    assert training.ema_warmup
    assert training.reduce_mean == ((file, argument) == ("ffhq", "ncsnpp_1024"))
    assert (sampling.method, sampling.corrector_steps, sampling.denoise) == ("pc", 1, True)
    assert (config.data.dequantization, config.data.random_flip) == ("none", True)
    side = data.describe(config.data).shape[0]
    assert model.image_size == side


@pytest.mark.parametrize(
    ("file", "argument", "count"),
    [pytest.param(*c[:2], c[3], marks=[pytest.mark.slow] if i else []) for i, c in enumerate(NCSNPP)],
)
def test_published_networks_have_the_published_number_of_parameters(file, argument, count):
    config = load(file, (argument,))
    x = jax.ShapeDtypeStruct((1, config.model.image_size, config.model.image_size, 3), jnp.float32)
    shapes = jax.eval_shape(network(config).init, jax.random.key(0), x, jnp.ones(1))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize(("file", "crop"), [("cifar10", None), ("celeba", 140), ("svhn", None)])
def test_ncsn_configs_have_the_papers_values(file, crop):
    config = load(file, ())
    assert config.model == NcsnModel(num_filters=128)
    assert (config.training, config.sampling) == (Config().training, Config().sampling)
    assert config.data.crop == crop
    assert data.describe(config.data).shape == (32, 32, 3)


def test_default_mnist_config_has_the_papers_values():
    config = run_config.parse(importlib.import_module("configs.mnist").get_config().to_dict())
    assert config == Config()
    assert config.model.num_filters == 64
    assert config.model.noise_levels[0] == 1.0
    assert config.model.noise_levels[-1] == pytest.approx(0.01)
    assert len(config.model.noise_levels) == 10
    training = config.training
    assert (training.batch_size, training.learning_rate, training.ema_rate) == (128, 1e-3, 0.0)
    sampling = config.sampling
    assert (sampling.steps_per_scale, sampling.step_size) == (100, 2e-5)
    assert not sampling.denoise


def test_noise_levels_can_be_listed_on_the_command_line(tmp_path):
    config_dict = overridable(Config())
    config_dict.model.sigmas = "1.0,0.5,0.1"  # as on the command line
    config = run_config.parse(config_dict.to_dict())
    assert config.model.noise_levels == (1.0, 0.5, 0.1)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    assert load_run(tmp_path) == config


def test_every_config_field_can_be_overridden():
    config_dict = overridable(Config())
    values = flatten(config_dict.to_dict())
    for name, value in flatten(Config().model_dump()).items():
        group, _, field = name.rpartition(".")
        owner = config_dict[group] if group else config_dict
        assert owner.get_type(field) is not type(None), name
        assert values[name] == value


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
            {"model": {"sigmas": "manual"}},
            r"config\.model\.sigmas: found 'manual'; accepted: 'geometric', 'auto'",
        ),
        (
            {"model": {"sigmas": [1.0, 2.0]}},
            r"config\.model\.sigmas: found '\[1\.0, 2\.0\]'; .* that descend",
        ),
        ({"model": {"sigmas": [1.0, 1.0 - 1e-12]}}, r"sigmas: found .* in single precision"),
        ({"model": {"sigmas": "1.0,-0.5"}}, r"sigmas: found '1\.0,-0\.5'; accepted"),
        ({"model": {"sigmas": 3}}, r"config\.model\.sigmas: found '3'; accepted"),
        (
            {"data": {"dequantization": "gaussian", "transform": "logit"}},
            r"config\.data: transform='logit' needs",
        ),
        (
            {"training": {"noise": "continuous"}},
            r"config: training\.noise='continuous' needs a network for any σ, found model\.name='ncsn'",
        ),
        (
            {"training": {"noise": "log_normal"}},
            r"config: training\.noise='log_normal' needs a network for any σ, found model\.name='ncsn'",
        ),
        *(
            (
                {"model": {"preconditioning": "karras", **model}},
                rf"config\.model: preconditioning='karras' {why}",
            )
            for model, why in (
                ({"name": "ncsn"}, "needs a network that takes any label"),
                ({"name": "ncsnv2"}, "needs a network that takes any label"),
                ({"name": "ncsnpp"}, "would divide .* found scale_by_sigma=True; accepted: False"),
                ({"name": "mlp"}, "would divide"),
                (
                    {"name": "ncsnpp", "scale_by_sigma": False, "embedding": "positional"},
                    "needs a network that takes any label",
                ),
            )
        ),
        *(
            (settings, r"config: .* are made of training\.ema_lengths, found none; leave both out")
            for settings in ({"sampling": {"ema_length": 0.1}}, {"evaluation": {"ema_lengths": (0.1,)}})
        ),
        *(
            ({"model": {"data_std": std}}, r"config\.model\.data_std: found '.*'; accepted: 'auto' or a pos")
            for std in (0.0, "-1", "wide", [0.5])
        ),
        (
            {"sampling": {"method": "heun"}},
            r"config: sampling\.method='heun' needs scores at any σ, found model\.name='ncsn'",
        ),
        (
            {"sampling": {"method": "consistent", "num_levels": 20}},
            r"config: sampling\.num_levels=20: model\.name='ncsn' embeds discrete levels",
        ),
        (
            {"sampling": {"method": "ode"}, "model": {"name": "mlp", "num_scales": 1}},
            r"config: sampling\.method='ode' needs at least two noise levels, found one",
        ),
        ({"sampling": {"eta": 0.0}}, r"config\.sampling\.eta=0\.0: .* greater than 0"),
        ({"sampling": {"num_levels": 1}}, r"config\.sampling\.num_levels=1: .* greater than or equal to 2"),
        ({"restoration": {"known": 1.0}}, r"config\.restoration\.known=1\.0: .* less than 1"),
        ({"restoration": {"factor": 1}}, r"config\.restoration\.factor=1: .* greater than or equal to 2"),
        ({"model": {"depth": 7}}, r"config\.model\.depth=7: input should be 4, 5 or 6"),
        ({"data": {"fit": "cut"}}, r"config\.data\.fit='cut': input should be 'crop', 'stretch' or 'pad'"),
        ({"model": {"name": "ncsn", "num_filters": 1}}, r"num_filters=1: .* greater than or equal to 2"),
        ({"model": {"name": "ncsn", "num_scales": 0}}, r"config\.model\.num_scales=0: .* greater than 0"),
        (
            {"model": {"name": "ncsn", "sigma_begin": 0.01, "sigma_end": 1.0}},
            r"config\.model: noise levels must descend, .* found sigma_begin=0\.01, sigma_end=1\.0",
        ),
        (
            {"model": {"name": "mlp", "num_filters": 8}},
            r"config\.model\.num_filters=8: extra inputs are not permitted",
        ),
        (
            {"model": {"name": "mpl"}},
            r"config\.model=.*'mpl'.* must be 'ncsn', 'ncsnv2', 'ncsnpp', 'mlp', or an import path",
        ),
        (
            {"model": 3},
            r"config\.model=3: its name must be 'ncsn', 'ncsnv2', 'ncsnpp', 'mlp', or an import path",
        ),
        ({"model": {"name": "mlp", "mlp": 3}}, r"config\.model\.mlp=3: extra inputs"),
        (
            {"training": {"objective": "explicit"}},
            r"config\.training\.objective: found 'explicit'; accepted: 'denoising', 'sliced', or an import",
        ),
        ({"training": {"projection": "normal"}}, r"projection='normal': .*'rademacher', 'gaussian'"),
        ({"sampling": {"steps_per_scale": 0}}, r"steps_per_scale=0: .* greater than 0"),
        ({"sampling": {"temperature": -1.0}}, r"temperature=-1\.0: .* greater than or equal to 0"),
    ],
)
def test_invalid_settings_are_refused_with_the_value_found(settings, message):
    with pytest.raises(UserError, match=message) as error:
        run_config.parse(settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[1, 2", "[]", "3", json.dumps({"modle": {}})])
def test_a_file_that_is_not_a_config_is_refused(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is not this program's config"):
        load_run(tmp_path)


def changes_between(old, new):
    return changes(flatten(old.model_dump()), flatten(new.model_dump()))


def test_config_changes_list_the_settings_that_differ():
    other = Config().model_copy(update={"seed": 5})
    assert changes_between(Config(), other) == {"seed": (0, 5)}


def test_config_changes_list_the_settings_that_only_one_config_has():
    found = changes_between(Config(), Config(model=MlpModel(num_features=32)))
    assert found["model.name"] == ("ncsn", "mlp")
    assert found["model.num_filters"] == (64, None)
    assert found["model.num_features"] == (None, 32)


def test_a_missing_model_name_defaults_to_ncsn():
    assert run_config.parse({"model": {"num_filters": 16}}).model.name == "ncsn"


def test_a_config_with_the_old_name_of_a_renamed_setting_is_read():
    settings = Config().model_dump()
    del settings["training"]["eval_examples"]
    settings["training"]["eval_images"] = 7
    assert run_config.parse(settings).training.eval_examples == 7
