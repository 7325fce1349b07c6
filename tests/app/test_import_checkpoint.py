"""Runs made from official checkpoints, in both file formats."""

import functools
import lzma
from collections import OrderedDict
from pathlib import Path
from runpy import run_path

import jax
import numpy as np
import optax
import pytest
from etils import epath

from ncsn_jax import NCSNpp, training
from ncsn_jax.app import import_checkpoint as importing
from ncsn_jax.app import official_run
from ncsn_jax.app.build import build, dataset_info, optimizer
from ncsn_jax.app.config import Config, MlpModel, NcsnModel, Ncsnv2Model, Training, parse
from ncsn_jax.app.official_run import read_checkpoint
from ncsn_jax.app.trained import load_run
from ncsn_jax.data import Data, Dataset
from ncsn_jax.interop import load_torch_checkpoint
from ncsn_jax.interop.torch_names import REFINENET, UNET, official_shapes, params_to_torch
from ncsn_jax.models import VPScore
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.training.manifest import run_facts
from ncsn_jax.training.resume import restored
from tests.interop.torch_writer import as_stream, as_zip, whole

STEP, RUN_STEP = 7, 9  # of Adam, and of a run that began with a new optimizer once
FILES = {"ncsn": "ncsn_28x1_ngf8.npz", "ncsnv2": "ncsnv2_32x3_ngf8_L12.npz"}
FIRST_ID = 140204846120000  # before PyTorch 1.6 they were addresses


def moments(numbers):
    """Made-up moments of Adam for every parameter."""
    rng = np.random.default_rng(0)
    shapes = [numbers[name].shape for name in numbers["param_names"]]
    mu = [1e-3 * rng.normal(size=shape).astype(np.float32) for shape in shapes]
    return mu, [np.square(m) + np.float32(1e-8) for m in mu]


def official_checkpoint(numbers, *, ema=False, modern=False):
    """A list as the official code saves it; with a moving average it is of the second repository.

    A modern PyTorch counts the parameters from 0 and the steps by tensors.
    """
    keys = map(str, range(10_000))

    def state(names, prefix=""):
        return OrderedDict((f"{prefix}{name}", whole(numbers[name], next(keys))) for name in names)

    first = 0 if modern else FIRST_ID
    ids = list(range(first, first + len(numbers["param_names"])))
    step = whole(np.float32(STEP), "step") if modern else STEP
    optimizer = {
        "state": {
            i: {"step": step, "exp_avg": whole(m, next(keys)), "exp_avg_sq": whole(v, next(keys))}
            for i, m, v in zip(ids, *moments(numbers), strict=True)
        },
        "param_groups": [
            {
                "lr": 2e-3,
                "betas": (0.8, 0.99),
                "eps": 1e-7,
                "weight_decay": 0,
                "amsgrad": False,
                "params": ids,
            }
        ],
    }
    model = state(numbers["state_dict_names"], "module.")
    if not ema:
        return [model, optimizer]
    half = {str(name): 0.5 * numbers[name] for name in numbers["param_names"]}
    shadow = {name: whole(value, next(keys)) for name, value in half.items()}
    return [model, optimizer, 3, RUN_STEP, shadow]


@pytest.fixture(scope="module", params=[("ncsn", as_stream), ("ncsnv2", as_zip)])
def imported(request, fixture, tmp_path_factory):
    """The numbers, and a run imported from a checkpoint with them."""
    name, write = request.param
    numbers = fixture(FILES[name])
    directory = tmp_path_factory.mktemp("imported")
    checkpoint = official_checkpoint(numbers, ema=name == "ncsnv2", modern=write is as_zip)
    (directory / "file.pth").write_bytes(write(checkpoint))
    official = read_checkpoint(directory / "file.pth")
    base = Config(data=Data(name="mnist" if name == "ncsn" else "cifar10"), training=Training(num_steps=5))
    config = importing.imported_config(official, base)
    importing.import_run(official, config, directory / "run")
    return numbers, directory / "run"


