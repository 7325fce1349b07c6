"""Evaluation end to end, of a run on points and of images from outside."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ncsn_jax import as_score_fn, data, evaluation, training
from ncsn_jax.app.config import Config, NcsnModel
from ncsn_jax.app.evaluate import evaluate, generator
from ncsn_jax.app.report import write_report
from ncsn_jax.data import Data
from ncsn_jax.evaluation import Evaluation, Features, cached_parts, distances, loop
from ncsn_jax.evaluation.real_features import about_real
from ncsn_jax.evaluation.results import table
from ncsn_jax.losses import denoising_score_matching
from ncsn_jax.runtime import chains
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.runtime.streams import stream

STEPS = [10, 20, 30, 40]


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """A copy of the run, evaluated without an interruption: its directory, config and results."""
    workdir, config = trained
    copy = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(workdir, copy)
    return copy, config, evaluate(config, copy)


def changed(config, **settings):
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update=settings)})


def results(workdir):
    return {path.name: path.read_text() for path in (workdir / "eval").glob("*.json")}


@pytest.fixture
def computed(monkeypatch):
    """Paths of the parts, recorded as they are computed."""
    found = []
    original = cached_parts.write_whole

    def recorded(path, write):
        original(path, write)
        found.append(path)

    for module in (cached_parts, loop.results):
        monkeypatch.setattr(module, "write_whole", recorded)
    return found


def test_evaluation_writes_a_file_for_each_checkpoint_and_curves_for_all(evaluated):
    workdir, _, subjects = evaluated
    assert [subject.step for subject in subjects] == STEPS
    assert sorted(results(workdir)) == [f"step_{step:08d}.json" for step in STEPS]
    for name in ("curves.png", "loss_by_level.png"):
        with Image.open(workdir / "eval" / name) as image:
            assert image.width > 300
    for subject in subjects:
        assert set(subject.metrics) == {"frechet", "kernel", "coverage", "neighbours", "likelihood", "loss"}
        assert all(np.isfinite(result.value) for result in subject.results.values())
        assert "FD-10 (pixels)" in subject.results


def test_evaluation_measures_the_samples_that_mode_sample_draws(evaluated):
    workdir, config, subjects = evaluated
    score_fn = as_score_fn(*training.restore(workdir, step=20))
    dataset, drawn = data.load(config.data), []
    for numbers in chains.batches(10, config.sampling.batch_size):
        *_, x = chains.draw(score_fn, generator(config, dataset).recipe, numbers)
        drawn.append(chains.rows(x))
    x = np.concatenate(drawn)[:10]
    found = subjects[1].results["FD-10 (pixels)"]
    np.testing.assert_allclose(found.value, distances.frechet_distance(x, dataset.train), rtol=1e-5)
    # None of the ten is dropped, though a part has four.
    assert abs(found.value - distances.frechet_distance(x[:8], dataset.train)) > 1e-3 * found.value


def test_evaluated_loss_at_each_level_equals_the_denoising_objective(evaluated):
    workdir, config, subjects = evaluated
    score_fn = as_score_fn(*training.restore(workdir, step=40))
    details = subjects[-1].metrics["loss"].details
    assert details["sigma"] == list(config.model.noise_levels)
    x = jnp.asarray(data.load(config.data).test[:6])
    for level, sigma in enumerate(details["sigma"]):
        key = jax.random.fold_in(stream(config.seed, "levels"), level)
        keys = jax.vmap(lambda i, key=key: jax.random.split(jax.random.fold_in(key, i))[1])(jnp.arange(6))
        losses = jax.vmap(lambda k, x, s=sigma: denoising_score_matching(k, score_fn, x, s))(keys, x)
        np.testing.assert_allclose(details["loss"][level], losses.mean(), rtol=1e-4)
    (total,) = subjects[-1].metrics["loss"].results.values()
    np.testing.assert_allclose(total.value, np.mean(details["loss"]), rtol=1e-6)


def test_evaluated_bits_per_dim_equal_the_log_likelihood_in_bits(evaluated):
    workdir, config, subjects = evaluated
    score_fn = as_score_fn(*training.restore(workdir, step=30))
    x, levels = jnp.asarray(data.load(config.data).test[:6]), config.model.noise_levels
    values = jax.vmap(lambda x: evaluation.log_likelihood(score_fn, x, levels[-1], levels[0]))(x)
    bits = -np.asarray(values) / (2 * np.log(2))
    found = subjects[2].results["bits/dim, 6 test examples"]
    np.testing.assert_allclose(found.value, bits.mean(), rtol=1e-4)
    np.testing.assert_allclose(found.standard_error, bits.std(ddof=1) / np.sqrt(6), rtol=1e-3)


def test_a_second_evaluation_computes_nothing(evaluated, computed, monkeypatch):
    workdir, config, subjects = evaluated
    for name in ("frechet_distance", "kernel_distance", "precision_recall_density_coverage"):
        monkeypatch.setattr(distances, name, None)
    assert evaluate(config, workdir) == subjects
    assert computed == []


def test_changed_evaluation_settings_remeasure_only_the_affected_metrics(evaluated, computed, tmp_path):
    workdir, config, subjects = evaluated
    shutil.copytree(workdir, tmp_path / "run")
    more = changed(config, num_samples=11, metrics=("frechet", "loss"))
    (subject,) = evaluate(more, tmp_path / "run", steps=[20])
    assert "FD-11 (pixels)" in subject.results
    assert "FD-10 (pixels)" not in subject.results
    assert subject.metrics["kernel"] == subjects[1].metrics["kernel"]
    # 11 samples are the same three parts as 10.
    assert [path.suffix for path in computed] == [".json"]
    _, variables = training.restore(tmp_path / "run", step=20)
    of = cached_parts.fingerprint(variables)
    assert of != cached_parts.fingerprint(training.restore(tmp_path / "run", step=30)[1])


def test_an_interrupted_evaluation_ends_equal_to_a_whole_one_and_repeats_no_part(
    trained, evaluated, computed, tmp_path, monkeypatch
):
    workdir, config = trained
    shutil.copytree(workdir, tmp_path / "run")
    interruptions = iter([3, 60, 75, 90, 100])
    original, left = cached_parts.write_whole, next(interruptions)

    def interrupted(path, write):
        nonlocal left
        if len(computed) == left:
            left = next(interruptions, None)
            raise KeyboardInterrupt
        original(path, write)

    for module in (cached_parts, loop.results):
        monkeypatch.setattr(module, "write_whole", interrupted)
    count = 0
    while True:
        try:
            evaluate(config, tmp_path / "run")
            break
        except KeyboardInterrupt:
            count += 1
    assert count == 5
    files = [path for path in computed if path.suffix == ".npz"]
    assert len(files) == len(set(files))
    assert results(tmp_path / "run") == results(evaluated[0])


def test_evaluation_reports_samples_that_are_not_finite(trained, tmp_path):
    workdir, config = trained
    shutil.copytree(workdir, tmp_path / "run")
    wild = config.model_copy(update={"sampling": config.sampling.model_copy(update={"step_size": 1e38})})
    message = r"step_00000010: 4 of 4 samples are not finite; make the steps of the sampler smaller"
    with pytest.raises(UserError, match=message):
        evaluate(wild, tmp_path / "run", steps=[10])


def test_a_metric_that_fails_is_reported_and_the_other_metrics_continue(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    strict = trained[1].sampling.model_copy(update={"rtol": 1e-20, "atol": 1e-20})
    few = changed(
        trained[1].model_copy(update={"sampling": strict}),
        num_samples=2,
        metrics=("kernel", "likelihood", "frechet"),
    )
    (subject,) = evaluate(few, tmp_path / "run", steps=[10])
    assert subject.problems["KD-2 (pixels)"] == "each set needs at least 3 examples, found 2 and 500"
    problem = subject.problems["likelihood"]
    assert "the solver failed on 6 of 6 test examples; increase rtol=1e-20 and atol" in problem
    assert list(subject.results) == ["FD-2 (pixels)"]
    *_, line, last = table([subject]).splitlines()
    assert line == "KD-2 (pixels): not measured (each set needs at least 3 examples, found 2 and 500)"
    assert last.startswith("likelihood: not measured (the solver failed")
    page = write_report(tmp_path / "run").read_text()
    assert "KD-2 (pixels): not measured (each set needs at least 3 examples" in page


def test_evaluation_refuses_data_that_the_run_was_not_trained_on(trained, tmp_path, monkeypatch):
    shutil.copytree(trained[0], tmp_path / "run")
    monkeypatch.setattr("ncsn_jax.data.fingerprint", lambda *splits: {"train": {"examples": 7}})
    with pytest.raises(UserError, match=r"checkpoints/20 was trained on .*, but the data are .*: 7.* now"):
        evaluate(trained[1], tmp_path / "run", steps=[20])
    assert not (tmp_path / "run" / "eval").exists()


@pytest.mark.parametrize("count", [2, 8])
def test_a_small_folder_is_evaluated_in_pixels_without_torch(count, tmp_path, caplog, monkeypatch):
    """Without torch it uses pixels and logs how to install Inception's features."""
    monkeypatch.setattr("ncsn_jax.evaluation.real_features.is_installed", lambda: False)
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    np.save(tmp_path / "theirs.npy", rng.integers(0, 256, (20, 8, 8, 1), dtype=np.uint8))
    config = Config(
        data=Data(name="folder", data_dir=str(tmp_path), image_size=8, channels=1), model=NcsnModel()
    )
    images = str(tmp_path / "theirs.npy")
    (subject,) = evaluate(config, tmp_path / "run", images=images)
    assert "nearest training example, relative distance-20 (pixels)" in subject.results
    assert ("FD-20 (pixels)" in subject.results) == (count == 8)  # 2 images are 1 to train on, 1 to test
    assert "KD-1 (pixels)" in subject.problems or "KD-2 (pixels)" in subject.problems
    assert "'folder' are compared in pixels; pip install -e '.[fid]' for the features of" in caplog.text


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({}, {"steps": [11]}, r"checkpoints holds no checkpoint of step 11; accepted: \[10, 20, 30, 40\]"),
        ({"metrics": ("classes",)}, {}, "metrics: classes: pixels and points have no classes"),
        ({"features": "inception"}, {}, "config.evaluation.features='inception': 'two_moons' are points"),
        ({}, {"images": "nowhere"}, "images can't be compared with 'two_moons', which are points"),
    ],
)
def test_evaluation_refuses_invalid_steps_metrics_features_and_images(trained, settings, options, message):
    workdir, config = trained
    with pytest.raises(UserError, match=message):
        evaluate(changed(config, **settings), workdir, **options)
    assert not (workdir / "eval").exists()


