"""LSUN, from a folder of images, with the networks of two papers.

    python main.py --config configs/lsun.py:church --config.data.data_dir=DIR           # 96×96; the default
    python main.py --config configs/lsun.py:bedroom --config.data.data_dir=DIR          # 128×128
    python main.py --config configs/lsun.py:tower --config.data.data_dir=DIR            # 128×128
    python main.py --config configs/lsun.py:church_ncsnpp --config.data.data_dir=DIR    # 256×256
    python main.py --config configs/lsun.py:bedroom_ncsnpp --config.data.data_dir=DIR   # 256×256

DIR holds the category's images as files, in any subdirectories; each is resized and cropped to its centre.

The first three are Song & Ermon 2020: the 5-stage NCSNv2 with F = 128 (83 million parameters), sampled from
the moving average with a denoising step. church: 788 levels from 140 to 0.01, T = 4, ε = 4.9e-6; bedroom and
tower: 1,086 levels from 190, T = 3, ε = 1.8e-6. The paper shows samples and quotes no FID. The official
config of church has 64 pixels, its readme 96. 788 levels fit 96: Technique 2 gives 745 for 96 and 496 for 64.
The number of steps is this project's choice.

The last two are Song et al. 2021 (ve/church_ncsnpp_continuous and ve/bedroom_ncsnpp_continuous): NCSN++ with
F = 128 and attention at 16×16 (65,574,549 parameters), 2,000 levels from 380 and 378 to 0.01, batches of 64,
r = 0.075. Their authors publish weights and samples, and no FID.

They need several accelerators.
"""

from ncsn_jax.app.config import Config, Data, NcsnppModel, Ncsnv2Model, Sampling, Training
from ncsn_jax.app.overridable import overridable
from ncsn_jax.app.published import HIGH_RESOLUTION, published


def get_config(category: str = "church"):
    large = (128, 190.0, 1086, 1.8e-6, 3)
    older = {"church": (96, 140.0, 788, 4.9e-6, 4), "bedroom": large, "tower": large}
    newer = {"church_ncsnpp": 380.0, "bedroom_ncsnpp": 378.0}
    if category in newer:
        return overridable(_ncsnpp(newer[category]))
    if category not in older:
        raise ValueError(f"configs/lsun.py:{category}: accepted: {', '.join(older | newer)}")
    image_size, sigma_begin, num_scales, step_size, steps_per_scale = older[category]
    return overridable(
        Config(
            data=Data(name="folder", image_size=image_size, random_flip=True, dequantization="none"),
            model=Ncsnv2Model(num_filters=128, depth=5, sigma_begin=sigma_begin, num_scales=num_scales),
            training=Training(learning_rate=1e-4, ema_rate=0.999, preview_every=50_000, preview_samples=16),
            sampling=Sampling(step_size=step_size, steps_per_scale=steps_per_scale, denoise=True),
        )
    )


def _ncsnpp(sigma_begin: float) -> Config:
    return published(
        Data(name="folder", image_size=256),
        NcsnppModel(
            multipliers=(1, 1, 2, 2, 2, 2, 2),
            num_res_blocks=2,
            image_size=256,
            sigma_begin=sigma_begin,
            **HIGH_RESOLUTION,
        ),
        num_steps=2_400_001,
        batch_size=64,
        snr=0.075,
    )
