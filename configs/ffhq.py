"""NCSNv2 on FFHQ, 256×256, from a folder of images.

    python main.py --config configs/ffhq.py --config.data.data_dir=DIR

DIR holds the 70,000 images as files, of any size, in any subdirectories.

Song & Ermon 2020: the 6-stage network with F = 128 (94 million parameters), 2,311 levels from 348 to 0.01,
T = 3, ε = 9e-7, batches of 32, Adam at 1e-3, sampled from the moving average with a denoising step. The paper
shows samples and quotes no FID. The number of steps is this project's choice.

It needs several accelerators.
"""

from ncsn_jax.app.config import Config, Data, Ncsnv2Model, Sampling, Training
from ncsn_jax.app.overridable import overridable


def get_config():
    return overridable(
        Config(
            data=Data(name="folder", image_size=256, random_flip=True, dequantization="none"),
            model=Ncsnv2Model(num_filters=128, depth=6, sigma_begin=348.0, num_scales=2311),
            training=Training(
                batch_size=32,
                learning_rate=1e-3,
                ema_rate=0.999,
                preview_every=50_000,
                preview_samples=4,
            ),
            sampling=Sampling(num_samples=16, step_size=9e-7, steps_per_scale=3, denoise=True),
        )
    )
