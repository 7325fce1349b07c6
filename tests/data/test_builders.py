"""Every dataset is prepared from a local server's tiny imitation of its archives, without TensorFlow."""

import gzip
import http.server
import io
import tarfile
import threading
import zipfile

import jax
import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import checksums

from ncsn_jax import data
from ncsn_jax.data import celeb_a, datasets
from ncsn_jax.data.celeb_a import CelebA
from ncsn_jax.data.cifar10 import Cifar10
from ncsn_jax.data.mnist import FashionMnist, Mnist
from ncsn_jax.data.svhn_cropped import SvhnCropped

BUILDERS = [Mnist, FashionMnist, Cifar10, SvhnCropped, CelebA]
CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def serve(monkeypatch):
    """Points a builder at a server of the given files, by path and query."""
    files = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path in files
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(files.get(self.path, b""))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()

        def point(builder, contents):
            files.update(contents)
            monkeypatch.setattr(builder, "URL", f"http://127.0.0.1:{httpd.server_port}/")

        yield point
        httpd.shutdown()


def prepared(builder_class, data_dir):
    """Examples that the builder prepared, read by a second builder of the same class, by split."""
    builder_class(data_dir=data_dir, file_format="array_record").download_and_prepare()
    builder = builder_class(data_dir=data_dir, file_format="array_record")
    assert builder.is_prepared()
    return {split: list(builder.as_data_source(split)) for split in builder.info.splits}


@pytest.mark.parametrize("builder", [Mnist, FashionMnist])
def test_mnist_builders_prepare_every_image_with_its_label(builder, serve, tmp_path):
    images = noise(10, 28, 28, 1)
    files = {}
    for part, start, stop in (("train", 0, 7), ("t10k", 7, 10)):
        labels = np.arange(start, stop, dtype=np.uint8).tobytes()
        pixels = images[start:stop].tobytes()
        files[f"/{part}-images-idx3-ubyte.gz"] = gzip.compress(bytes(16) + pixels)
        files[f"/{part}-labels-idx1-ubyte.gz"] = gzip.compress(bytes(8) + labels)
    serve(builder, files)
    splits = prepared(builder, tmp_path)
    assert {split: len(examples) for split, examples in splits.items()} == {"train": 7, "test": 3}
    for example in splits["train"] + splits["test"]:
        np.testing.assert_array_equal(example["image"], images[example["label"]])


def test_cifar10_builder_orders_batches_and_reads_planar_images(serve, tmp_path):
    """The archive's batches are out of order, and its images are stored channel by channel."""
    images, labels = noise(12, 32, 32, 3), np.arange(12, dtype=np.uint8) % 10
    records = [bytes([labels[i]]) + images[i].transpose(2, 0, 1).tobytes() for i in range(12)]
    contents = {f"data_batch_{i}.bin": b"".join(records[2 * i - 2 : 2 * i]) for i in (1, 5, 3, 2, 4)}
    contents["batches.meta.txt"] = ("\n".join(CIFAR_CLASSES) + "\n\n").encode()
    contents["test_batch.bin"] = b"".join(records[10:])
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    serve(Cifar10, {"/cifar-10-binary.tar.gz": archive.getvalue()})
    splits = prepared(Cifar10, tmp_path)
    for split, start, count in (("train", 0, 10), ("test", 10, 2)):
        examples = {example["id"].decode(): example for example in splits[split]}
        assert sorted(examples) == [f"{split}_{i:05d}" for i in range(count)]
        for i in range(count):
            example = examples[f"{split}_{i:05d}"]
            np.testing.assert_array_equal(example["image"], images[start + i])
            assert example["label"] == labels[start + i]
    builder = Cifar10(data_dir=tmp_path, file_format="array_record")
    assert builder.info.features["label"].names == CIFAR_CLASSES


def test_svhn_builder_keeps_three_splits_and_maps_label_10_to_digit_0(serve, tmp_path):
    """The digit 0 is labelled 10 in the file."""
    counts = {"train": 5, "test": 3, "extra": 10}
    images, files = {}, {}
    for split, count in counts.items():
        images[split] = noise(count, 32, 32, 3)
        file = io.BytesIO()
        labels = np.arange(1, count + 1, dtype=np.uint8)[:, None]
        scipy.io.savemat(file, {"X": images[split].transpose(1, 2, 3, 0), "y": labels}, do_compression=True)
        files[f"/{split}_32x32.mat"] = file.getvalue()
    serve(SvhnCropped, files)
    splits = prepared(SvhnCropped, tmp_path)
    assert {split: len(examples) for split, examples in splits.items()} == counts
    for split, examples in splits.items():
        for example in examples:
            name, number = example["id"].decode().split("_")
            assert name == split
            np.testing.assert_array_equal(example["image"], images[split][int(number)])
            assert example["label"] == (int(number) + 1) % 10


