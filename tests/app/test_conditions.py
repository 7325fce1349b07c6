"""Conditions on the command line: samples, guidance, restorations, evaluation, and one-line errors."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import main
from ncsn_jax import as_score_fn, data
from ncsn_jax.app.conditions import EACH, asked_of, asked_of_restorations, plain
from ncsn_jax.app.config import Config, NcsnppModel, Sampling, Training, parse
from ncsn_jax.app.trained import load_run
from ncsn_jax.data import ConditionFacts, Conditions, Data
from ncsn_jax.evaluation.results import read
from ncsn_jax.runtime import chains, viz
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.samplers import Sampler
from tests.tiny import ConditionalScore

FLAGS = (
    "--config=tests/tiny_digits.py",
    "--config.model.name=tests.tiny:ConditionalScore",
    "--config.data.condition=class",
    *("--config.training.schedule=constant", "--config.training.batch_size=8"),
    *("--config.training.checkpoint_every=2", "--config.training.eval_every=2"),
    *("--config.training.preview_every=4", "--config.training.preview_samples=4"),
    *("--config.sampling.num_samples=12", "--config.sampling.steps_per_scale=2"),
)
CLASSES = tuple("0123456789")
FACTS = {"condition": ConditionFacts(kind="class", size=10, names=CLASSES)}


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    """The config of tests/tiny_digits.py with the conditional network."""
    path = tmp_path_factory.mktemp("config") / "conditional.py"
    path.write_text(
        "from tests.tiny_digits import get_config as tiny\n"
        "def get_config():\n"
        "    config = tiny()\n"
        "    config.model.fields = {}\n"
        "    return config\n"
    )
    return path


@pytest.fixture(scope="module")
def run(config_file, data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("conditional") / "run"
    flags = [f"--config={config_file}", *FLAGS[1:], "--config.training.unconditional=0.2"]
    own = [f"--workdir={workdir}", f"--config.data.data_dir={data_dir}", "--config.training.num_steps=4"]
    assert main.main(["main.py", *flags, *own]) == 0
    return workdir


def sample(run, name, *flags):
    assert main.main(["main.py", "--mode=sample", f"--workdir={run}", f"--out={name}", *flags]) == 0
    directory = run / "samples" / name
    return np.load(directory / "samples.npy"), np.load(directory / "conditions.npy")


def test_a_run_records_the_names_of_its_classes_and_draws_the_shares_of_the_data(run, capsys):
    recorded = json.loads((run / "config.json").read_text())["data"]["conditions"]["condition"]
    assert recorded["names"] == list(CLASSES)
    sample(run, "shares")
    assert "conditions are drawn from the training data" in capsys.readouterr().err
    dataset = data.load(load_run(run).data)
    asked = asked_of(load_run(run), lambda: dataset.train_conditions)
    counts = np.bincount(asked.of(np.arange(4000)), minlength=10)
    shares = np.bincount(dataset.classes()[0], minlength=10) / 1500
    assert np.abs(counts / 4000 - shares).max() < 4 * np.sqrt(0.1 * 0.9 / 4000)


def test_each_sample_is_of_the_class_asked_for_and_of_its_key_alone(run):
    each, classes = sample(run, "each", "--config.sampling.condition=each")
    np.testing.assert_array_equal(classes, np.arange(12) % 10)
    seven, classes = sample(run, "seven", "--config.sampling.condition=7", "--config.sampling.batch_size=5")
    assert set(classes) == {7}
    # Another batch size, and neighbours with other conditions.
    np.testing.assert_allclose(seven[7], each[7], rtol=1e-5, atol=1e-6)
    assert np.abs(seven[6] - each[6]).max() > 1e-4
    np.save(run / "some.npy", np.array([7, 3], np.int64))
    some, classes = sample(run, "file", f"--config.sampling.condition={run / 'some.npy'}")
    np.testing.assert_array_equal(classes, [7, 3] * 6)
    np.testing.assert_allclose(some[6], seven[6], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def score_fn():
    model, x, sigma = ConditionalScore(), np.ones((1, 8, 8, 1), np.float32), np.ones(1, np.float32)
    return as_score_fn(model, model.init(jax.random.key(0), x, sigma))


def draw(score_fn, sampler, word, weight, count=8):
    """The first samples, guided towards a condition."""
    asked = asked_of(config_of(FACTS, word), lambda: None)
    recipe = chains.Recipe(sampler, (8, 8, 1), conditions=asked.of, guidance=chains.Guidance(weight))
    (numbers,) = chains.batches(count, count)
    *_, last = chains.draw(score_fn, recipe, numbers)
    return chains.rows(last)[:count]


def euler(key, score_fn, x, sigma, next_sigma):
    """A step of Euler's method with noise."""
    return x + 0.1 * score_fn(x, sigma) + 0.1 * jax.random.normal(key, x.shape)


