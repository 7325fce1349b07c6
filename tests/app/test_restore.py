"""Restoration and interpolation as the application runs them, with a network of one convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from ncsn_jax import NCSN, as_score_fn, sample_posterior
from ncsn_jax.app import restore as restoration
from ncsn_jax.app.build import dataset_info, load_dataset
from ncsn_jax.app.config import Config, Ncsnv2Model, Restoration, Sampling
from ncsn_jax.app.interpolate import interpolate
from ncsn_jax.app.observations import chosen_images, known_pixels, observe, restoration_key
from ncsn_jax.app.restore import restore
from ncsn_jax.data import Data
from ncsn_jax.runtime.errors import UserError

MODES = ("inpaint", "colorize", "superres", "denoise")
METHODS = ["annealed", "consistent", "pc", "ode", "heun"]


class TinyScore(nn.Module):
    """A smooth network for any σ, in one convolution."""

    @nn.compact
    def __call__(self, x, sigma):
        pulled = x - nn.sigmoid(nn.Conv(x.shape[-1], (3, 3))(x))
        return -pulled / (0.1 + jnp.square(sigma))[:, None, None, None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six colour images of 8×8 pixels."""
    directory = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(directory / f"{i}.png")
    return directory


@pytest.fixture(scope="module")
def score_fn():
    variables = TinyScore().init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.ones(1))
    return as_score_fn(TinyScore(), variables)


@pytest.fixture
def config(folder):
    """A run on colour images, restored in 9 Langevin steps."""

    def config(transform="none", **settings):
        sampled = {name: value for name, value in settings.items() if name in Sampling.model_fields}
        restored = {name: value for name, value in settings.items() if name in Restoration.model_fields}
        return Config(
            data=Data(
                name="folder",
                data_dir=str(folder),
                image_size=8,
                dequantization="none",
                transform=transform,
            ),
            model=Ncsnv2Model(sigma_begin=1.0, sigma_end=0.05, num_scales=3),
            sampling=Sampling(**({"step_size": 5e-4, "steps_per_scale": 3} | sampled)),
            restoration=Restoration(**({"num_samples": 2} | restored)),
        )

    return config


def restored(directory):
    return {path.stem: np.load(path) for path in directory.glob("*.npy")}


NOISE = {"inpaint": 0.0, "colorize": 0.0, "superres": 0.0, "denoise": 0.3}


@pytest.mark.parametrize("mode", MODES)
def test_restoring_writes_originals_observations_samples_and_pictures(
    mode, config, score_fn, folder, tmp_path
):
    settings = config(num_samples=3, batch_size=4, noise=NOISE[mode])
    restore(tmp_path / mode, mode, score_fn, settings, str(folder))
    found = restored(tmp_path / mode)
    assert found["samples"].shape == (6, 3, 8, 8, 3)
    assert np.isfinite(found["samples"]).all()
    with Image.open(folder / "4.png") as image:
        np.testing.assert_allclose(found["originals"][4], np.asarray(image) / 255, atol=1e-6)
    seen = {"colorize": (8, 8, 1), "superres": (4, 4, 3)}.get(mode, (8, 8, 3))
    assert found["observations"].shape == (6, *seen)
    assert ("means" in found) == (mode == "denoise")
    columns = 2 + 3 + ("means" in found)
    with Image.open(tmp_path / mode / "grid.png") as grid:
        assert abs(grid.width / grid.height - columns / 6) < 0.05
    with Image.open(tmp_path / mode / "annealing.gif") as animation:
        assert animation.n_frames == 4
    # Restorations of one image differ.
    assert np.abs(found["samples"][:, 0] - found["samples"][:, 1]).max((1, 2, 3)).min() > 0.01


@pytest.mark.parametrize(
    ("mode", "transform"),
    [("inpaint", "none"), ("colorize", "rescale"), ("superres", "none"), ("denoise", "rescale")],
)
def test_restored_images_equal_the_librarys_posterior_samples(
    mode, transform, config, score_fn, folder, tmp_path
):
    """Restoration 1 of image 4 is `sample_posterior` of its observation, from the same key and start."""
    settings = config(transform, noise=0.2)
    restore(tmp_path, mode, score_fn, settings, str(folder))
    found = restored(tmp_path)
    _, _, observations = observe(mode, settings, dataset_info(settings), str(folder))
    observation = jax.tree.map(lambda leaf: leaf[4], observations)
    scale = 2.0 if transform == "rescale" else 1.0
    assert float(observation.noise_std) == pytest.approx(0.2 * scale)
    start_key, chain_key = jax.random.split(restoration_key(settings, 4, 2))
    forward, inverse = dataset_info(settings).transform

    def sample(observation):
        return inverse(
            sample_posterior(
                chain_key,
                score_fn,
                forward(jax.random.uniform(start_key, (8, 8, 3))),
                settings.model.noise_levels,
                observation,
                step_size=5e-4,
                steps_per_scale=3,
            )
        )

    np.testing.assert_allclose(found["samples"][4, 1], sample(observation), atol=1e-4)
    # Another observation would have led elsewhere.
    other = sample(observation.replace(y=observation.y + scale))
    assert np.abs(found["samples"][4, 1] - other).max() > 0.05
    if mode == "denoise":
        noise = found["observations"] - found["originals"]
        assert abs(noise.std() - 0.2) < 4 * 0.2 / np.sqrt(2 * noise.size)
        y, sigma = forward(found["observations"][4]), 0.2 * scale
        mean = y + sigma**2 * score_fn(jnp.asarray(y, jnp.float32), sigma)
        np.testing.assert_allclose(found["means"][4], inverse(mean), atol=1e-5)


