"""The command line, run in this process."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import main
from ncsn_jax import training
from ncsn_jax.app import cli, process
from ncsn_jax.app.flags import parse_flags, with_config_file
from ncsn_jax.app.trained import load_run
from ncsn_jax.data import datasets
from ncsn_jax.runtime import compiling
from tests.interop.torch_writer import as_zip, whole
from tests.tiny import TinyScore

ROOT = Path(main.__file__).parent
CONFIGS = ROOT / "configs"
DIGITS = f"--config={CONFIGS}/digits.py"
NARROW = ["--config.model.num_filters=2", "--config.model.num_scales=2"]
TINY_DIGITS = f"--config={ROOT}/tests/tiny_digits.py"
"""Digits with a network of one hidden convolution, for tests of everything else."""
TINY = [
    "--config.training.batch_size=4",
    "--config.training.num_steps=2",
    "--config.training.eval_examples=4",
    "--config.training.preview_samples=1",
    "--config.sampling.steps_per_scale=1",
    "--config.sampling.batch_size=4",
    "--config.sampling.num_samples=5",
]


@pytest.fixture(autouse=True)
def search_path():
    """Restores `sys.path`, on which the program puts its working directory."""
    before = sys.path.copy()
    yield
    sys.path[:] = before


@pytest.fixture
def run(capsys, data_dir):
    """Runs a command; returns its status and the lines it wrote to stderr."""

    def run(*arguments):
        argv = ["main.py", *map(str, arguments)]
        if not any("data_dir" in argument for argument in argv):
            argv.append(f"--config.data.data_dir={data_dir}")
        status = main.main(argv)
        return status, capsys.readouterr().err.splitlines()

    return run


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("main") / "run"
    argv = ["main.py", DIGITS, *NARROW, *TINY, f"--config.data.data_dir={data_dir}", f"--workdir={workdir}"]
    assert main.main(argv) == 0
    return workdir


@pytest.fixture(scope="module")
def trained_tiny(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("main") / "run"
    argv = ["main.py", TINY_DIGITS, *TINY, f"--config.data.data_dir={data_dir}", f"--workdir={workdir}"]
    assert main.main(argv) == 0
    return workdir


@pytest.fixture
def compilation_settings():
    """Restore jax's settings of the compilation cache afterwards."""
    names = ["jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"]
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.usefixtures("compilation_settings")
@pytest.mark.parametrize(
    ("cache", "given", "taken"),
    [
        ("cache", None, "cache/ncsn_jax/compilations"),
        ("cache", "elsewhere", "elsewhere"),
        ("file/cache", None, None),
    ],
)
def test_compilation_cache_is_the_users_or_the_given_directory_or_none(
    cache, given, taken, tmp_path, monkeypatch
):
    """The user's cache directory, unless jax was given another; none where it can't be made."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
    jax.config.update("jax_compilation_cache_dir", given)
    compiling.keep_compilations()
    found = jax.config.jax_compilation_cache_dir
    assert found == (taken and taken.replace("cache", f"{tmp_path}/cache", 1))


@pytest.mark.usefixtures("compilation_settings")
def test_compilation_cache_is_emptied_above_its_size_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiling, "MAX_COMPILATIONS", 10)
    jax.config.update("jax_compilation_cache_dir", None)
    compiling.keep_compilations()
    kept = Path(jax.config.jax_compilation_cache_dir) / "program-cache"
    for size, left in ((10, True), (11, False)):
        jax.config.update("jax_compilation_cache_dir", None)
        kept.write_bytes(bytes(size))
        compiling.keep_compilations()
        assert kept.exists() == left


def files(directory):
    return {p: p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_training_writes_samples_previews_and_its_config(trained):
    assert np.load(trained / "samples" / "samples.npy").shape == (5, 8, 8, 1)
    for name in ("grid.png", "annealing.gif", "step_00000002.png"):
        assert (trained / "samples" / name).stat().st_size > 0
    assert json.loads((trained / "config.json").read_text())["model"]["num_filters"] == 2


def test_sampling_needs_only_the_workdir_and_depends_on_the_seed(trained, run):
    before = np.load(trained / "samples" / "samples.npy")
    status, _ = run("--mode=sample", f"--workdir={trained}", "--num_samples=9")
    assert status == 0
    after = np.load(trained / "samples" / "samples.npy")
    assert after.shape == (9, 8, 8, 1)
    np.testing.assert_allclose(after[:5], before, atol=1e-5)
    run("--mode=sample", f"--workdir={trained}", "--config.sampling.seed=1")
    assert np.abs(np.load(trained / "samples" / "samples.npy") - before).max() > 0.1


@pytest.mark.slow
def test_a_float32_run_can_be_sampled_in_bfloat16(trained, run):
    drawn = []
    for dtype in ("float32", "bfloat16"):
        status, _ = run("--mode=sample", f"--workdir={trained}", f"--config.model.dtype={dtype}")
        assert status == 0
        drawn.append(np.load(trained / "samples" / "samples.npy"))
    distance = np.linalg.norm(drawn[0] - drawn[1]) / np.linalg.norm(drawn[0])
    assert 0 < distance < 0.1


def test_a_trained_run_inpaints_denoises_and_interpolates(trained_tiny, run, tmp_path):
    status, _ = run("--mode=inpaint", f"--workdir={trained_tiny}", "--images=0,2", "--num_samples=3")
    assert status == 0
    found = np.load(trained_tiny / "inpaint" / "samples.npy")
    assert found.shape == (2, 3, 8, 8, 1)
    originals = np.load(trained_tiny / "inpaint" / "originals.npy")
    np.testing.assert_allclose(found[:, 1, :, :4], originals[:, :, :4], atol=1e-5)
    # A single image file can be given.
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(tmp_path / "one.png")
    options = ("--config.restoration.noise=0.2", "--config.restoration.given=observations")
    status, _ = run("--mode=denoise", f"--workdir={trained_tiny}", f"--images={tmp_path}/one.png", *options)
    assert status == 0
    assert np.load(trained_tiny / "denoise" / "samples.npy").shape == (1, 4, 8, 8, 1)
    assert not (trained_tiny / "denoise" / "means.npy").exists()  # the network's levels are discrete
    status, _ = run("--mode=interpolate", f"--workdir={trained_tiny}", "--num_samples=2")
    assert status == 0
    assert np.load(trained_tiny / "interpolate" / "samples.npy").shape == (2, 8, 8, 8, 1)


def test_evaluate_and_report_modes_work_on_a_run_and_on_images(
    trained_tiny, run, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("ncsn_jax.evaluation.classifier.NUM_STEPS", 3)
    monkeypatch.chdir(tmp_path)
    arguments = [
        "--mode=evaluate",
        f"--workdir={trained_tiny}",
        "--num_samples=10",
        "--config.evaluation.loss_examples=8",
    ]
    assert main.main(["main.py", *arguments, "--steps=2"]) == 0
    out = capsys.readouterr().out
    assert "FD-10 (classifier)" in out
    assert "real test data" in out
    assert "curves.png" not in out  # of one step
    # Files of the run itself can be given as images.
    for images in ("samples/samples.npy", "eval/step_00000002_neighbours.png"):
        of_few = "--config.evaluation.num_neighbours=2"
        status, errors = run(
            "--mode=evaluate", f"--workdir={trained_tiny}", f"--images={trained_tiny}/{images}", of_few
        )
        assert status == ("png" in images), errors
    assert "accepted: (8, 8, 1), as in 'digits'" in errors[-1]
    assert len(list((trained_tiny / "eval").glob("images_samples_??????.json"))) == 1
    assert main.main(["main.py", "--mode=report", f"--workdir={trained_tiny}"]) == 0
    page = (trained_tiny / "report.html").read_text()
    assert "FD-10 (classifier)" in page
    assert "data:image/gif" in page
    # Images can be evaluated without a run.
    np.savez(tmp_path / "black.npz", np.zeros((9, 8, 8, 1), np.uint8))
    status, _ = run("--mode=evaluate", DIGITS, f"--workdir={tmp_path}/none", f"--images={tmp_path}/black.npz")
    assert status == 0
    (written,) = (tmp_path / "none" / "eval").glob("images_black_??????.json")
    assert json.loads(written.read_text())["images"] == f"{tmp_path}/black.npz"


@pytest.mark.slow
def test_an_interrupted_run_on_images_ends_bit_for_bit_equal_to_a_whole_one(
    trained, run, tmp_path, monkeypatch
):
    original = training.loop.StepLog.add

    def add(self, step, values):
        original(self, step, values)
        if step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training.loop.StepLog, "add", add)
    arguments = (
        DIGITS,
        f"--workdir={tmp_path / 'run'}",
        *NARROW,
        *TINY,
        "--config.training.checkpoint_every=1",
    )
    status, errors = run(*arguments)
    assert status == 130
    assert errors[-1] == "main.py: interrupted; rerun to resume from the last checkpoint, if any"
    monkeypatch.undo()
    assert run(*arguments)[0] == 0
    for ema in (True, False):
        states = (training.restore(workdir, ema=ema)[1] for workdir in (trained, tmp_path / "run"))
        jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.slow
def test_sliced_score_matching_lowers_the_loss_on_images(trained, run, tmp_path):
    """The loss falls: by half its first value within 60 steps."""
    status, _ = run(
        DIGITS,
        f"--workdir={tmp_path}",
        *NARROW,
        *TINY,
        "--config.training.objective=sliced",
        "--config.training.num_steps=60",
        "--config.training.batch_size=16",
        "--config.training.log_every=10",
    )
    assert status == 0
    written = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in written if "loss" in line]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0] - 1
    assert np.load(tmp_path / "samples" / "samples.npy").shape == (5, 8, 8, 1)


@pytest.mark.parametrize("objective", ["denoising", pytest.param("sliced", marks=pytest.mark.slow)])
def test_points_are_trained_and_sampled_by_every_method(run, tmp_path, objective):
    status, _ = run(
        f"--config={CONFIGS}/toy.py:two_moons",
        f"--workdir={tmp_path}",
        "--config.training.num_steps=4",
        "--config.training.batch_size=8",
        "--config.training.eval_examples=8",
        f"--config.training.objective={objective}",
        "--config.training.noise=continuous",
        "--config.model.num_scales=2",
        "--num_samples=10",
    )
    assert status == 0
    assert np.load(tmp_path / "samples" / "samples.npy").shape == (10, 2)
    for name in ("grid.png", "annealing.gif", "step_00000004.png"):
        assert (tmp_path / "samples" / name).stat().st_size > 0
    for method in ("consistent", "pc", "ode", "heun") if objective == "denoising" else ("annealed",):
        # The run's own config is of annealed dynamics; a method and its settings are set together.
        own = {"consistent": "temperature=0.5", "pc": "snr=0.2", "ode": "rtol=0.001", "heun": "s_churn=25"}
        options = ["--num_samples=3", f"--config.sampling.method={method}"]
        options += [f"--config.sampling.{own[method]}"] if method in own else []
        status, _ = run("--mode=sample", f"--workdir={tmp_path}", *options)
        assert status == 0
        assert np.load(tmp_path / "samples" / "samples.npy").shape == (3, 2)
        written = json.loads((tmp_path / "samples" / "settings.json").read_text())["settings"]
        for name, value in (word.removeprefix("--config.").split("=") for word in options[1:]):
            assert str(written[name]).removesuffix(".0") == value


def test_help_lists_the_flags(capsys):
    with pytest.raises(SystemExit) as exit_:
        main.main(["main.py", "--help"])
    assert not exit_.value.code
    assert "--num_samples" in capsys.readouterr().out


def test_default_workdir_is_named_after_the_config(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Path(main.__file__).parent / "configs" / "mnist.py"
    _, errors = run("--mode=sample", f"--config={config}:small")
    assert errors == ["main.py: runs/mnist_small holds no run (no config.json): train one there first"]


def test_an_unavailable_dataset_is_reported_and_leaves_no_files(run, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.Mnist, "URL", "http://127.0.0.1:9/")
    config = Path(main.__file__).parent / "configs" / "mnist.py"
    status, errors = run(
        f"--config={config}", f"--workdir={tmp_path / 'run'}", f"--config.data.data_dir={tmp_path / 'no'}"
    )
    assert status == 1
    assert len(errors) == 1
    assert "dataset mnist is not prepared in" in errors[0]
    assert not list(tmp_path.iterdir())


def test_images_of_odd_size_are_refused_before_training(run, tmp_path):
    status, errors = run(DIGITS, "--config.data.image_size=9", f"--workdir={tmp_path / 'run'}")
    assert status == 1
    assert len(errors) == 1
    assert "height and width must be even there, found 9×9 pixels" in errors[0]
    assert not list(tmp_path.iterdir())


def test_a_run_resumes_from_its_workdir_alone_and_refuses_another_network(run, trained_tiny, tmp_path):
    shutil.copytree(trained_tiny, tmp_path / "run")
    status, _ = run(f"--workdir={tmp_path / 'run'}", "--num_samples=3")
    assert status == 0
    assert len(np.load(tmp_path / "run" / "samples" / "samples.npy")) == 3
    status, errors = run(f"--workdir={tmp_path / 'run'}", "--config.model.name=tests.tiny:SmoothScore")
    assert status == 1
    assert "model.name='tests.tiny:TinyScore', not 'tests.tiny:SmoothScore'" in errors[-1]


def test_samples_do_not_depend_on_jax_settings_of_the_environment(run, trained_tiny, tmp_path):
    """JAX_ENABLE_X64, JAX_THREEFRY_PARTITIONABLE and others, as contexts, which have the same effect."""
    shutil.copytree(trained_tiny, tmp_path / "run")
    found = []
    for context in (
        contextlib.nullcontext(),
        jax.enable_x64(True),
        jax.threefry_partitionable(False),
        jax.default_prng_impl("rbg"),
        jax.numpy_dtype_promotion("strict"),
    ):
        with context:
            assert run("--mode=sample", f"--workdir={tmp_path / 'run'}")[0] == 0
        found.append(np.load(tmp_path / "run" / "samples" / "samples.npy"))
    for samples in found[1:]:
        np.testing.assert_array_equal(samples, found[0])


def test_named_sets_of_samples_get_their_own_directories(run, trained_tiny, tmp_path):
    shutil.copytree(trained_tiny, tmp_path / "run")
    workdir = f"--workdir={tmp_path / 'run'}"
    before = np.load(tmp_path / "run" / "samples" / "samples.npy")
    status, errors = run("--mode=sample", workdir, "--num_samples=1", "--out=one", "--config.sampling.seed=3")
    assert status == 0
    assert not any("replaces" in line for line in errors)
    assert len(np.load(tmp_path / "run" / "samples" / "one" / "samples.npy")) == 1
    np.testing.assert_array_equal(np.load(tmp_path / "run" / "samples" / "samples.npy"), before)
    options = ("--mode=inpaint", workdir, "--images=0", "--num_samples=1")
    assert run(*options, "--out=left")[0] == 0
    assert run(*options)[0] == 0
    status, errors = run(*options, "--config.restoration.mask=top")
    assert status == 0
    assert any("inpaint: replacing 1 samples drawn with restoration.mask='left'" in line for line in errors)
    assert (tmp_path / "run" / "inpaint" / "left" / "originals.npy").exists()
    assert main.main(["main.py", "--mode=report", workdir]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "The samples one" in page
    assert "Inpainting: left" in page


def test_tilde_means_the_home_directory_in_every_path_flag(
    run, trained_tiny, tmp_path, monkeypatch, data_dir
):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)
    shutil.copytree(trained_tiny, home / "runs" / "x")
    (home / "tfds").symlink_to(data_dir)
    for i in range(2):
        Image.new("L", (8, 8), 255 * i).save(home / f"{i}.png")
    tfds = "--config.data.data_dir=~/tfds"
    assert (
        run(
            "--mode=inpaint",
            "--workdir=~/runs/x",
            tfds,
            "--images=~/0.png",
            "--config.restoration.mask=~/1.png",
        )[0]
        == 0
    )
    assert (
        run(
            "--mode=evaluate",
            "--workdir=~/runs/x",
            tfds,
            "--images=~/0.png",
            "--config.evaluation.metrics=neighbours",
            "--config.evaluation.features=pixels",
        )[0]
        == 0
    )
    arguments = (
        TINY_DIGITS,
        *TINY,
        "--workdir=~/runs/y",
        "--config.training.checkpoint_dir=~/ck",
        "--config.data.data_dir=../home/tfds",
    )
    assert run(*arguments)[0] == 0
    assert load_run(home / "runs" / "y").data.data_dir == str(home / "tfds")
    assert sorted(path.name for path in (home / "ck").iterdir()) == ["2"]
    assert training.restore("~/runs/y", model=TinyScore())[1].keys() == {"params"}
    assert not list(elsewhere.iterdir())


def parsed_flags(argv):
    return parse_flags(argv, cli.MODES, "")


def test_options_can_be_reset_to_none():
    values = parsed_flags(
        [
            "main.py",
            DIGITS,
            "--config.sampling.batch_size=None",
            "--config.training.gradient_clip=1.0",
            "--config.training.gradient_clip=None",
            "--config.data.data_dir=None",
        ]
    )
    parsed = cli.run_config(Path("runs/digits"), values)
    assert parsed.sampling.batch_size is parsed.training.gradient_clip is parsed.data.data_dir is None


def test_a_dictionary_overrides_a_runs_setting(trained_tiny):
    values = parsed_flags(["main.py", f"--workdir={trained_tiny}", "--config.data.fields={'side': 8}"])
    assert cli.run_config(trained_tiny, values).data.fields == {"side": 8}


def test_a_config_path_is_searched_in_the_cwd_and_then_next_to_main(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = parsed_flags(["main.py", "--config", "configs/toy.py:swiss_roll"])
    assert values.config.data.name == "swiss_roll"
    # A config in the working directory comes first.
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "toy.py").write_text(
        "from configs import digits\nget_config = digits.get_config\n"
    )
    assert parsed_flags(["main.py", "--config=configs/toy.py:v2"]).config.model.name == "ncsnv2"


@pytest.mark.parametrize("platform", ["cuda", "abacus"])
def test_an_unavailable_jax_platform_is_reported_in_one_line(platform, tmp_path):
    result = subprocess.run(
        [sys.executable, "main.py", "--mode=report", f"--workdir={tmp_path}"],
        cwd=CONFIGS.parent,
        env=os.environ | {"JAX_PLATFORMS": platform},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"main.py: JAX_PLATFORMS={platform}: jax finds no such device")
    assert "unset it, or install jax for it" in line


@pytest.fixture
def checkpoint(official, tmp_path):
    """The state dict of the official network and a fresh optimizer, as torch saves them."""
    names = official["state_dict_names"].tolist()
    model = {f"module.{name}": whole(official[name], str(i)) for i, name in enumerate(names)}
    group = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "params": list(range(len(names)))}
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(as_zip([model, {"state": {}, "param_groups": [group]}]))
    return path


@pytest.mark.slow
def test_an_official_checkpoint_can_be_imported_sampled_and_trained(run, checkpoint, tmp_path):
    workdir = tmp_path / "run"
    status, _ = run(
        "--mode=import",
        f"--checkpoint={checkpoint}",
        f"--workdir={workdir}",
        f"--config={CONFIGS}/digits.py",
        *TINY,
    )
    assert status == 0
    assert sorted(path.name for path in workdir.iterdir()) == ["checkpoints", "config.json", "lock"]
    imported = load_run(workdir)
    assert (imported.data.name, imported.model.num_filters, imported.model.num_scales) == ("digits", 8, 10)
    _, before = training.restore(workdir, ema=False)
    assert run("--mode=sample", f"--workdir={workdir}")[0] == 0
    assert np.load(workdir / "samples" / "samples.npy").shape == (5, 8, 8, 1)

    assert run(f"--workdir={workdir}")[0] == 0
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if "loss" in line] == [2]
    _, after = training.restore(workdir, ema=False)
    change = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, after)
    assert 0 < max(jax.tree.leaves(change)) < 0.01


def test_import_without_a_config_uses_the_official_experiments(run, checkpoint, tmp_path, capsys):
    assert (
        main.main(["main.py", "--mode=import", f"--checkpoint={checkpoint}", f"--workdir={tmp_path}/run"])
        == 0
    )
    out = capsys.readouterr().out
    assert (
        "NCSN of 173 tensors, step 0, no moving average, a new optimizer state (it has made no step)" in out
    )
    assert "10 noise levels from 1 to 0.01 (from the config: the file has no levels)" in out
    assert load_run(tmp_path / "run").data.name == "mnist"
    before = files(tmp_path)
    status, errors = run("--mode=import", f"--checkpoint={checkpoint}", f"--workdir={tmp_path}/run")
    assert status == 1
    assert errors == [f"main.py: {tmp_path}/run holds a run already: choose another --workdir"]
    assert files(tmp_path) == before


def test_suggest_noise_mode_prints_noise_levels_for_the_dataset(data_dir, capsys):
    assert main.main(["main.py", "--mode=suggest_noise", f"--config.data.data_dir={data_dir}"]) == 0
    out = capsys.readouterr().out
    assert "digits: 1500 training examples of 64 numbers" in out
    assert "model=NcsnModel(sigma_begin=4.5" in out
    assert "--config.model.sigma_begin=4.5" in out


@pytest.fixture
def folder(tmp_path):
    """50 images of all sizes and kinds: one grey, one with alpha, one corrupt."""
    rng = np.random.default_rng(0)
    directory = tmp_path / "images"
    directory.mkdir()
    for i in range(47):
        size = (*rng.integers(9, 40, 2), 3)
        image = Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8))
        image.save(directory / f"{i:02}.{('png', 'jpg', 'webp')[i % 3]}")
    Image.fromarray(rng.integers(0, 256, (20, 30), dtype=np.uint8)).save(directory / "grey.png")
    Image.fromarray(rng.integers(0, 256, (30, 20, 4), dtype=np.uint8)).save(directory / "alpha.png")
    (directory / "corrupt.jpg").write_bytes((directory / "01.jpg").read_bytes()[:150])
    return directory


TINY_FOLDER = """
from configs import folder
from ncsn_jax.app.overridable import overridable
from ncsn_jax.app.config import OwnModel, parse

