import functools
import gzip
import http.server
import threading

import numpy as np
import pytest
from PIL import Image

from ncsn_jax import data
from ncsn_jax.data import Data, datasets
from ncsn_jax.runtime.errors import UserError


def load(name, data_dir, **settings):
    return data.load(Data(name=name, data_dir=str(data_dir), **settings))


@pytest.fixture(scope="module")
def digits(data_dir):
    return load("digits", data_dir)


def labels(data_dir, split):
    builder = datasets.Digits(data_dir=data_dir, file_format="array_record")
    source = builder.as_data_source(split=split)
    return np.array([example["label"] for example in source])


def test_digits_dataset_equals_scikit_learns_digits(digits):
    from sklearn.datasets import load_digits

    ours = np.concatenate([digits.train, digits.test]).reshape(-1, 64)
    theirs = load_digits().data
    np.testing.assert_array_equal(np.sort(ours, axis=0), np.sort(theirs, axis=0))
    assert {bytes(image) for image in ours} == {bytes(i) for i in theirs.astype(np.uint8)}


def test_digits_have_17_values_and_two_splits(digits):
    assert digits.train.shape == (1500, 8, 8, 1)
    assert digits.test.shape == (297, 8, 8, 1)
    assert digits.train.dtype == np.uint8
    assert digits.train.max() == 16
    assert digits.info == data.describe(Data(name="digits"))
    assert digits.info.shape == digits.train.shape[1:]
    assert digits.info.num_values == 17


def test_digits_splits_are_stratified_by_class(digits, data_dir):
    share = np.bincount(labels(data_dir, "train")) / 1500
    test_share = np.bincount(labels(data_dir, "test")) / 297
    assert np.abs(share - test_share).max() < 0.005


def test_datasets_above_the_memory_limit_are_read_image_by_image(digits, data_dir, monkeypatch):
    monkeypatch.setattr(datasets, "IN_MEMORY_BYTES", 0)
    lazy = load("digits", data_dir)
    assert not isinstance(lazy.train, np.ndarray)
    assert len(lazy.train) == 1500
    np.testing.assert_array_equal(lazy.train[17], digits.train[17])
    batches = [
        next(data.training_batches(images, batch_size=8, seed=0, first_step=200))
        for images in (lazy.train, digits.train)
    ]
    np.testing.assert_array_equal(batches[0]["examples"], batches[1]["examples"])


def test_an_unknown_dataset_name_is_refused_with_the_known_names(data_dir):
    with pytest.raises(
        UserError, match=r"'minst': unknown dataset; accepted: digits, .*, folder, arrays, two_g"
    ):
        load("minst", data_dir)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of MNIST's four files, with 5 training and 3 test images of noise in them."""
    rng = np.random.default_rng(0)
    images = {}
    for part, count in (("train", 5), ("t10k", 3)):
        images[part] = rng.integers(0, 256, (count, 28, 28, 1), dtype=np.uint8)
        for kind, header, values in (
            ("images-idx3", 16, images[part]),
            ("labels-idx1", 8, np.arange(count, dtype=np.uint8)),
        ):
            path = tmp_path / f"{part}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(bytes(header) + values.tobytes()))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        monkeypatch.setattr(datasets.Mnist, "URL", f"http://127.0.0.1:{httpd.server_port}/")
        yield images
        httpd.shutdown()


def test_mnist_is_downloaded_and_prepared_without_tensorflow(server, tmp_path):
    mnist = load("mnist", str(tmp_path / "tfds"))
    assert {bytes(i) for i in mnist.train} == {bytes(i) for i in server["train"]}
    assert {bytes(i) for i in mnist.test} == {bytes(i) for i in server["t10k"]}
    assert mnist.info == data.DatasetInfo((28, 28, 1), 256, "uniform")


def test_a_missing_network_is_reported_and_leaves_no_data_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.Mnist, "URL", "http://127.0.0.1:9/")
    with pytest.raises(UserError, match=r"mnist is not prepared in .*`data_dir`"):
        load("mnist", str(tmp_path / "tfds"))
    assert not (tmp_path / "tfds").exists()