def test_an_imported_run_computes_the_official_outputs(imported):
    numbers, workdir = imported
    model, variables = training.restore(workdir, ema=False)
    x, sigma = numbers["x"].transpose(0, 2, 3, 1), numbers["sigmas"][numbers["y"]]
    out = jax.jit(model.apply)(variables, x, sigma)
    expected = numbers["s"].transpose(0, 2, 3, 1)
    error = np.abs(out - expected).max((1, 2, 3)) / np.abs(expected).max((1, 2, 3))
    assert error.max() < 2e-5


def test_an_imported_run_has_the_settings_of_its_checkpoint(imported):
    numbers, workdir = imported
    config = load_run(workdir)
    assert config.model.num_filters == 8
    np.testing.assert_array_equal(np.float32(config.model.noise_levels), numbers["sigmas"])
    assert config.model.sigmas == "geometric"  # and not a list of numbers
    settings = config.training
    assert (settings.learning_rate, settings.beta1, settings.beta2, settings.epsilon) == (
        2e-3,
        0.8,
        0.99,
        1e-7,
    )
    assert settings.num_steps == (STEP if config.model.name == "ncsn" else RUN_STEP)
    assert settings.ema_rate == (0.0 if config.model.name == "ncsn" else 0.999)


def test_an_imported_run_is_restored_with_its_moving_average(imported):
    numbers, workdir = imported
    factor = 1.0 if load_run(workdir).model.name == "ncsn" else 0.5
    _, average = training.restore(workdir)
    for name, value in params_to_torch(average["params"], REFINENET).items():
        np.testing.assert_array_equal(value, factor * numbers[name])


def test_an_imported_run_takes_the_adam_step_that_torch_would_take(imported):
    """Adam as torch.optim documents it, in double precision, from the checkpoint's moments."""
    numbers, workdir = imported
    config = load_run(workdir)
    info = dataset_info(config)
    blank = np.zeros((1, *info.shape), np.uint8)
    experiment = build(config, Dataset(config.data.name, info, blank, blank))
    facts = run_facts(experiment.described.content, data=None)
    found = restored(
        epath.Path(workdir / "checkpoints"), experiment.abstract_state(), experiment.described, facts
    )
    assert found is not None
    state, step = found.state, found.record["step"]
    assert int(state.step) == step == (STEP if config.model.name == "ncsn" else RUN_STEP)
    rng = np.random.default_rng(1)
    gradient = jax.tree.map(lambda p: 1e-3 * rng.normal(size=p.shape).astype(np.float32), state.params)
    updates, _ = jax.jit(optimizer(config.training).update)(gradient, state.opt_state, state.params)
    found = params_to_torch(optax.apply_updates(state.params, updates), REFINENET)

    lr, beta1, beta2, eps, t = 2e-3, 0.8, 0.99, 1e-7, STEP + 1
    assert list(found) == numbers["param_names"].tolist()
    gradients = params_to_torch(gradient, REFINENET)
    for name, m, v in zip(numbers["param_names"], *moments(numbers), strict=True):
        g = gradients[name].astype(np.float64)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        denominator = np.sqrt(v) / np.sqrt(1 - beta2**t) + eps
        expected = numbers[name] - lr / (1 - beta1**t) * m / denominator
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-6)
        assert np.abs(found[name] - numbers[name]).max() > 1e-5


def read(tmp_path, checkpoint):
    (tmp_path / "file.pth").write_bytes(as_zip(checkpoint))
    return read_checkpoint(tmp_path / "file.pth")


KEPT = ("it has made no step", "it has 172 moments for 173 parameters")
"""Reasons for a missing state whose settings are still imported."""


