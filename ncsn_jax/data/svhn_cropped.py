"""`svhn_cropped`: Street View House Numbers of TFDS, 32×32 pixels, prepared without TensorFlow."""

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.svhn_cropped import svhn_cropped_dataset_builder as stock

from ncsn_jax.data.png import png_bytes


class SvhnCropped(stock.Builder, skip_registration=True):
    """The stock builder, with a preparation that doesn't need TensorFlow."""

    name = "svhn_cropped"
    URL = stock.URL
    # The description and the checksums lie next to the stock builder.
    pkg_dir_path = tfds.core.Path(stock.__file__).parent
    url_infos = stock.Builder.url_infos

    # The builder's own `download_and_prepare` is the only caller of these two.

    def _split_generators(self, dl_manager):  # pyright: ignore[reportIncompatibleMethodOverride]
        splits = ("train", "test", "extra")
        files = dl_manager.download({split: f"{self.URL}{split}_32x32.mat" for split in splits})
        return {split: self._generate_examples(split, files[split]) for split in splits}

    def _generate_examples(self, split, path):  # pyright: ignore[reportIncompatibleMethodOverride]
        from scipy.io import loadmat  # imported here because it is slow and needed only here

        data = loadmat(path)
        images = np.moveaxis(data["X"], -1, 0)
        labels = data["y"].ravel() % 10  # the digit 0 is stored as 10
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"id": f"{split}_{i:06d}", "image": png_bytes(image), "label": int(label)}