def test_evaluation_refuses_likelihood_of_discrete_networks_and_runs_without_checkpoints(tmp_path):
    config = Config(
        data=Data(name="digits"), model=NcsnModel(), evaluation=Evaluation(metrics=("likelihood",))
    )
    with pytest.raises(UserError, match=r"likelihood: it needs .* any σ, found a network that embeds"):
        evaluate(config, tmp_path)
    with pytest.raises(UserError, match="holds no checkpoint yet: continue training"):
        evaluate(config.model_copy(update={"evaluation": Evaluation()}), tmp_path)


def test_a_damaged_checkpoint_is_reported_and_the_others_are_measured(trained, tmp_path, caplog):
    workdir = tmp_path / "run"
    shutil.copytree(trained[0], workdir)
    (workdir / "checkpoints" / "20" / "record" / "metadata").write_bytes(b"")
    for array in (workdir / "checkpoints" / "30" / "state").rglob("d/*"):
        array.write_bytes(array.read_bytes()[:9])
    config = changed(trained[1], metrics=("loss",))
    assert [subject.step for subject in evaluate(config, workdir)] == [10, 40]
    for step in (20, 30):
        assert f"checkpoints/{step} is damaged" in caplog.text
        with pytest.raises(UserError, match=f"checkpoints/{step} is damaged"):
            evaluate(config, workdir, steps=[step])