@pytest.mark.parametrize(
    ("change", "dropped"),
    [
        (lambda c: c.pop(1), "the file holds no state"),
        (lambda c: c[1]["param_groups"][0].update(weight_decay=0.1), "it was made with weight_decay=0.1"),
        (lambda c: c[1]["param_groups"][0].update(amsgrad=True), "it was made with amsgrad=True"),
        (lambda c: c[1].pop("state"), "it isn't an Adam state with one group"),
        (
            lambda c: [s.pop("exp_avg") for s in c[1]["state"].values()],
            "it isn't an Adam state with one group",
        ),
        (lambda c: c[1].update(param_groups=[{}, {}]), "it isn't an Adam state with one group"),
        (
            lambda c: c[1]["param_groups"][0].update(betas=(0.9,)),
            "it isn't an Adam state with one group",
        ),
        (lambda c: c[1].update(state={}), "it has made no step"),
        (lambda c: c[1]["state"].popitem(), "it has 172 moments for 173 parameters"),
    ],
)
def test_the_state_of_another_optimizer_is_not_imported(tmp_path, official, change, dropped):
    checkpoint = official_checkpoint(official)
    change(checkpoint)
    found = read(tmp_path, checkpoint[0] if len(checkpoint) == 1 else checkpoint)
    assert found.adam == dropped
    assert found.step == 0
    assert ("learning_rate" in found.optimizer) == (dropped in KEPT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.append(1), r"found a list of 3; accepted: a list .*, or a state dict$"),
        (lambda c: c.clear(), r"found a list of 0; accepted: "),
        (lambda c: c[0].popitem(), r"but lacks refine4\.crp\.norms\.1\.embed\.weight$"),
        (
            lambda c: c[1]["state"][FIRST_ID].update(step=9),
            r"has several step counts, \[7, 9\]; accepted: one$",
        ),
        (
            lambda c: c[1]["state"][FIRST_ID].update(exp_avg=whole(np.zeros(3, np.float32), "x")),
            "moments don't have the shapes",
        ),
        (lambda c: c.extend([1, "two"]), "the step, must be a whole number, found 'two'"),
        (lambda c: c.extend([1, -2]), "the step, must be a whole number, found '-2'"),
        (lambda c: c.extend([1, 2.5]), r"the step, must be a whole number, found '2\.5'"),
        (lambda c: c.extend([1, 2, {}]), "no begin_conv.weight"),
    ],
)
def test_inconsistent_official_checkpoints_are_refused_in_one_line(tmp_path, official, change, message):
    checkpoint = official_checkpoint(official)
    change(checkpoint)
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, checkpoint)
    assert str(error.value).startswith(f"{tmp_path}/file.pth")
    assert "\n" not in str(error.value)


def test_importing_refuses_a_dataset_of_other_channels_or_odd_size(tmp_path, official):
    found = read(tmp_path, official_checkpoint(official))
    config = importing.imported_config(found, Config(data=Data(name="cifar10")))
    with pytest.raises(UserError, match=r"takes images of 1 channels, but config\.data\.name='cifar10'"):
        importing.import_run(found, config, tmp_path / "run")
    config = importing.imported_config(found, Config(data=Data(name="mnist", image_size=9)))
    with pytest.raises(UserError, match="must be even there, found 9×9"):
        importing.import_run(found, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_import_has_adams_state_and_one_average_whatever_the_config(tmp_path, official):
    found = read(tmp_path, official_checkpoint(official))
    given = {"optimizer": "muon", "ema_lengths": (0.05, 0.1), "ema_snapshot_every": 9, "weighting": "karras"}
    model = MlpModel(preconditioning="karras", scale_by_sigma=False)
    config = Config(model=model, training=Training(**given, noise="log_normal"))
    own = importing.imported_config(found, config).training
    assert (own.optimizer, own.ema_lengths, own.weighting, own.noise) == ("adam", (), "power", "discrete")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"ema_lengths": (0.05, 0.1)}}, "an official checkpoint has one average at most"),
        ({"training": {"optimizer": "muon"}}, "an official checkpoint has the state of Adam"),
        ({"training": {"weighting": "karras"}}, r"config\.model\.data_std='auto': an import reads no data"),
        ({"model": {"num_filters": 4}}, r"config\.model\.num_filters=4: the checkpoint's network has 8"),
        ({"model": {"depth": 5}}, r"config\.model\.depth=5: the checkpoint's network has 4"),
        ({"model": {"num_scales": 4}}, r"config\.model\.num_scales=4: the checkpoint's network has 10"),
        ({"model": {"sigmas": "auto"}}, "a trained network already has noise levels; omit this"),
        (
            {"training": {"num_steps": 5}},
            r"config\.training\.num_steps=5: the checkpoint is at step 7; use at least that",
        ),
    ],
)
def test_importing_refuses_settings_that_contradict_the_checkpoint(tmp_path, official, change, message):
    found = read(tmp_path, official_checkpoint(official))
    settings = importing.imported_config(found, Config()).model_dump()
    for group, values in change.items():
        settings[group] |= values
    with pytest.raises(UserError, match=message):
        importing.import_run(found, parse(settings), tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["file.pth"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[1]["param_groups"][0].update(lr=0.0), r"config\.training\.learning_rate=0\.0"),
        (
            lambda c: c[0].update({"module.sigmas": whole(np.linspace(1, 2, 10, dtype=np.float32), "s")}),
            r"config\.model\.sigmas: found .* levels that descend",
        ),
    ],
)
def test_importing_refuses_checkpoint_values_that_no_config_accepts(tmp_path, official, change, message):
    checkpoint = official_checkpoint(official)
    change(checkpoint)
    with pytest.raises(UserError, match=message):
        importing.imported_config(read(tmp_path, checkpoint), Config())