def test_one_compiled_program_serves_all_conditions_and_weights(score_fn):
    traces = []

    def step(*arguments):
        traces.append(1)
        return euler(*arguments)

    sampler = Sampler(step, (1.0, 0.5, 0.1))
    drawn = [draw(score_fn, sampler, *given) for given in (("0", 2.0), ("5", 2.0), (EACH, 3.0))]
    assert len(traces) == 1
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-6


def test_the_number_of_devices_changes_no_sample(score_fn, local_devices):
    sampler, drawn = Sampler(euler, (1.0, 0.5, 0.1)), []
    for devices in (1, 4):
        local_devices(devices)
        drawn.append(draw(score_fn, sampler, EACH, 2.0, count=7))
    np.testing.assert_allclose(*drawn, rtol=1e-5, atol=1e-6)


def test_the_grid_has_a_labelled_row_for_each_class(run):
    flags = ["--config.sampling.condition=each", "--num_samples=25"]
    sample(run, "labelled", *flags)
    with Image.open(run / "samples" / "labelled" / "grid.png") as image:
        assert image.height > 4 * image.width  # two columns, ten rows; five samples aren't shown


def test_guidance_moves_samples_away_from_the_unconditional_ones(run):
    chosen = "--config.sampling.condition=3"
    one, _ = sample(run, "w1", chosen)
    two, _ = sample(run, "w2", chosen, "--config.sampling.guidance=2.0")
    argv = [
        "main.py",
        "--mode=sample",
        f"--workdir={run}",
        "--out=w0",
        chosen,
        "--config.sampling.guidance=0.0",
    ]
    assert main.main(argv) == 0
    zero = np.load(run / "samples" / "w0" / "samples.npy")
    assert not (run / "samples" / "w0" / "conditions.npy").exists()
    along = (one - zero).ravel()
    assert np.dot((two - one).ravel(), along) > 0.5 * np.dot(along, along)
    # Outside of the interval there is no guidance.
    outside = "--config.sampling.guidance_interval=7.0,9.0"
    same, _ = sample(run, "outside", chosen, "--config.sampling.guidance=2.0", outside)
    np.testing.assert_allclose(same, one, rtol=1e-5, atol=1e-6)


def height(path):
    with Image.open(path) as image:
        return image.height


SLOW_MODES = [pytest.param(mode, marks=pytest.mark.slow) for mode in ("denoise", "interpolate")]