def test_noise_of_given_digits_is_in_the_units_of_their_files(config, folder, tmp_path, data_dir):
    """A uniformly dequantized range [0, 1] is 16/17 wide; noise on files is, too."""
    settings = Config(
        data=Data(name="digits", data_dir=data_dir),
        model=config().model,
        restoration=Restoration(given="observations", noise=0.2),
    )
    Image.new("L", (8, 8)).save(tmp_path / "seen.png")
    _, _, observation = observe("denoise", settings, dataset_info(settings), str(tmp_path / "seen.png"))
    np.testing.assert_allclose(observation.noise_std, 0.2 * 16 / 17, rtol=1e-6)


@pytest.mark.parametrize(
    ("method", "transform"), [*((method, "none") for method in METHODS), ("annealed", "rescale")]
)
def test_restorations_agree_with_their_observations(method, transform, config, score_fn, folder, tmp_path):
    for mode, see in {
        "inpaint": lambda x: x[..., :4, :],
        "colorize": lambda x: x @ np.array([0.299, 0.587, 0.114]),
        "superres": lambda x: x.reshape(*x.shape[:-3], 4, 2, 4, 2, 3).mean((-4, -2)),
    }.items():
        settings = config(transform, method=method, denoise=True, num_samples=1)
        restore(tmp_path / mode, mode, score_fn, settings, str(folder))
        found = restored(tmp_path / mode)
        np.testing.assert_allclose(see(found["samples"][:, 0]), see(found["originals"]), atol=1e-4)
        assert np.abs(found["samples"][:, 0] - found["originals"]).max() > 0.1
        if method != "annealed":
            break  # the operators don't know the sampler


@pytest.mark.parametrize("mode", MODES)
def test_a_restoration_depends_on_its_key_and_not_on_batch_or_devices(
    mode, config, score_fn, folder, tmp_path, local_devices
):
    def run(batch_size, devices, **settings):
        local_devices(devices)
        settings = config(batch_size=batch_size, noise=NOISE[mode], mask="random", **settings)
        restore(tmp_path, mode, score_fn, settings, str(folder))
        return np.load(tmp_path / "samples.npy")

    samples = run(64, 4)
    for batch_size, devices in [(1, 1), (7, 4)]:
        np.testing.assert_allclose(run(batch_size, devices), samples, atol=1e-4)
    # Nor does it depend on the number of restorations per image.
    np.testing.assert_allclose(run(64, 1, num_samples=1)[:, 0], samples[:, 0], atol=1e-4)


@pytest.mark.parametrize("through", ["noise", pytest.param("latents", marks=pytest.mark.slow)])
def test_interpolation_rows_pass_from_one_image_to_another(
    through, config, score_fn, folder, tmp_path, local_devices
):
    def run(batch_size, devices):
        local_devices(devices)
        settings = config(batch_size=batch_size, through=through, num_samples=5, num_interpolations=4)
        images = str(folder) if through == "latents" else None
        interpolate(tmp_path / through, score_fn, settings, images)
        return np.load(tmp_path / through / "samples.npy")

    rows = run(64, 4)
    assert rows.shape == (5, 4, 8, 8, 3)
    assert np.isfinite(rows).all()
    assert np.abs(rows[:, 0] - rows[:, -1]).max((1, 2, 3)).min() > 0.1
    for name in ("grid.png", "annealing.gif"):
        assert (tmp_path / through / name).stat().st_size > 0
    np.testing.assert_allclose(run(2, 1), rows, atol=1e-3)
    if through == "latents":
        assert np.load(tmp_path / through / "latents.npy").shape == (6, 8, 8, 3)
        files = [np.asarray(Image.open(folder / f"{i}.png")) / 255 for i in range(6)]
        np.testing.assert_allclose(rows[:, 0], files[:-1], atol=1e-2)
        np.testing.assert_allclose(rows[:, -1], files[1:], atol=1e-2)


