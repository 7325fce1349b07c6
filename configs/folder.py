"""NCSNv2 on your own images, from a folder of PNG, JPEG or WebP files.

    python main.py --config configs/folder.py:32 --config.data.data_dir=DIR --workdir runs/NAME

The argument is the height and width of the resized images, a multiple of 2. DIR is searched with all its
subdirectories. Files may have any size and mode; --config.data.crop, fit and channels set their conversion.
About every tenth file is a test image, chosen by a hash of its name. A file that can't be decoded is an error
that names it; --config.data.corrupt=skip skips the file.

NCSNv2 with F = 64 (7.4 million parameters). Its noise levels and step size are chosen from the images by
NCSNv2's Techniques 1, 2 and 4 when the run begins. The other settings equal NCSNv2's on CIFAR-10.
"""

from ncsn_jax.app.config import Config, Data, Ncsnv2Model, Sampling, Training
from ncsn_jax.app.overridable import overridable


def get_config(image_size: str = "32"):
    if not image_size.isdecimal() or int(image_size) < 2 or int(image_size) % 2:
        raise ValueError(f"configs/folder.py:{image_size}: accepted: an even height and width, such as 32")
    return overridable(
        Config(
            data=Data(name="folder", image_size=int(image_size), random_flip=True, dequantization="none"),
            model=Ncsnv2Model(num_filters=64, sigmas="auto"),
            training=Training(learning_rate=1e-4, ema_rate=0.999),
            sampling=Sampling(steps_per_scale=5, denoise=True),
        )
    )