def test_a_failing_download_is_reported_with_its_http_status(server, tmp_path, monkeypatch):
    """The server answers, but doesn't have the files."""
    monkeypatch.setattr(datasets.Mnist, "URL", datasets.Mnist.URL + "elsewhere/")
    with pytest.raises(UserError, match=r"mnist is not prepared in .* \(DownloadError.*404"):
        load("mnist", str(tmp_path / "tfds"))


def test_a_missing_file_of_a_prepared_dataset_is_reported(tmp_path):
    load("digits", str(tmp_path))
    next(tmp_path.rglob("digits-train.array_record*")).unlink()
    with pytest.raises(UserError, match=r"digits in .* can't be read or written as array_record"):
        load("digits", str(tmp_path))


def test_a_dataset_prepared_in_another_file_format_is_reported(tmp_path):
    load("digits", str(tmp_path))
    info = next(tmp_path.rglob("dataset_info.json"))
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match=r"digits in .* can't be read .* as array_record"):
        load("digits", str(tmp_path))


def test_a_data_directory_that_is_a_file_is_reported(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match=r"digits in .* can't be read or written"):
        load("digits", str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "folder"}, r"^image_size=None: a folder needs one image size"),
        ({"name": "mnist", "crop": 29}, r"^crop=29: larger than the images of mnist, 28×28"),
        ({"name": "two_moons", "random_flip": True}, r"random_flip=True: 'two_moons' are points"),
        ({"name": "two_moons", "transform": "logit"}, r"transform='logit': 'two_moons' are points"),
        ({"name": "two_moons", "image_size": 3}, r"image_size=3: 'two_moons' are points"),
        ({"name": "two_moons", "corrupt": "skip"}, r"corrupt='skip': 'two_moons' are points"),
        ({"name": "cifar10", "channels": 1}, r"channels=1: 'cifar10' is not a folder of images"),
    ],
)
def test_data_settings_that_contradict_the_dataset_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        data.describe(Data(**settings))


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({"name": "cifar10"}, (32, 32, 3)),
        ({"name": "fashion_mnist", "image_size": 14}, (14, 14, 1)),
        ({"name": "celeb_a"}, (218, 178, 3)),
        ({"name": "celeb_a", "crop": 140}, (140, 140, 3)),
        ({"name": "celeb_a", "crop": 140, "image_size": 64}, (64, 64, 3)),
        ({"name": "folder", "image_size": 10, "channels": 1}, (10, 10, 1)),
    ],
)
def test_described_shape_is_the_shape_after_cropping_and_resizing(settings, shape):
    assert data.describe(Data(**settings)) == data.DatasetInfo(shape, 256, "uniform")


def test_tfds_images_are_cropped_and_resized_on_loading(digits, data_dir):
    cropped = load("digits", data_dir, crop=4)
    np.testing.assert_array_equal(cropped.train, digits.train[:, 2:6, 2:6])
    halved = load("digits", data_dir, image_size=4)
    assert halved.train.shape == (1500, 4, 4, 1)
    assert halved.info.shape == (4, 4, 1)
    np.testing.assert_allclose(halved.train.mean(), digits.train.mean(), rtol=0.05)


def test_a_folder_of_images_loads_as_a_dataset_and_needs_a_data_dir(tmp_path, digits):
    for i, image in enumerate(digits.train[:30]):
        Image.fromarray(image.squeeze(-1) * 15).save(tmp_path / f"{i:02}.png")
    folder = load("folder", tmp_path, image_size=8, channels=1)
    assert folder.info == data.DatasetInfo((8, 8, 1), 256, "uniform")
    assert len(folder.train) + len(folder.test) == 30
    found = {bytes(image) for part in (folder.train, folder.test) for image in np.asarray(part)}
    assert found == {bytes(image * 15) for image in digits.train[:30]}
    with pytest.raises(UserError, match="data_dir=None: 'folder' needs the directory"):
        data.load(Data(name="folder", image_size=8))