def test_half_precision_weights_and_unevenly_spaced_levels_are_imported(tmp_path, fixture):
    numbers = fixture(FILES["ncsnv2"])
    levels = np.linspace(50.0, 0.01, 12, dtype=np.float32)
    half = {name: numbers[name].astype(np.float16) for name in numbers["state_dict_names"]}
    found = read(tmp_path, {str(n): whole(v, str(n)) for n, v in (half | {"sigmas": levels}).items()})
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {np.dtype(np.float32)}
    settings = importing.imported_config(found, Config(data=Data(name="cifar10")))
    assert settings.model.noise_levels == tuple(levels.tolist())
    importing.import_run(found, settings, tmp_path / "run")
    assert load_run(tmp_path / "run") == settings


def test_importing_refuses_a_workdir_that_is_not_empty(tmp_path, official):
    found = read(tmp_path, official_checkpoint(official))
    config = importing.imported_config(found, Config())
    with pytest.raises(UserError, match="is not empty and holds no run"):
        importing.import_run(found, config, tmp_path)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    with pytest.raises(UserError, match="holds a run already"):
        importing.import_run(found, config, tmp_path)


def test_imported_levels_are_the_files_then_the_configs_then_the_official_ones(tmp_path, official):
    found = read(tmp_path, official_checkpoint(official)[0])
    base = functools.partial(importing.imported_config, found)
    assert base(Config(model=MlpModel(num_scales=3))).model == NcsnModel(num_filters=8)
    given = NcsnModel(sigma_begin=2.0, sigma_end=0.5, num_scales=10)
    assert base(Config(model=given)).model == given.model_copy(update={"num_filters": 8})
    assert base(Config(model=Ncsnv2Model(sigmas="auto"))).model == NcsnModel(num_filters=8)
    levels = np.linspace(2.0, 0.5, 10, dtype=np.float32)
    found = read(tmp_path, official_checkpoint(official)[0] | {"module.sigmas": whole(levels, "levels")})
    assert importing.imported_config(found, Config()).model.noise_levels == tuple(levels.tolist())


def test_a_moving_average_alone_takes_the_noise_levels_of_the_config(tmp_path, fixture):
    shadow = official_checkpoint(fixture(FILES["ncsnv2"]), ema=True)[4]
    found = read(tmp_path, shadow)
    with pytest.raises(UserError, match=r"so the experiment is unknown: name it with --config"):
        importing.experiment_of(found)
    given = Ncsnv2Model(sigma_begin=50.0, num_scales=12)
    config = importing.imported_config(found, Config(model=given))
    assert config.model == given.model_copy(update={"num_filters": 8})
    with pytest.raises(UserError, match=r"has no noise levels, and config\.model\.sigmas='auto'"):
        importing.imported_config(found, Config(model=Ncsnv2Model(sigmas="auto")))