def test_a_damaged_part_of_an_evaluation_is_named(evaluated, tmp_path):
    workdir, config, _ = evaluated
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "eval" / "parts" / "real.json").write_text("[]")
    assert about_real(tmp_path / "run" / "eval" / "parts") == ""
    for part in (tmp_path / "run" / "eval" / "parts").glob("train-*/000000.npz"):
        part.write_bytes(part.read_bytes()[:300])
    with pytest.raises(UserError, match=r"000000\.npz is damaged \(BadZipFile\): delete it, then rerun"):
        evaluate(changed(config, num_samples=9), tmp_path / "run", steps=[10])


# --- images ---


@pytest.fixture(scope="module")
def digits(data_dir):
    return Config(
        data=Data(name="digits", data_dir=data_dir),
        model=NcsnModel(),
        evaluation=Evaluation(features="pixels"),
    )


def test_images_from_outside_are_measured_from_an_array_or_a_folder(digits, tmp_path):
    dataset = data.load(digits.data)
    pictures = data.as_bytes(dataset.train[:300], dataset.info)
    np.savez(tmp_path / "copies.npz", pictures)
    for i, picture in enumerate(pictures):
        (tmp_path / "copies").mkdir(exist_ok=True)
        Image.fromarray(picture[..., 0]).save(tmp_path / "copies" / f"{i:03}.png")
    (of_array,) = evaluate(digits, tmp_path / "run", images=str(tmp_path / "copies.npz"))
    (of_folder,) = evaluate(digits, tmp_path / "run", images=str(tmp_path / "copies"))
    assert of_array.results == of_folder.results
    assert of_array.title == f"{tmp_path.name}/copies.npz"
    assert of_folder.title == f"{tmp_path.name}/copies"
    # Neither has replaced the other.
    assert len(results(tmp_path / "run")) == 2
    found = of_array.results
    expected = distances.frechet_distance(
        dataset.train[:300].reshape(300, -1) / 16, dataset.train[:].reshape(-1, 64) / 16
    )
    np.testing.assert_allclose(found["FD-300 (pixels)"].value, expected, rtol=1e-2)  # 17 greys in 8 bits
    assert found["nearest training example, relative distance-300 (pixels)"].value == 0.0
    with Image.open(tmp_path / "run" / "eval" / f"{of_array.name}_neighbours.png") as image:
        columns, rows = 11, 12
        assert abs(image.width / image.height - columns / rows) < 0.05
        pixels = np.asarray(image)
        side = image.width // columns
        # A copy's nearest training image is itself.
        np.testing.assert_array_equal(pixels[:side, :side], pixels[:side, 2 * side : 3 * side])