@pytest.mark.parametrize(
    ("mask", "rows", "columns"),
    [
        ("left", slice(None), slice(0, 4)),
        ("right", slice(None), slice(4, 8)),
        ("top", slice(0, 4), slice(None)),
        ("bottom", slice(4, 8), slice(None)),
    ],
)
def test_half_masks_keep_their_half_known(mask, rows, columns):
    known = known_pixels(jax.random.key(0), Restoration(mask=mask), (8, 8, 1))
    expected = np.zeros((8, 8, 1), bool)
    expected[rows, columns] = True
    np.testing.assert_array_equal(known, expected)


def test_centre_random_and_file_masks_keep_their_pixels_known(tmp_path):
    def known(**settings):
        return np.asarray(known_pixels(jax.random.key(0), Restoration(**settings), (32, 32, 2)))

    centre = known(mask="centre")[..., 0]
    assert not centre[8:24, 8:24].any()
    assert centre.sum() == 32 * 32 - 16 * 16
    random = known(mask="random", known=0.3)
    np.testing.assert_array_equal(random[..., 0], random[..., 1])
    assert abs(random.mean() - 0.3) < 4 * np.sqrt(0.21 / 1024)
    drawn = np.random.default_rng(0).integers(0, 2, (32, 32)).astype(bool)
    Image.fromarray((255 * drawn).astype(np.uint8)).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(known(mask=str(tmp_path / "mask.png"))[..., 1], drawn)
    # 16 bits: half white is 32768, and a grey of 1000 is nearly black.
    Image.fromarray(np.where(drawn, 40_000, 1000).astype(np.uint16)).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(known(mask=str(tmp_path / "deep.png"))[..., 1], drawn)


def test_given_observations_are_restored_like_observed_originals(config, score_fn, folder, tmp_path):
    """One run's observations, saved as 8-bit pixels, are restored by another run to the same images."""
    for mode in ("superres", "colorize", "denoise", "inpaint"):
        original = config(num_samples=1, noise=0.1 if mode == "denoise" else 0.0)
        restore(tmp_path / "a", mode, score_fn, original, str(folder))
        first = restored(tmp_path / "a")
        seen = tmp_path / f"seen_{mode}"
        seen.mkdir()
        for i, y in enumerate(first["observations"]):
            pixels = np.round(255 * np.clip(y, 0, 1)).astype(np.uint8)
            Image.fromarray(pixels.squeeze(-1) if mode == "colorize" else pixels).save(seen / f"{i}.png")
        given = config(num_samples=1, noise=original.restoration.noise, given="observations")
        restore(tmp_path / f"b_{mode}", mode, score_fn, given, str(seen))
        second = restored(tmp_path / f"b_{mode}")
        assert "originals" not in second
        atol = 0.5 if mode == "denoise" else 0.02  # noise outside of [0, 1] is cut off by the files
        np.testing.assert_allclose(second["samples"], first["samples"], atol=atol)


def test_images_chosen_from_the_test_split_are_scaled_for_the_network(config, score_fn, tmp_path, data_dir):
    settings = config(noise=0.1, num_samples=1)
    digits = Config(
        data=Data(name="digits", data_dir=data_dir),
        model=settings.model,
        sampling=settings.sampling,
        restoration=settings.restoration,
    )
    variables = TinyScore().init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.ones(1))
    grey = as_score_fn(TinyScore(), variables)
    restore(tmp_path, "denoise", grey, digits, "0,5:7,2")
    stored = load_dataset(digits).test[np.array([0, 5, 6, 2])]
    np.testing.assert_allclose(np.load(tmp_path / "originals.npy"), (stored + 0.5) / 17, atol=1e-6)
    with pytest.raises(UserError, match="--images=297: accepted: numbers of the 297 test images, from 0"):
        restore(tmp_path, "denoise", grey, digits, "297")
    with pytest.raises(UserError, match="--mode colorize needs a run of colour images, found images of 1"):
        restore(tmp_path, "colorize", grey, digits, "0")


def test_grid_shows_whole_interpolation_rows_and_only_some_restorations(config, score_fn, folder, tmp_path):
    interpolate(tmp_path, score_fn, config(num_samples=2, num_interpolations=12), None)
    with Image.open(tmp_path / "grid.png") as grid:
        assert abs(grid.width / grid.height - 12 / 2) < 0.3
    restore(tmp_path, "inpaint", score_fn, config(num_samples=20), str(folder))
    assert np.load(tmp_path / "samples.npy").shape[1] == 20
    with Image.open(tmp_path / "grid.png") as grid:
        assert abs(grid.width / grid.height - (2 + restoration.MAX_RESTORATIONS) / 6) < 0.1