def test_importing_accepts_a_workdir_that_links_to_an_empty_directory(tmp_path, official):
    found = read(tmp_path, official_checkpoint(official))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    importing.import_run(found, importing.imported_config(found, Config()), tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "elsewhere").iterdir()) == [
        "checkpoints",
        "config.json",
        "lock",
    ]
    assert training.restore(tmp_path / "run")[0].num_filters == 8


@pytest.mark.parametrize(
    ("model", "channels", "sigma_begin", "experiment"),
    [
        (NcsnModel(), 1, None, ("mnist",)),
        (NcsnModel(), 3, None, ("cifar10", "ncsn")),
        (Ncsnv2Model(), 1, None, ("mnist", "ncsnv2")),
        (Ncsnv2Model(), 3, 50.0, ("cifar10", "ncsnv2")),
        (Ncsnv2Model(), 3, 90.0, ("celeba", "ncsnv2")),
        (Ncsnv2Model(depth=5), 3, 140.0, ("lsun", "church")),
        (Ncsnv2Model(depth=5), 3, 190.0, ("lsun", "bedroom")),
        (Ncsnv2Model(depth=6), 3, 348.0, ("ffhq",)),
    ],
)
def test_official_experiments_are_recognised_by_their_network_and_levels(
    model, channels, sigma_begin, experiment
):
    params = {"begin_conv": {"kernel": np.zeros((3, 3, channels, 8))}}
    sigmas = sigma_begin and (sigma_begin, 0.01)
    network = model.build(rescaled=False)
    official = importing.OfficialRun(network, params, sigmas)
    assert importing.experiment_of(official) == experiment


@pytest.fixture(scope="module")
def score_sde(fixture, tmp_path_factory):
    """The numbers of a checkpoint that the release saved, its contents, and a run imported from it."""
    directory = tmp_path_factory.mktemp("score_sde")
    packed = Path(__file__).parents[1] / "fixtures" / "score_sde" / "checkpoint_a.pth.xz"
    (directory / "file.pth").write_bytes(lzma.decompress(packed.read_bytes()))
    official = read_checkpoint(directory / "file.pth")
    base = parse(run_path("configs/cifar10.py")["get_config"]("ncsnpp").to_dict())
    config = importing.imported_config(official, base)
    importing.import_run(official, config, directory / "run")
    return fixture("score_sde/checkpoint_a_expected.npz"), official, directory / "run"


def test_a_checkpoint_of_score_sde_has_its_settings(score_sde):
    numbers, official, workdir = score_sde
    config = load_run(workdir)
    assert importing.experiment_of(official) == ("cifar10", "ncsnpp")
    assert official.step == int(numbers["step"])
    assert official.optimizer["learning_rate"] == pytest.approx(float(numbers["optimizer_lr"]))
    assert config.training.learning_rate == 2e-4  # the file's is within the warm-up
    assert config.training.ema_rate == pytest.approx(float(numbers["ema_decay"]))
    assert config.training.ema_warmup
    levels = (config.model.sigmas, config.model.sigma_begin, config.model.sigma_end, config.model.num_scales)
    assert levels == ("geometric", 50.0, 0.01, 1000)
    line = importing.report(official, config, workdir)
    assert "the network is ve/cifar10_ncsnpp_continuous's: fir=True, skip_rescale=True" in line


def test_a_checkpoint_of_score_sde_keeps_its_average_and_its_moments(score_sde):
    numbers, official, workdir = score_sde
    names = [name.removeprefix("module.") for name in numbers["ema_order_names"].tolist()]
    _, average = training.restore(workdir)
    shadow = params_to_torch(average["params"], UNET)
    norms = [np.linalg.norm(shadow[name]) for name in names]
    np.testing.assert_allclose(norms, numbers["ema_shadow_norms"], rtol=1e-5)
    for moment, found in (("exp_avg", official.adam.mu), ("exp_avg_sq", official.adam.nu)):
        tensors = params_to_torch(found, UNET)
        np.testing.assert_allclose(
            [np.linalg.norm(tensors[name]) for name in names], numbers[f"{moment}_norms"], rtol=1e-5
        )
        assert not np.any(tensors["all_modules.0.W"])