def test_features_passed_by_the_user_override_the_configs(digits, tmp_path):
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).uniform(size=(50, 8, 8, 1)).astype(np.float32))

    def brightness(images):
        assert images.dtype == np.uint8
        return evaluation.Extracted(images.mean((1, 2)) / 255, None)

    mine = Features("brightness", "brightness 1", brightness)
    images = str(tmp_path / "noise.npy")
    (subject,) = evaluate(digits, tmp_path, images=images, features=mine)
    assert set(subject.metrics) == {"frechet", "kernel", "coverage", "neighbours"}  # it tells no classes
    with pytest.raises(UserError, match="metrics: classes: 'brightness' has no classes"):
        evaluate(changed(digits, metrics=("classes",)), tmp_path, images=images, features=mine)
    dataset = data.load(digits.data)
    noise = data.quantize(dataset.info)(np.load(images)).mean((1, 2)) / 16
    expected = distances.frechet_distance(noise, dataset.train[:].mean((1, 2)) / 16)
    np.testing.assert_allclose(subject.results["FD-50 (brightness)"].value, expected, rtol=0.05)


def test_digits_classifier_is_accurate_and_trained_only_once(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("ncsn_jax.evaluation.classifier.NUM_STEPS", 150)
    np.save(tmp_path / "ones.npy", np.zeros((20, 8, 8, 1), np.uint8))
    chosen = changed(digits, features="auto", metrics=("classes", "inception_score"))
    images = str(tmp_path / "ones.npy")
    (subject,) = evaluate(chosen, tmp_path / "a", images=images)
    shares = subject.metrics["classes"].details
    assert sorted(shares["samples"]) == [0.0] * 9 + [1.0]
    np.testing.assert_allclose(shares["training data"], 0.1, atol=0.01)  # as stratified
    assert subject.results["IS-20 (classifier)"].value == pytest.approx(1.0, abs=1e-6)
    described = json.loads((tmp_path / "a" / "eval" / "parts" / "real.json").read_text())
    assert "test images" in described["features"]
    accuracy = float(described["features"].split("right on ")[1].split("%")[0])
    assert 95 < accuracy < 100
    monkeypatch.setattr("ncsn_jax.evaluation.classifier._trained", None)
    (again,) = evaluate(chosen, tmp_path / "b", images=images)
    assert again == subject


@pytest.mark.slow
def test_checkpoints_are_measured_with_averages_of_several_lengths(trained, tmp_path):
    _, config = trained
    averages = {"ema_lengths": (0.05, 0.1), "ema_rate": 0.0, "ema_snapshot_every": 2, "keep_checkpoints": 1}
    config = config.model_copy(update={"training": config.training.model_copy(update=averages)})
    state = training.train_and_evaluate(config, tmp_path / "run")
    config = changed(config, metrics=("loss",), ema_lengths=(0.1, 0.07))
    subjects = evaluate(config, tmp_path / "run")
    names = ["step_00000040_ema_0.07.json", "step_00000040_ema_0.1.json"]
    assert sorted(results(tmp_path / "run")) == names
    assert [subject.title for subject in subjects] == ["step 40, EMA 0.1", "step 40, EMA 0.07"]
    own = as_score_fn(generator(config, data.load(config.data)).model, {"params": state.second_ema_params})
    x, sigma = jnp.asarray(data.load(config.data).test[:6]), config.model.noise_levels[0]
    keys = jax.vmap(
        lambda i: jax.random.split(
            jax.random.fold_in(jax.random.fold_in(stream(config.seed, "levels"), 0), i)
        )[1]
    )(jnp.arange(6))
    losses = jax.vmap(lambda k, x: denoising_score_matching(k, own, x, sigma))(keys, x)
    found = [subject.metrics["loss"].details["loss"][0] for subject in subjects]
    np.testing.assert_allclose(found[0], losses.mean(), rtol=1e-4)
    assert abs(found[1] - found[0]) > 1e-4 * found[0]
