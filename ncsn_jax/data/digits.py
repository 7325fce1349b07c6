"""`digits`: the 1,797 handwritten digits in scikit-learn, 8×8 pixels of 17 grey values."""

import numpy as np
import tensorflow_datasets as tfds

from ncsn_jax.data.png import png_bytes


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """1,500 training and 297 test images, stratified by class, split by a fixed seed. Pixels are 0 … 16."""

    name = "digits"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="The test part of the UCI Optical Recognition of Handwritten Digits data.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.24432/C50P49",
            citation="E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits. UCI, 1998.",
        )

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits  # imported here because it takes a second
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        images = images.reshape(-1, 8, 8, 1).astype(np.uint8)
        parts = train_test_split(images, labels, train_size=1500, stratify=labels, random_state=0)
        train_images, test_images, train_labels, test_labels = parts
        return {
            "train": self._generate_examples(train_images, train_labels),
            "test": self._generate_examples(test_images, test_labels),
        }

    def _generate_examples(self, images, labels):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": png_bytes(image), "label": int(label)}
