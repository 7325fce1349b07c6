"""`mnist` and `fashion_mnist`: MNIST and Fashion-MNIST of TFDS, prepared without TensorFlow."""

import gzip

import numpy as np
import tensorflow_datasets as tfds

from ncsn_jax.data.png import png_bytes


class Mnist(tfds.image_classification.MNIST, skip_registration=True):
    """The stock builder, with a preparation that doesn't need TensorFlow."""

    name = "mnist"

    # The builder's own `download_and_prepare` is the only caller of these two.

    def _split_generators(self, dl_manager):  # pyright: ignore[reportIncompatibleMethodOverride]
        def examples(part):
            files = dl_manager.download(
                [f"{self.URL}{part}-images-idx3-ubyte.gz", f"{self.URL}{part}-labels-idx1-ubyte.gz"]
            )
            return self._generate_examples(*files)

        return {"train": examples("train"), "test": examples("t10k")}

    def _generate_examples(self, images_path, labels_path):  # pyright: ignore[reportIncompatibleMethodOverride]
        images = _read_idx(images_path, header=16).reshape(-1, 28, 28, 1)
        labels = _read_idx(labels_path, header=8)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": png_bytes(image), "label": int(label)}


class FashionMnist(  # pyright: ignore[reportIncompatibleMethodOverride]
    Mnist, tfds.image_classification.FashionMNIST, skip_registration=True
):
    """The stock builder, prepared like MNIST, whose file format it shares."""

    name = "fashion_mnist"


def _read_idx(path, header: int) -> np.ndarray:
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)