def test_own_pictures_are_cropped_and_fitted_like_the_dataset(config, folder, tmp_path):
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, :8] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    settings = config()

    def chosen(are_originals=True, **changes):
        changed = settings.model_copy(update={"data": settings.data.model_copy(update=changes)})
        images = str(tmp_path / "wide.png")
        return chosen_images(changed, images, (8, 8, 3), are_originals=are_originals)[0]

    assert chosen().mean() == 0  # the middle
    assert chosen(fit="pad")[:2].max() == 0
    assert 0.2 < chosen(fit="pad")[2:5].mean() < 0.5
    with pytest.raises(UserError, match=r"found images of the shape \(8, 24, 3\); accepted: \(8, 8, 3\)"):
        chosen(are_originals=False)


BAD = {
    "no such mask": (
        "inpaint",
        {"mask": "diagonal"},
        None,
        "mask='diagonal': diagonal: no such file or directory; accepted: left, right, top",
    ),
    "no such folder": ("inpaint", {}, "nowhere", "nowhere: no such file or directory"),
    "a folder without images": ("inpaint", {}, "{tmp}", "no images found; accepted: .png"),
    "a file that is not an image": (
        "inpaint",
        {},
        "{tmp}/../text.png",
        r"text.png: can't be decoded \(Unidentified",
    ),
    "blocks that do not tile the image": (
        "superres",
        {"factor": 3},
        None,
        "factor=3: blocks of that side don't tile images of 8×8",
    ),
    "denoising without noise": (
        "denoise",
        {},
        None,
        "noise=0.0: --mode denoise needs the standard deviation",
    ),
    "logit transform": ("superres", {"transform": "logit"}, None, "transform='logit': --mode superres with"),
    "an empty slice": ("inpaint", {}, "0:0", "--images=0:0: accepted: numbers of the 1 test images"),
    "an empty range": ("inpaint", {}, "0,5:2", "--images=0,5:2: accepted: numbers of the 1 test images"),
    "a huge range": ("inpaint", {}, "0:99999999999", "accepted: numbers of the 1 test images"),
    "test images given as observations": (
        "superres",
        {"given": "observations"},
        "0",
        r"the test images have the shape \(8, 8, 3\), not \(4, 4, 3\); accepted: a dir",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_restoring_refuses_invalid_masks_images_and_settings(case, config, score_fn, folder, tmp_path):
    mode, settings, images, message = BAD[case]
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    images = (images or str(folder)).replace("{tmp}", str(tmp_path / "empty"))
    with pytest.raises(UserError, match=message):
        restore(tmp_path / "out", mode, score_fn, config(**settings), images)
    assert not (tmp_path / "out").exists()


def test_a_mask_of_another_size_is_refused(config, score_fn, folder, tmp_path):
    Image.new("L", (5, 7)).save(tmp_path / "mask.png")
    settings = config(mask=str(tmp_path / "mask.png"))
    with pytest.raises(UserError, match=r"mask\.png': found 7×5 pixels; accepted: left, right"):
        restore(tmp_path / "out", "inpaint", score_fn, settings, str(folder))


@pytest.mark.parametrize(
    ("settings", "images", "message"),
    [
        ({}, "0:2", "--images isn't read with config.restoration.through='noise'"),
        ({"method": "heun"}, None, "method='heun': interpolation through noise is annealed"),
        ({"through": "latents"}, None, "through='latents' needs --images: at least two"),
        ({"through": "latents"}, "0", "--images=0: found one image; interpolation needs at least two"),
    ],
)
def test_interpolating_refuses_invalid_images_and_methods(
    settings, images, message, config, score_fn, tmp_path
):
    with pytest.raises(UserError, match=message):
        interpolate(tmp_path / "out", score_fn, config(**settings), images)
    assert not (tmp_path / "out").exists()


def test_latent_interpolation_refuses_networks_of_discrete_levels(config, tmp_path):
    discrete = as_score_fn(NCSN(sigmas=(1.0, 0.5)), {})
    with pytest.raises(UserError, match="through='latents' needs scores at any σ"):
        interpolate(tmp_path / "out", discrete, config(through="latents"), "0:2")


def test_restoring_and_interpolating_refuse_points(score_fn, tmp_path):
    points = Config(data=Data(name="two_moons"))
    with pytest.raises(UserError, match=r"--mode inpaint restores images; .*'two_moons' are points"):
        restore(tmp_path / "out", "inpaint", score_fn, points, "0")
    with pytest.raises(UserError, match="--mode interpolate draws images"):
        interpolate(tmp_path / "out", score_fn, points, None)


def test_an_interrupted_restoration_keeps_the_earlier_one(config, score_fn, folder, tmp_path, monkeypatch):
    restore(tmp_path, "superres", score_fn, config(), str(folder))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(restoration, "write_batches", interrupted)
    with pytest.raises(KeyboardInterrupt):
        restore(tmp_path, "superres", score_fn, config(seed=1), str(folder))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
