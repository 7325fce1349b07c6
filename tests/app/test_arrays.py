"""Runs on arrays: the digits' bits, resuming, the data's units, and restoration by the user's operator."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import main
from ncsn_jax import data
from ncsn_jax.data import Data
from ncsn_jax.evaluation.array_metrics import spectrum as spectrum_of
from ncsn_jax.training import restore
from tests.tiny import TinyScore

TINY_DIGITS = "--config=tests/tiny_digits.py"
RNG = np.random.default_rng(0)
FIELDS = (RNG.normal(size=(24, 8, 12, 2)) * [5.0, 1e-3] + [280.0, 0.0]).astype(np.float32)
SHORT = (
    *("--config.training.schedule=constant", "--config.training.num_steps=4"),
    *("--config.training.batch_size=4", "--config.training.log_every=1"),
    *("--config.training.checkpoint_every=2", "--config.training.eval_every=2"),
    *("--config.training.preview_every=4", "--config.training.preview_samples=4"),
    *("--config.sampling.num_samples=4", "--config.sampling.steps_per_scale=1"),
)


def operator(x):
    """Frequencies of the first channel."""
    return jnp.fft.fft2(x[..., 0])[:3, :3]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fields")
    np.save(directory / "train.npy", FIELDS[4:])
    np.save(directory / "test.npy", FIELDS[:4])
    return directory


def train(workdir, place, *flags):
    argv = ["main.py", TINY_DIGITS, *SHORT, f"--workdir={workdir}", f"--config.data.data_dir={place}", *flags]
    return main.main(argv)


@pytest.fixture(scope="module")
def run(place, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("arrays") / "run"
    assert train(workdir, place, "--config.data.name=arrays") == 0
    return workdir


def leaves(workdir):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(restore(workdir, model=TinyScore((1.0, 0.01)))[1])]


def losses(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row[name] for row in rows for name in ("loss", "test_loss") if name in row]


@pytest.mark.slow
def test_digits_as_an_array_train_like_the_digits(data_dir, tmp_path):
    digits = data.load(Data(name="digits", data_dir=data_dir))
    (tmp_path / "digits").mkdir()
    np.save(tmp_path / "digits" / "train.npy", digits.train)
    np.save(tmp_path / "digits" / "test.npy", digits.test)
    assert train(tmp_path / "a", data_dir) == 0
    arrays = ("--config.data.name=arrays", "--config.data.normalize=none")
    assert train(tmp_path / "b", tmp_path / "digits", *arrays) == 0
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    samples = [np.load(tmp_path / run / "samples" / "samples.npy") for run in ("a", "b")]
    np.testing.assert_array_equal(*samples)


def test_a_run_records_facts_and_samples_in_the_units_of_the_data(run, place, capsys):
    recorded = json.loads((run / "config.json").read_text())["data"]
    assert recorded["shape"] == [8, 12, 2]
    np.testing.assert_allclose(recorded["scale"], [5.0, 1e-3], rtol=0.2)
    np.testing.assert_allclose(recorded["offset"], [280.0, 0.0], atol=2.0)
    # It needs no data.
    assert main.main(["main.py", "--mode=sample", f"--workdir={run}", "--config.data.data_dir=/nowhere"]) == 0
    assert "pictures show channel 0 from" in capsys.readouterr().err
    samples = np.load(run / "samples" / "samples.npy")
    assert samples.shape == (4, 8, 12, 2)
    assert np.abs(samples[..., 0] - 280).max() < 200
    assert np.abs(samples[..., 1]).max() < 0.05


def test_a_run_on_arrays_resumes_bit_for_bit_and_refuses_changed_files(run, place, tmp_path, capsys):
    name = "--config.data.name=arrays"
    assert train(tmp_path / "run", place, name, "--config.training.num_steps=2") == 0
    assert train(tmp_path / "run", place, name) == 0
    for known, found in zip(leaves(run), leaves(tmp_path / "run"), strict=True):
        np.testing.assert_array_equal(found, known)
    (tmp_path / "changed").mkdir()
    np.save(tmp_path / "changed" / "train.npy", FIELDS + 1)
    capsys.readouterr()
    assert train(tmp_path / "run", tmp_path / "changed", name, "--config.training.num_steps=6") == 1
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "was trained on" in line
    assert "restore the original" in line


@pytest.mark.parametrize(
    ("mode", "flags", "see"),
    [
        ("inpaint", (), lambda x: x[..., :6, :]),
        ("superres", ("--config.restoration.factor=2",), lambda x: x.reshape(3, 4, 2, 6, 2, 2).mean((2, 4))),
        (
            "restore",
            ("--config.restoration.operator=tests.app.test_arrays:operator",),
            lambda x: np.fft.fft2(x[..., 0])[..., :3, :3],
        ),
    ],
)
def test_restorations_agree_with_observations_in_the_units_of_the_data(mode, flags, see, run, place):
    argv = ["main.py", f"--mode={mode}", f"--workdir={run}", "--images=0:3", "--num_samples=1"]
    assert main.main([*argv, f"--config.data.data_dir={place}", *flags]) == 0
    samples, y = (np.load(run / mode / f"{name}.npy") for name in ("samples", "observations"))
    originals = np.load(run / mode / "originals.npy")
    np.testing.assert_array_equal(originals, FIELDS[:3])
    seen = see(samples[:, 0])
    if mode == "inpaint":
        y = see(y)
    np.testing.assert_allclose(seen / 280, y / 280, atol=1e-4 if mode != "restore" else 1e-3)


def test_observations_and_noise_come_from_files(run, place, tmp_path):
    """NaN and infinite noise mean that nothing was measured there."""
    y = np.stack([np.asarray(operator(jnp.asarray(x))) for x in FIELDS[:2]])
    noise = np.full((3, 3), 1.0, np.float32)
    noise[0, 1] = np.inf
    y[1, 2, 2] = np.nan
    np.save(tmp_path / "y.npy", y)
    np.save(tmp_path / "noise.npy", noise)
    argv = ["main.py", "--mode=restore", f"--workdir={run}", "--num_samples=1", f"--images={tmp_path}/y.npy"]
    argv += ["--config.restoration.given=observations", f"--config.data.data_dir={place}"]
    argv += [f"--config.restoration.noise={tmp_path}/noise.npy"]
    argv += ["--config.restoration.operator=tests.app.test_arrays:operator"]

    def restored(name):
        assert main.main([*argv, f"--out={name}"]) == 0
        return (np.load(run / "restore" / name / f"{what}.npy") for what in ("samples", "observations"))

    samples, kept = restored("given")
    assert np.isfinite(samples).all()
    assert np.isnan(kept[:, 0, 1]).all()
    assert np.isnan(kept).sum() == 3
    y[:, 0, 1] = 1e9
    np.save(tmp_path / "y.npy", y)
    again, _ = restored("again")
    np.testing.assert_array_equal(again, samples)
    y[0, 0, 0] += 1e4
    np.save(tmp_path / "y.npy", y)
    other, _ = restored("other")
    assert np.abs(other[0] - samples[0]).max() > 1.0


@pytest.mark.parametrize(
    ("mode", "flags", "message"),
    [
        ("restore", (), "config.restoration.operator=None: --mode restore needs the import path"),
        ("restore", ("operator=tests.tiny:nothing",), "can't be imported"),
        (
            "restore",
            ("operator=tests.app.test_arrays:train",),
            "can't be applied to x of the shape (8, 12, 2)",
        ),
        (
            "deblur",
            ("psf=gaussian:no",),
            "psf='gaussian:no': accepted: a positive number, as in gaussian:1.5",
        ),
        ("deblur", ("psf=/nowhere.npy",), "/nowhere.npy: can't be read as an array"),
        ("deblur", ("noise=/nowhere.npy",), "/nowhere.npy: can't be read as an array"),
        ("colorize", (), "--mode colorize needs a run of colour images"),
    ],
)
def test_restorations_that_do_not_fit_are_one_line(mode, flags, message, run, place, capsys):
    argv = [
        "main.py",
        f"--mode={mode}",
        f"--workdir={run}",
        "--images=0:1",
        f"--config.data.data_dir={place}",
    ]
    capsys.readouterr()
    assert main.main([*argv, *(f"--config.restoration.{flag}" for flag in flags)]) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert message in line


def test_evaluation_compares_moments_and_spectra_with_real_ones(run, place, capsys):
    argv = ["main.py", "--mode=evaluate", f"--workdir={run}", "--num_samples=4", "--steps=4"]
    argv += [f"--config.data.data_dir={place}", "--config.evaluation.metrics=moments,spectrum"]
    assert main.main(argv) == 0
    (path,) = (run / "eval").glob("step_*.json")
    metrics = json.loads(path.read_text())["metrics"]
    samples = np.load(run / "samples" / "samples.npy").astype(float)
    found = metrics["moments"]["results"]["mean of channel 0-4"]
    np.testing.assert_allclose(found["value"], samples[..., 0].mean(), rtol=1e-5)
    assert abs(found["real"] - 280) < 5 * 5 / np.sqrt(8 * 12)
    spectrum = metrics["spectrum"]
    (result,) = spectrum["results"].values()

    def power(x):
        return spectrum_of([x]).power

    train = power(FIELDS[4:])
    distance = np.abs(np.log10(power(samples) / train)).mean()
    np.testing.assert_allclose(result["value"], distance, rtol=1e-5)
    np.testing.assert_allclose(result["real"], np.abs(np.log10(power(FIELDS[:4]) / train)).mean(), rtol=1e-5)
    # White noise has the same power at every wave number.
    np.testing.assert_allclose(spectrum["details"]["training data"][0], 25.0, rtol=0.5)
    assert (run / "eval" / "step_00000004_spectrum.png").exists()
    assert main.main(["main.py", "--mode=report", f"--workdir={run}"]) == 0
    assert "Power spectra" in (run / "report.html").read_text()