@pytest.mark.slow
def test_an_imported_run_of_score_sde_computes_the_outputs_of_both_parameters(score_sde):
    numbers, _, workdir = score_sde
    for ema, name in ((False, "out_raw_params"), (True, "out_ema_params")):
        model, variables = training.restore(workdir, ema=ema)
        out = jax.jit(model.apply)(variables, numbers["x"].transpose(0, 2, 3, 1), numbers["sigma"])
        expected = numbers[name].transpose(0, 2, 3, 1)
        error = np.abs(out - expected).max((1, 2, 3)) / np.abs(expected).max((1, 2, 3))
        assert error.max() < 2e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["ema"]["shadow_params"].pop(), "moving average of 155 tensors doesn't have the shapes"),
        (lambda c: c["ema"].update(decay=None), "its 'ema' has the decay 'None'; accepted: a number below 1"),
        (lambda c: c.update(ema={}), "no 'model' and 'ema' with 'shadow_params'"),
        (lambda c: c["model"].pop("module.all_modules.8.NIN_3.W"), "not a state dict of an NCSN|lacks"),
        (lambda c: c["model"].pop("module.all_modules.4.Conv_1.bias"), "has no all_modules.4.Conv_1.bias"),
        (lambda c: c.update(step="four"), "its 'step' must be a whole number, found 'four'"),
    ],
)
def test_inconsistent_checkpoints_of_score_sde_are_refused_in_one_line(
    score_sde, monkeypatch, tmp_path, change, message
):
    checkpoint = load_torch_checkpoint(score_sde[2].parent / "file.pth")
    change(checkpoint)
    monkeypatch.setattr(official_run, "load_torch_checkpoint", lambda path: checkpoint)
    with pytest.raises(UserError, match=message) as error:
        read_checkpoint(tmp_path / "file.pth")
    assert "\n" not in str(error.value)


def test_networks_of_the_vp_process_are_imported_as_scores(tmp_path):
    model = NCSNpp(
        4, (1,), 1, embedding="positional", fir=False, progressive_input="none", scale_by_sigma=False
    )
    x = jax.ShapeDtypeStruct((1, 4, 4, 3), np.float32)
    shapes = official_shapes(jax.eval_shape(model.init, jax.random.key(0), x, np.ones(1))["params"], UNET)
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    found = read_checkpoint_of(tmp_path, tensors | {"sigmas": np.geomspace(50, 0.01, 9)})
    base = parse(run_path("configs/cifar10.py")["get_config"]("ncsnpp").to_dict())
    config = importing.imported_config(found, base)
    assert (config.model.process, config.model.sigma_begin, config.model.sigma_end) == ("vp", 76.08, 0.005243)
    assert (config.training.noise, config.training.reduce_mean) == ("continuous", True)
    given = parse(run_path("configs/cifar10.py")["get_config"]("ncsnpp_discrete").to_dict())
    subvp = given.model_copy(update={"model": given.model.model_copy(update={"process": "subvp"})})
    assert importing.imported_config(found, subvp).model.process == "subvp"
    assert importing.experiment_of(found) == ("cifar10", "ncsnpp_discrete")
    importing.import_run(found, config, tmp_path / "run")
    restored, variables = training.restore(tmp_path / "run")
    assert isinstance(restored, VPScore)
    assert not restored.rescaled
    inner = params_to_torch(variables["params"]["network"], UNET)
    assert all(np.array_equal(inner[name], tensors[name]) for name in tensors)


def read_checkpoint_of(tmp_path, tensors):
    return read(tmp_path, {name: whole(value, name) for name, value in tensors.items()})