@pytest.mark.parametrize("mode", ["inpaint", *SLOW_MODES])
def test_restorations_and_interpolation_take_conditions(run, mode):
    flags = ["--images=0:2", "--num_samples=10", "--config.restoration.noise=0.3"]
    if mode == "interpolate":
        flags = ["--num_samples=10", "--config.restoration.num_interpolations=2"]
    results = []
    for name, own in {
        "null": [],
        "each": ["--config.sampling.condition=each"],
        "guided": ["--config.sampling.condition=4", "--config.sampling.guidance=3.0"],
    }.items():
        argv = ["main.py", f"--mode={mode}", f"--workdir={run}", f"--out={name}", *flags, *own]
        assert main.main(argv) == 0
        results.append(np.load(run / mode / name / "samples.npy"))
    assert np.isfinite(results).all()
    null, guided = (height(run / mode / name / "grid.png") for name in ("null", "guided"))
    # Labels take room; interpolations without a condition have drawn ones.
    assert (null < guided) == (mode != "interpolate")
    assert np.abs(results[0] - results[1]).max() > 1e-4
    assert np.abs(results[1] - results[2]).max() > 1e-4


def test_a_path_through_latents_has_one_condition(run, capsys):
    flags = [
        "--images=0:2",
        "--config.restoration.through=latents",
        "--config.restoration.num_interpolations=2",
    ]
    argv = ["main.py", "--mode=interpolate", f"--workdir={run}", *flags]
    assert main.main([*argv, "--config.sampling.condition=each"]) == 1
    assert "a path through latents has one condition" in capsys.readouterr().err
    assert main.main([*argv, "--config.sampling.condition=2"]) == 0


def test_evaluation_measures_agreement_and_loss_with_conditions(run, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("ncsn_jax.evaluation.classifier.NUM_STEPS", 20)
    metrics = "agreement,class_frechet,likelihood,loss"
    argv = ["main.py", "--mode=evaluate", f"--workdir={run}", "--steps=4", "--num_samples=40"]
    argv += [f"--config.evaluation.metrics={metrics}", "--config.evaluation.likelihood_examples=8"]
    argv += [
        "--config.evaluation.loss_examples=8",
        "--config.sampling.rtol=1e-2",
        "--config.sampling.atol=1e-2",
    ]
    assert main.main([*argv, "--config.sampling.condition=each"]) == 0
    subject = read(run / "eval" / "step_00000004.json")
    agreement = subject.results["agreement with the class-40 (classifier)"]
    by_class = subject.metrics["agreement"].details["by class"]
    assert agreement.value == pytest.approx(np.mean(list(by_class.values())))
    assert 0 <= agreement.value <= 1
    assert 0.1 < agreement.real <= 1
    assert subject.results["FD-40 (classifier) within classes"].value > 0
    assert "agreement with the class" in capsys.readouterr().out
    assert main.main(["main.py", "--mode=report", f"--workdir={run}"]) == 0
    report = (run / "report.html").read_text("utf-8")
    assert "agreement with the class" in report
    assert "condition (class of 10)" in report
    # Samples without classes agree with nothing.
    assert main.main([*argv, "--config.sampling.guidance=0.0"]) == 1
    assert "metrics: agreement: it measures samples of given classes" in capsys.readouterr().err


@pytest.mark.slow
def test_a_conditional_run_resumes_bit_for_bit(config_file, data_dir, run, tmp_path):
    flags = [f"--config={config_file}", *FLAGS[1:], "--config.training.unconditional=0.2"]
    argv = ["main.py", *flags, f"--workdir={tmp_path / 'run'}", f"--config.data.data_dir={data_dir}"]
    assert main.main([*argv, "--config.training.num_steps=2"]) == 0
    assert main.main([*argv, "--config.training.num_steps=4"]) == 0
    a, b = ((path / "metrics.jsonl").read_text().splitlines()[-1] for path in (run, tmp_path / "run"))
    assert json.loads(a)["test_loss"] == json.loads(b)["test_loss"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--config.sampling.condition=12"],
            "config.sampling.condition='12': no such class; accepted: 0, 1,",
        ),
        (["--config.sampling.condition=-1"], "'-1': no such class; accepted: 0, 1, 2,"),
        (["--config.sampling.condition=cat"], "'cat': no such class; accepted: 0, 1, 2,"),
        (["--config.sampling.condition=nowhere.npy"], "nowhere.npy: can't be read"),
        (["--config.sampling.guidance=-1.0"], "config.sampling.guidance=-1.0: input should be greater than"),
        (
            ["--config.sampling.guidance_interval=2,1"],
            "guidance_interval: found '(2, 1)'; accepted: two noise levels",
        ),
    ],
)
def test_wrong_conditions_are_refused_in_one_line(run, flags, message, capsys):
    assert main.main(["main.py", "--mode=sample", f"--workdir={run}", *flags]) == 1
    *announced, line = capsys.readouterr().err.splitlines()
    assert all("imports tests.tiny" in other for other in announced)
    assert message in line


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.array([0, 10]), "=10: no such class; accepted: 0 to 9, or -1 for none"),
        (np.array([0.5]), "found float64 of the shape"),
        (np.zeros((2, 2), int), r"found int64 of the shape \(2, 2\); accepted: one condition a row"),
    ],
)
def test_files_of_wrong_conditions_are_refused(run, array, found, tmp_path):
    np.save(tmp_path / "wrong.npy", array)
    sampling = {"condition": str(tmp_path / "wrong.npy")}
    config = load_run(run)
    config = config.model_copy(update={"sampling": config.sampling.model_copy(update=sampling)})
    with pytest.raises(UserError, match=found):
        asked_of(config, lambda: None)


