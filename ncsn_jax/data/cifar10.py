"""`cifar10`: CIFAR-10 of TFDS, prepared without TensorFlow."""

import tarfile

import numpy as np
import tensorflow_datasets as tfds

from ncsn_jax.data.png import png_bytes


class Cifar10(tfds.image_classification.Cifar10, skip_registration=True):
    """The stock builder, with a preparation that doesn't need TensorFlow."""

    name = "cifar10"
    URL = "https://www.cs.toronto.edu/~kriz/"

    # The builder's own `download_and_prepare` is the only caller of these two.

    def _split_generators(self, dl_manager):  # pyright: ignore[reportIncompatibleMethodOverride]
        stock = self._cifar_info
        files = _read_tar(dl_manager.download(f"{self.URL}cifar-10-binary.tar.gz"))
        names = files[f"{stock.prefix}batches.meta.txt"].decode().split()
        self.info.features["label"].names = names  # pyright: ignore

        def examples(split, batches):
            return self._generate_examples(split, b"".join(files[stock.prefix + name] for name in batches))

        return {"train": examples("train", stock.train_files), "test": examples("test", stock.test_files)}

    def _generate_examples(self, split, records):  # pyright: ignore[reportIncompatibleMethodOverride]
        # A record is the label's byte, then the red, the green and the blue plane.
        records = np.frombuffer(records, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        for i, (image, label) in enumerate(zip(images, records[:, 0], strict=True)):
            yield i, {"id": f"{split}_{i:05d}", "image": png_bytes(image), "label": int(label)}


def _read_tar(path) -> dict[str, bytes]:
    # One pass over the archive: seeking back would decompress it again.
    with tarfile.open(path) as tar:
        return {member.name: file.read() for member in tar if (file := tar.extractfile(member))}