def get_config(image_size):
    config = parse(folder.get_config(image_size))
    model = OwnModel(name="tests.tiny:TinyScore", sigmas="auto")
    return overridable(config.model_copy(update={"model": model}))
"""
"""The config of configs/folder.py with a network that compiles within a second."""


@pytest.mark.filterwarnings("ignore:.*corrupt.jpg")
def test_a_folder_with_a_corrupt_image_is_trained_and_sampled_by_skipping_it(run, folder, tmp_path):
    (tmp_path / "tiny_folder.py").write_text(TINY_FOLDER)
    arguments = [
        f"--config={tmp_path}/tiny_folder.py:8",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.data_dir={folder}",
        *TINY,
        "--config.training.num_steps=20",
    ]
    status, errors = run(*arguments)
    assert status == 1
    imports, error = errors
    assert imports.startswith(f"main.py: imports tests.tiny, named by {tmp_path}/tiny_folder.py")
    assert f"{folder}/corrupt.jpg" in error
    assert "--config.data.corrupt=skip" in error
    assert not (tmp_path / "run").exists()

    status, _ = run(*arguments, "--config.data.corrupt=skip")
    assert status == 0
    samples = np.load(tmp_path / "run" / "samples" / "samples.npy")
    assert samples.shape == (5, 8, 8, 3)
    assert np.isfinite(samples).all()
    chosen = load_run(tmp_path / "run")
    assert chosen.model.sigmas == "geometric"
    assert 2.0 < chosen.model.sigma_begin < np.sqrt(8 * 8 * 3)
    # Rerunning uses the chosen noise levels, and refuses to resume with other images.
    assert run(*arguments, "--config.data.corrupt=skip")[0] == 0
    assert load_run(tmp_path / "run") == chosen
    (folder / "00.png").unlink()
    status, errors = run(*arguments, "--config.data.corrupt=skip")
    assert status == 1
    assert "restore the original files, or choose another --workdir" in errors[-1]


def test_closed_streams_and_missing_characters_stop_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    process._open_streams()
    print("±σ", file=sys.stderr)
    print("±σ")
    sys.stdout.flush()
    assert sys.stdout.buffer.getvalue() == b"??\n"
    sys.stderr.close()


def test_a_second_config_is_found_beside_the_program_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["main.py", "--config=configs/toy.py", "--config", "configs/digits.py:v2"]
    assert with_config_file(words) == [
        "main.py",
        f"--config={CONFIGS}/toy.py",
        f"--config={CONFIGS}/digits.py:v2",
    ]