def config_of(facts, condition, unconditional=0.0):
    return Config(
        data=Data(name="arrays", condition="file", conditions=facts),
        model=NcsnppModel(),
        training=Training(unconditional=unconditional),
        sampling=Sampling(condition=condition),
    )


def test_vectors_are_given_in_the_units_of_the_data(tmp_path):
    facts = {
        "condition": ConditionFacts(
            kind="vector", size=2, names=("mass", "spin"), offset=(5.0, 0.0), scale=(2.0, 1.0)
        )
    }
    found = asked_of(config_of(facts, "9.0,1"), lambda: None).of(np.arange(3).reshape(1, 3))
    np.testing.assert_allclose(found, np.tile([2.0, 1.0], (1, 3, 1)))
    for wrong in ("1.0", "1,x", "1,nan"):
        with pytest.raises(UserError, match=r"accepted: 2 numbers \(mass, spin\), such as 0.0,0.0"):
            asked_of(config_of(facts, wrong), lambda: None)


def test_images_of_conditions_have_the_size_of_the_data(tmp_path):
    facts = {"condition": ConditionFacts(kind="image", size=1, offset=(0.0,), scale=(2.0,))}
    np.save(tmp_path / "one.npy", np.ones((2, 4, 6)))  # without an axis of channels
    config = config_of(facts, str(tmp_path / "one.npy"))
    config = config.model_copy(update={"data": config.data.model_copy(update={"shape": (4, 6, 2)})})
    np.testing.assert_array_equal(asked_of(config, lambda: None).of(np.arange(1)), np.full((1, 4, 6, 1), 0.5))
    np.save(tmp_path / "one.npy", np.ones((2, 5, 6, 1)))
    with pytest.raises(
        UserError, match=r"of the shape \(2, 5, 6, 1\); accepted: .* of the shape \(2, 4, 6, 1\)"
    ):
        asked_of(config, lambda: None)


def test_several_parts_come_from_one_file(tmp_path):
    facts = FACTS["condition"].model_copy(update={"size": 3, "names": ("a", "b", "c")})
    facts = {"kind": facts, "mass": ConditionFacts(kind="vector", size=1, offset=(0.0,), scale=(2.0,))}
    np.savez(tmp_path / "two.npz", kind=[2, -1], mass=[[4.0], [np.nan]])
    found = asked_of(config_of(facts, str(tmp_path / "two.npz")), lambda: None).of(np.arange(3))
    np.testing.assert_array_equal(found["kind"], [2, -1, 2])
    np.testing.assert_array_equal(found["mass"], np.float32([[2.0], [np.nan], [2.0]]))
    np.savez(tmp_path / "one.npz", kind=[2])
    with pytest.raises(UserError, match=r"found the parts \['kind'\]; accepted: kind \(class of 3\), mass"):
        asked_of(config_of(facts, str(tmp_path / "one.npz")), lambda: None)
    with pytest.raises(
        UserError, match=r"accepted: a \.npy file, or a \.npz file with an array for each part"
    ):
        asked_of(config_of(facts, "a"), lambda: None)