@pytest.fixture
def celeb_a_files():
    """The five files of an imitation with three faces, one per split, by their names in `FILES`."""
    names = [f"{i:06d}.jpg" for i in (1, 2, 3)]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        for name, image in zip(names, noise(3, 218, 178, 3), strict=True):
            jpeg = io.BytesIO()
            Image.fromarray(image).save(jpeg, "JPEG")
            zipped.writestr(f"img_align_celeba/{name}", jpeg.getvalue())

    def table(headings, rows):
        lines = (f"{name} {' '.join(map(str, row))}" for name, row in zip(names, rows, strict=True))
        return "\n".join([str(len(names)), " ".join(headings), *lines, ""]).encode()

    marks, attributes = celeb_a.stock.LANDMARK_HEADINGS, celeb_a.stock.ATTR_HEADINGS
    signs = np.where(np.arange(len(attributes)) % 2, 1, -1)
    return {
        "img_align_celeba": archive.getvalue(),
        "list_eval_partition": "".join(f"{name} {i}\n" for i, name in enumerate(names)).encode(),
        "list_attr_celeba": table(attributes, [signs, -signs, signs]),
        "landmarks_celeba": table(marks, [range(i, i + len(marks)) for i in (10, 20, 30)]),
        "identity_celeba": "".join(f"{name} {7 * i}\n" for i, name in enumerate(names)).encode(),
    }


def check_celeb_a(splits, files):
    with zipfile.ZipFile(io.BytesIO(files["img_align_celeba"])) as zipped:
        for i, split in enumerate(["train", "validation", "test"]):
            (example,) = splits[split]
            with zipped.open(f"img_align_celeba/{i + 1:06d}.jpg") as jpeg, Image.open(jpeg) as image:
                np.testing.assert_array_equal(example["image"], np.asarray(image))
            assert example["landmarks"]["lefteye_y"] == 10 * i + 11
            assert example["attributes"]["Arched_Eyebrows"] == (i != 1)
            assert example["attributes"]["Young"] == (i != 1)
            assert example["identity"]["Identity_No"] == 7 * i


def test_celeb_a_builder_downloads_and_prepares_every_split(serve, celeb_a_files, tmp_path):
    serve(
        CelebA,
        {f"/{url.removeprefix(CelebA.URL)}": celeb_a_files[name] for name, url in celeb_a.FILES.items()},
    )
    check_celeb_a(prepared(CelebA, tmp_path), celeb_a_files)
    part = datasets._attributes(data.Data(name="celeb_a", data_dir=str(tmp_path), condition="attributes"))
    assert part.names == tuple(sorted(celeb_a.stock.ATTR_HEADINGS))
    of_train, of_test = (dict(zip(part.names, row, strict=True)) for row in (part.train[0], part.test[0]))
    assert of_train == of_test == {name: i % 2 for i, name in enumerate(celeb_a.stock.ATTR_HEADINGS)}


def test_celeb_a_builder_uses_manually_placed_files_without_downloading(celeb_a_files, tmp_path, monkeypatch):
    """Files in `downloads/manual` are not downloaded, if they have the registered names and checksums."""
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    registered = {}
    for name, url in celeb_a.FILES.items():
        file = manual / CelebA.url_infos[url].filename
        file.write_bytes(celeb_a_files[name])
        registered[url] = checksums.compute_url_info(file)
    monkeypatch.setattr(CelebA, "url_infos", registered)
    assert (manual / "img_align_celeba.zip").exists()
    check_celeb_a(prepared(CelebA, tmp_path), celeb_a_files)


@pytest.mark.parametrize("builder_class", BUILDERS)
def test_builders_match_the_directory_and_features_of_stock_tfds_builders(builder_class, tmp_path):
    """Datasets that the stock builder prepared are found by ours and have the same features."""
    ours = builder_class(data_dir=tmp_path, file_format="array_record")
    stock = tfds.builder_cls(ours.name)(data_dir=tmp_path, file_format="array_record")
    assert type(stock) in type(ours).__mro__[1:]
    assert ours.data_dir == stock.data_dir
    assert ours.info.features.to_json() == stock.info.features.to_json()
    assert ours.info.description == stock.info.description
    assert ours.info.citation == stock.info.citation


class Asked(Exception):  # noqa: N818
    """Carries the URLs to be downloaded."""


@pytest.mark.parametrize("builder_class", BUILDERS)
def test_builder_downloads_have_registered_checksums(builder_class, tmp_path):
    class Recorder:
        def download(self, urls):
            raise Asked(urls)

    builder = builder_class(data_dir=tmp_path, file_format="array_record")
    with pytest.raises(Asked) as asked:
        builder._split_generators(Recorder())
    known = {**checksums.get_all_url_infos(), **(builder.url_infos or {})}
    assert set(jax.tree.leaves(asked.value.args)) <= set(known)
