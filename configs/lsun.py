"""NCSNv2 on LSUN, from a folder of images.

    python main.py --config configs/lsun.py:church --config.data.data_dir=DIR     # 96×96; the default
    python main.py --config configs/lsun.py:bedroom --config.data.data_dir=DIR    # 128×128
    python main.py --config configs/lsun.py:tower --config.data.data_dir=DIR      # 128×128

DIR holds the category's images as files, in any subdirectories; each is resized and cropped to its centre.

Song & Ermon 2020: the 5-stage network with F = 128 (83 million parameters), sampled from the moving average
with a denoising step. church: 788 levels from 140 to 0.01, T = 4, ε = 4.9e-6; bedroom and tower: 1,086 levels
from 190, T = 3, ε = 1.8e-6. The paper shows samples and quotes no FID. The official config of church has 64
pixels, its readme 96. 788 levels fit 96: Technique 2 gives 745 for 96 and 496 for 64. The number of steps is
this project's choice.

It needs several accelerators.
"""

from ncsn_jax.app.config import Config, Data, Ncsnv2Model, Sampling, Training
from ncsn_jax.app.overridable import overridable


def get_config(category: str = "church"):
    large = (128, 190.0, 1086, 1.8e-6, 3)
    settings = {"church": (96, 140.0, 788, 4.9e-6, 4), "bedroom": large, "tower": large}
    if category not in settings:
        raise ValueError(f"configs/lsun.py:{category}: accepted: {', '.join(settings)}")
    image_size, sigma_begin, num_scales, step_size, steps_per_scale = settings[category]
    return overridable(
        Config(
            data=Data(name="folder", image_size=image_size, random_flip=True, dequantization="none"),
            model=Ncsnv2Model(num_filters=128, depth=5, sigma_begin=sigma_begin, num_scales=num_scales),
            training=Training(learning_rate=1e-4, ema_rate=0.999, preview_every=50_000, preview_samples=16),
            sampling=Sampling(step_size=step_size, steps_per_scale=steps_per_scale, denoise=True),
        )
    )