def test_names_of_classes_are_written_plainly():
    names = ("T-shirt/top", "Ankle boot")
    facts = {"condition": ConditionFacts(kind="class", size=2, names=names)}
    for word in ("ankle_boot", "Ankle boot", "1"):
        assert asked_of(config_of(facts, word), lambda: None).of(np.arange(1)) == [1]
    assert [plain(name) for name in names] == ["t_shirt_top", "ankle_boot"]
    alike = {"condition": ConditionFacts(kind="class", size=3, names=("A+", "A-", "b"))}
    assert [asked_of(config_of(alike, w), lambda: None).of(np.arange(1)) for w in ("A-", "B")] == [1, 2]
    with pytest.raises(UserError, match="'a': no such class"):
        asked_of(config_of(alike, "a"), lambda: None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling": {"condition": "7"}}, "sampling.condition='7': the network takes no condition"),
        ({"sampling": {"guidance": 2.0}}, "sampling.guidance=2.0: the network takes no condition"),
        (
            {"sampling": {"guidance_interval": (0.1, 2.0)}},
            "guidance_interval=.*: the network takes no condition",
        ),
        ({"training": {"unconditional": 0.1}}, "training.unconditional=0.1: the network takes no condition"),
        (
            {"data": {"condition": "class"}, "sampling": {"guidance_interval": (0.1, 2.0)}},
            "there is no guidance with sampling.guidance=1.0; leave it out",
        ),
        (
            {"data": {"condition": "class"}, "sampling": {"guidance": 2.0}},
            "the network was never trained without a condition, training.unconditional=0.0",
        ),
        (
            {"data": {"condition": "class"}, "model": {"name": "ncsnv2"}},
            "model.name='ncsnv2' takes no condition; accepted: 'ncsn', 'ncsnpp', 'mlp', or your own",
        ),
    ],
)
def test_settings_that_need_conditions_are_refused_without(settings, message):
    with pytest.raises(UserError, match=message) as error:
        parse(settings)
    assert "\n" not in str(error.value)


def test_restorations_are_not_guided_without_a_condition(run, capsys):
    argv = ["main.py", "--mode=inpaint", f"--workdir={run}", "--config.sampling.guidance=2.0"]
    assert main.main(argv) == 1
    assert "guidance=2.0: restorations are guided towards a condition" in capsys.readouterr().err


def test_restorations_of_a_network_that_needs_a_condition_ask_for_one(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    settings = json.loads(path.read_text())
    settings["training"]["unconditional"] = 0.0
    path.write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"never trained without a condition; accepted: .*condition=0$"):
        asked_of_restorations(load_run(tmp_path / "run"))


def test_labels_stand_under_their_images():
    images = np.zeros((5, 8, 8, 1))
    plain_grid = viz.image_grid(images, columns=3)
    grid = viz.image_grid(images, columns=3, labels=list("abcde"))
    strip = (grid.shape[0] - plain_grid.shape[0]) // 2
    assert grid.shape == (plain_grid.shape[0] + 2 * strip, plain_grid.shape[1], 1)
    below = grid[plain_grid.shape[0] // 2 : plain_grid.shape[0] // 2 + strip]
    assert below.min() < 100  # black letters
    assert below.max() == 255


def test_conditions_of_one_part_are_arrays_and_of_several_dictionaries():
    one = Conditions({"condition": np.arange(3)}, FACTS)
    assert one[2] == 2
    assert one[2].dtype == np.int32
