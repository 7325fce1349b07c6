"""Images from outside the program, and labels, both used by evaluation."""

import numpy as np
import pytest
from PIL import Image

from ncsn_jax import data
from ncsn_jax.data import Data, Dataset, DatasetInfo
from ncsn_jax.data.datasets import has_labels
from ncsn_jax.runtime.errors import UserError

GREY = DatasetInfo((4, 6, 1), 256, "uniform")
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 1), dtype=np.uint8)


def stored(path, info=GREY):
    return data.stored_images(path, Dataset("mnist", info, PIXELS, PIXELS))


def test_stored_uint8_images_are_read_unchanged_from_npz_npy_and_folder(tmp_path):
    np.savez(tmp_path / "one.npz", anything=PIXELS)
    np.savez(tmp_path / "two.npz", labels=np.arange(5), arr_0=PIXELS)
    np.save(tmp_path / "a.npy", PIXELS)
    (tmp_path / "folder").mkdir()
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels[..., 0]).save(tmp_path / "folder" / f"{i}.png")
    for name in ("one.npz", "two.npz", "a.npy", "folder"):
        np.testing.assert_array_equal(stored(tmp_path / name), PIXELS)


def test_chosen_image_files_are_decoded_as_for_training(tmp_path):
    """16 bits, transparency, palettes and rotation are decoded alike for training and evaluation."""
    pixels = PIXELS[0, ..., 0]
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down
    Image.fromarray(pixels.astype(np.uint16) * 257).save(tmp_path / "0.png")
    Image.fromarray(np.stack([pixels, np.full_like(pixels, 255)], -1)).save(tmp_path / "1.png")
    Image.fromarray(pixels).convert("P").save(tmp_path / "2.png")
    Image.fromarray(pixels[::-1, ::-1]).save(tmp_path / "3.png", exif=turned)
    Image.fromarray(np.stack([pixels, np.zeros_like(pixels)], -1)).save(tmp_path / "4.png")
    expected = [pixels] * 4 + [np.full_like(pixels, 255)]  # white shows through
    np.testing.assert_array_equal(stored(tmp_path), np.stack(expected)[..., None])
    settings = Data(name="folder", data_dir=str(tmp_path), image_size=6, channels=1, fit="stretch")
    dataset = data.load(settings)
    fitted = {"crop": None, "fit": "stretch"}
    chosen = data.chosen_images(str(tmp_path), (6, 6, 1), load_dataset=lambda: dataset, fitted=fitted)
    for image in (*dataset.train, *dataset.test):
        assert any(np.array_equal(image, np.round(255 * other)) for other in chosen)


def test_stored_floats_and_bytes_are_quantized_like_the_dataset(tmp_path):
    np.save(tmp_path / "a.npy", (PIXELS + 0.9) / 256)
    np.testing.assert_array_equal(stored(tmp_path / "a.npy"), PIXELS)
    np.save(tmp_path / "b.npy", (PIXELS / 255).astype(np.float16))
    none = DatasetInfo((4, 6, 1), 256, "none")
    assert np.abs(stored(tmp_path / "b.npy", none).astype(int) - PIXELS).max() <= 1  # half precision
    np.save(tmp_path / "c.npy", np.round(PIXELS / 255 * 16).astype(np.uint8) * 15)
    sixteenths = stored(tmp_path / "c.npy", info=DatasetInfo((4, 6, 1), 17))
    np.testing.assert_array_equal(sixteenths, np.round(np.round(PIXELS / 255 * 16) * 15 * 16 / 255))


def test_stored_floats_beyond_the_unit_interval_by_noise_are_clipped(tmp_path):
    noise = np.random.default_rng(1).standard_normal((500, 4, 6, 1))
    noisy = (np.tile(PIXELS, (100, 1, 1, 1)) / 255 + noise).astype(np.float32)
    np.save(tmp_path / "a.npy", noisy)
    np.testing.assert_array_equal(stored(tmp_path / "a.npy"), np.clip(np.floor(256 * noisy), 0, 255))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (PIXELS[:, :3], r"found images of the shape \(3, 6, 1\); accepted: \(4, 6, 1\), as in .*'mnist'"),
        (PIXELS[..., 0], r"found uint8 of the shape \(5, 4, 6\); accepted: \(n, height, width, channels\)"),
        (PIXELS[:0], r"found uint8 of the shape \(0, 4, 6, 1\)"),
        (PIXELS.astype(np.int64), "found int64 of the shape"),
        (PIXELS.astype(np.float32), "found numbers from .* to 2.*; accepted: \\[0, 1\\], or 8-bit pixels"),
        (PIXELS / 127.5 - 1, "found numbers from -.* to 0.9"),
        (np.full((1, 4, 6, 1), np.nan), "found numbers from nan to nan"),
        (np.array([{}], object), "can't be read as an array"),
    ],
)
def test_stored_arrays_of_wrong_shape_type_or_range_are_refused(array, message, tmp_path):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UserError, match=message):
        stored(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "can't be read as an array"), (b"PK\x03\x04 no archive", "can't be read as an array")],
)
def test_unreadable_or_ambiguous_array_files_are_refused(content, message, tmp_path):
    for name in ("a.npy", "a.npz"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            stored(tmp_path / name)
    with pytest.raises(UserError, match="can't be read as an array"):
        stored(tmp_path / "missing.npz")
    np.savez(tmp_path / "two.npz", a=PIXELS, b=PIXELS)
    with pytest.raises(UserError, match="arrays a, b; accepted: one, or one named arr_0"):
        stored(tmp_path / "two.npz")


def test_stored_image_files_of_another_size_are_refused_and_not_resized(tmp_path):
    Image.new("L", (5, 5)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"found images of the shape \(5, 5, 1\); accepted: \(4, 6, 1\)"):
        stored(tmp_path)


def test_loaded_labels_match_the_images_in_order(data_dir):
    settings = Data(name="digits", data_dir=data_dir)
    dataset = data.load(settings)
    assert dataset.load_labels is not None
    train, test = dataset.load_labels()
    assert (len(train), len(test)) == (len(dataset.train), len(dataset.test))
    counts = np.bincount(train, minlength=10)
    assert counts.min() > 140  # stratified
    means = np.stack([dataset.train[train == k].mean(0) for k in range(10)])
    distances = np.square(dataset.test[:, None] - means[None]).sum((2, 3, 4))
    assert np.mean(distances.argmin(1) == test) > 0.85


def test_only_datasets_with_classes_have_labels(tmp_path):
    for name, expected in (("mnist", True), ("cifar10", True), ("celeb_a", False)):
        assert has_labels(Data(name=name, data_dir=str(tmp_path))) == expected
    assert data.load(Data(name="two_moons")).load_labels is None
