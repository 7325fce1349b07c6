"""Samples and pictures in files."""

import numpy as np
import pytest
from PIL import Image

from ncsn_jax.app.config import Sampling
from ncsn_jax.app.methods import recipe_of
from ncsn_jax.app.sample import preview, write_samples
from ncsn_jax.runtime.errors import UserError
from tests import samples
from tests.samples import INFO, SETTINGS, SIGMAS, draw


@pytest.fixture(scope="module", name="score_fn")
def _score_fn():
    return samples.score_fn()


def test_sample_files_hold_all_samples_and_pictures_show_the_first(score_fn, tmp_path):
    settings = SETTINGS.model_copy(update={"batch_size": 4})
    write_samples(tmp_path / "samples", score_fn, INFO, SIGMAS, settings)
    written = np.load(tmp_path / "samples" / "samples.npy")
    assert written.dtype == np.float32
    np.testing.assert_allclose(written, draw(score_fn)[:10], atol=1e-4)
    grid = preview(score_fn, recipe_of(settings, SIGMAS, INFO), 10)
    with Image.open(tmp_path / "samples" / "grid.png") as image:
        # Other batches compile to other programs, whose rounding may move a pixel by a grey value.
        np.testing.assert_allclose(np.asarray(image, int), grid.squeeze(-1), atol=1)
    with Image.open(tmp_path / "samples" / "annealing.gif") as animation:
        assert animation.n_frames == 4
        assert animation.size == grid.shape[1::-1]
    assert len(list((tmp_path / "samples").iterdir())) == 4


@pytest.mark.parametrize("options", [dict(method="ode", rtol=1e-20, atol=1e-20), dict(step_size=1e38)])
def test_samples_that_are_not_finite_are_reported_and_still_written(score_fn, tmp_path, options):
    settings = SETTINGS.model_copy(update=dict(steps_per_scale=30) | options)
    with pytest.raises(
        UserError,
        match=r"samples\.npy: 10 of 10 samples are not finite; make the steps of the sampler smaller",
    ):
        write_samples(tmp_path, score_fn, INFO, SIGMAS, settings)
    names = ["annealing.gif", "grid.png", "samples.npy", "settings.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_replacing_samples_logs_how_their_settings_differ(score_fn, tmp_path, caplog):
    def write(**options):
        caplog.clear()
        settings = SETTINGS.model_copy(update=options)
        write_samples(tmp_path, score_fn, INFO, SIGMAS, settings)
        return caplog.messages

    assert write() == []
    assert write() == [
        f"{tmp_path}: replacing 10 samples drawn with the same settings; --out=NAME keeps both"
    ]
    (message,) = write(num_samples=1, seed=3)
    assert "replacing 10 samples drawn with sampling.num_samples=10, sampling.seed=0; --out" in message
    (tmp_path / "settings.json").unlink()
    (message,) = write()
    assert "replacing 1 samples drawn with unknown settings" in message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            dict(method="consistent", eta=0.1),
            r"config\.sampling\.method='consistent': eta=0\.1: .* 0\.[69]\d* to 1",
        ),
        (dict(method="heun", rho=1e-3), r"config\.sampling\.method='heun': "),
    ],
)
def test_sampling_refuses_impossible_levels_before_writing(settings, message, score_fn, tmp_path):
    for sigmas in (SIGMAS, (50.0, *SIGMAS)):
        with pytest.raises(UserError, match=message):
            write_samples(tmp_path / "samples", score_fn, INFO, sigmas, Sampling(**settings))
    assert not (tmp_path / "samples").exists()


def test_damaged_earlier_samples_do_not_stop_new_ones(score_fn, tmp_path, caplog):
    for earlier, settings in ((b"", "["), (b"PK\x03\x04junk", "[]"), (b"\x93NUMPY", "[" * 100_000)):
        (tmp_path / "samples.npy").write_bytes(earlier)
        (tmp_path / "settings.json").write_text(settings)
        write_samples(tmp_path, score_fn, INFO, SIGMAS, SETTINGS)
        assert len(np.load(tmp_path / "samples.npy")) == 10
