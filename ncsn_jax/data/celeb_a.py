"""`celeb_a`: the aligned and cropped CelebA of TFDS, 218×178 pixels, prepared without TensorFlow."""

import zipfile

import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.celeb_a import celeb_a_dataset_builder as stock

DRIVE = "https://drive.google.com/"
FILES = {
    "img_align_celeba": stock.IMG_ALIGNED_DATA,
    "list_eval_partition": stock.EVAL_LIST,
    "list_attr_celeba": stock.ATTR_DATA,
    "landmarks_celeba": stock.LANDMARKS_DATA,
    "identity_celeba": stock.IDENTITY_DATA,
}
SPLITS = ("train", "validation", "test")
"""The splits, in the order of their numbers in list_eval_partition.txt."""


class CelebA(stock.Builder, skip_registration=True):
    """The stock builder, with an archive reader that doesn't need TensorFlow.

    Google Drive often refuses these downloads. Files in `downloads/manual` under the data_dir replace them,
    if they have the names in the stock checksums (img_align_celeba.zip, …).
    """

    name = "celeb_a"
    URL = DRIVE
    # The description and the checksums lie next to the stock builder.
    pkg_dir_path = tfds.core.Path(stock.__file__).parent
    url_infos = stock.Builder.url_infos

    # The builder's own `download_and_prepare` is the only caller.
    def _split_generators(self, dl_manager):  # pyright: ignore[reportIncompatibleMethodOverride]
        files = dl_manager.download({name: self.URL + url.removeprefix(DRIVE) for name, url in FILES.items()})
        images = _ZippedImages(files["img_align_celeba"])
        return {split: self._generate_examples(i, files, images) for i, split in enumerate(SPLITS)}


class _ZippedImages:
    """The JPEG files of the archive by name, read on access."""

    def __init__(self, path):
        self._archive = zipfile.ZipFile(path)

    def __getitem__(self, name: str) -> bytes:
        return self._archive.read(f"img_align_celeba/{name}")
