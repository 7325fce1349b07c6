"""FFHQ, from a folder of images, with the networks of two papers.

    python main.py --config configs/ffhq.py --config.data.data_dir=DIR                # or ffhq.py:ncsnv2
    python main.py --config configs/ffhq.py:ncsnpp --config.data.data_dir=DIR         # 256×256
    python main.py --config configs/ffhq.py:ncsnpp_1024 --config.data.data_dir=DIR    # 1024×1024

DIR holds the 70,000 images as files, of any size, in any subdirectories.

ncsnv2 is Song & Ermon 2020: 256×256 pixels, the 6-stage network with F = 128 (94 million parameters), 2,311
levels from 348 to 0.01, T = 3, ε = 9e-7, batches of 32, Adam at 1e-3, sampled from the moving average with a
denoising step. The paper shows samples and quotes no FID. The number of steps is this project's choice.

ncsnpp and ncsnpp_1024 are Song et al. 2021 (ve/ffhq_256_ncsnpp_continuous and ve/ffhq_ncsnpp_continuous):
NCSN++ with F = 128 (65,574,549 parameters), 2,000 levels from 348, batches of 64 and r = 0.075; and with
F = 16 on eight levels of resolution (105,785,896 parameters), from 1348, batches of 8 and r = 0.15. Their
authors publish weights and samples, and no FID.

They need several accelerators.
"""

from ncsn_jax.app.config import Config, Data, NcsnppModel, Ncsnv2Model, Sampling, Training
from ncsn_jax.app.overridable import overridable
from ncsn_jax.app.published import HIGH_RESOLUTION, published


def get_config(network: str = "ncsnv2"):
    networks = {
        "ncsnv2": Config(
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
        ),
        "ncsnpp": published(
            Data(name="folder", image_size=256),
            NcsnppModel(
                multipliers=(1, 1, 2, 2, 2, 2, 2),
                num_res_blocks=2,
                image_size=256,
                sigma_begin=348.0,
                **HIGH_RESOLUTION,
            ),
            num_steps=2_400_001,
            batch_size=64,
            snr=0.075,
        ),
        "ncsnpp_1024": published(
            Data(name="folder", image_size=1024),
            NcsnppModel(
                num_filters=16,
                multipliers=(1, 2, 4, 8, 16, 32, 32, 32),
                num_res_blocks=1,
                image_size=1024,
                sigma_begin=1348.0,
                **HIGH_RESOLUTION,
            ),
            num_steps=2_400_001,
            batch_size=8,
            ema_rate=0.9999,
            snr=0.15,
            reduce_mean=True,
        ),
    }
    if network not in networks:
        raise ValueError(f"configs/ffhq.py:{network}: accepted: {', '.join(networks)}")
    return overridable(networks[network])
